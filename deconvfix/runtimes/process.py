"""A file in a runtime, in a process of its own, which alone ends with a crash or at the time limit.

The process is that of `deconvfix.parity.worker`. A runtime's package is imported there and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from deconvfix.files import scratch_folder
from deconvfix.parity.worker import CrashError, LateError, Worker
from deconvfix.runtimes.base import Feed, Run, Runtime, shapes_in
from deconvfix.runtimes.registry import runtime_at

__all__ = ["File", "InRuntime", "NotRunError", "heard", "said"]

# Some runtimes print a page where others say a sentence.
_MOST_WORDS = 300


class NotRunError(Exception):
    """A runtime gives no outputs; the message says why.

    Attributes:
        status: refused, died or late.
    """

    def __init__(self, status: str, words: str) -> None:
        super().__init__(words)
        self.status = status


class InRuntime:
    """A file in a runtime, seen from this process; a context that ends the other one.

    Args:
        home: The runtime, as "module:class".
        path: The file.
        outputs: The names of its outputs.
        seconds: That loading it and one run may take together.

    Attributes:
        version: Of the runtime.

    Raises:
        NotRunError: If its package cannot be imported.
    """

    def __init__(self, home: str, path: Path, outputs: tuple[str, ...], seconds: float) -> None:
        self.seconds = seconds
        with contextlib.ExitStack() as ends:
            # What it writes has a folder on this side, as it may be ended at any time.
            folder = ends.enter_context(scratch_folder())
            self.worker = Worker(f"{__name__}:File")
            ends.callback(self.worker.end)
            self.version: str = self._ask("open", home, str(path), outputs, str(folder))
            self.ends = ends.pop_all()

    def __enter__(self) -> InRuntime:
        return self

    def __exit__(self, *error: object) -> None:
        self.ends.close()

    def run(self, feed: Feed) -> list[NDArray[Any]]:
        """All outputs for inputs by name.

        Raises:
            NotRunError: If there are none.
        """
        results: list[NDArray[Any]] = self._ask("run", feed)
        return results

    def _ask(self, *request: Any) -> Any:
        try:
            return self.worker.ask(*request, seconds=self.seconds)
        except LateError as error:
            raise NotRunError("late", str(error)) from error
        except CrashError as error:
            raise NotRunError("died", str(error)) from error
        except RuntimeError as error:
            raise NotRunError("refused", str(error)) from error


@contextlib.contextmanager
def heard() -> Iterator[Callable[[], str]]:
    """In the context, what C code writes on stdout and stderr is kept instead.

    Yields:
        Its last lines, once the context has ended.
    """
    with tempfile.TemporaryFile() as file:
        kept = [os.dup(descriptor) for descriptor in (1, 2)]
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        words: list[str] = []
        try:
            yield lambda: "; ".join(words[-3:]) or "it does not say why"
        finally:
            for descriptor, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
            file.seek(0)
            lines = file.read().decode(errors="replace").splitlines()
            words += [line.strip() for line in lines if line.strip()]


# --- in the other process ---------------------------------------------------------------------------


class File:
    """What the other process answers with: one file in one runtime."""

    runtime: Runtime
    path: str
    outputs: tuple[str, ...]

    def __init__(self) -> None:
        self.loaded: Run | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}

    def open(self, home: str, path: str, outputs: tuple[str, ...], folder: str) -> str:
        """Says what is to be run, and where temporary files go; the version is the answer."""
        tempfile.tempdir = folder
        self.runtime, self.path, self.outputs = runtime_at(home), path, outputs
        with said("its package cannot be imported"):
            return self.runtime.version()

    def run(self, feed: Feed) -> list[NDArray[Any]]:
        """All outputs; the file is loaded with the first ones, and anew where sizes are fixed.

        Raises:
            RuntimeError: If the runtime fails, with its words.
        """
        shapes = shapes_in(feed)
        if self.loaded is None or (self.runtime.fixed_sizes and shapes != self.shapes):
            with said("it does not load the file"):
                self.loaded = self.runtime.load(self.path, feed, self.outputs)
            self.shapes = shapes
        with said(f"it fails on inputs of shapes {shapes}"):
            return self.loaded(feed)


@contextlib.contextmanager
def said(what: str) -> Iterator[None]:
    """Turns whatever a runtime raises into its words in one line."""
    try:
        yield
    except Exception as error:
        words = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split()) or type(error).__name__
        if len(words) > _MOST_WORDS:
            words = f"{words[:_MOST_WORDS]} ..."
        raise RuntimeError(f"{what} ({words})") from error
