"""ONNX Runtime on the CPU: sessions, and running them. Needs no torch."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import weakref
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from deconvfix.errors import ExportError, RuntimeCrashError
from deconvfix.parity.worker import CrashError, Worker, make_session, rejection

__all__ = [
    "Declared",
    "Session",
    "is_isolated",
    "isolated",
    "open_session",
    "rejected_by_checker",
    "run_named",
]

_LIMIT: ContextVar[float | None] = ContextVar("limit", default=None)


@dataclass(frozen=True)
class Declared:
    """An input or output of a session.

    Attributes:
        name: Of the value.
        shape: A number, a name or None for each axis.
        type: As ONNX Runtime writes it, for example "tensor(float)".
    """

    name: str
    shape: list[int | str | None]
    type: str


class Session(Protocol):
    """What is used of a session, in this process (`onnxruntime.InferenceSession`) or in another one."""

    def get_inputs(self) -> Any:
        """Its inputs, as `Declared`."""
        ...

    def get_outputs(self) -> Any:
        """Its outputs, as `Declared`."""
        ...

    def run(self, output_names: None, feed: dict[str, NDArray[Any]]) -> list[Any]:
        """All outputs for inputs by name."""
        ...


@contextlib.contextmanager
def isolated(seconds: float) -> Iterator[None]:
    """In the context, ONNX Runtime runs in a process of its own.

    Args:
        seconds: That opening a file, or one run of it, may take.
    """
    token = _LIMIT.set(seconds)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def open_session(
    model: bytes | str, *, optimize: bool = True, threads: int | None = None
) -> Session:
    """An ONNX Runtime session on the CPU, quiet.

    Args:
        model: The file's content, or its path.
        optimize: Whether the graph is optimised as by default, or run node by node as it stands.
        threads: That it may use, for sessions that are timed, which are always in this process; None leaves
            it to ONNX Runtime.

    Raises:
        ExportError: If ONNX Runtime refuses the file.
        RuntimeCrashError: If it crashes or does not finish, where it is `isolated`.
    """
    seconds = _LIMIT.get()
    try:
        if seconds is None or threads is not None or os.name == "nt":
            session: Session = make_session(model, optimize=optimize, threads=threads)
            return session
        return _Remote(model, optimize, seconds)
    except CrashError as error:
        raise _crash(error, "it loads the file") from error
    except Exception as error:
        raise ExportError(
            "ONNX Runtime",
            f"it does not load the file ({error})",
            "the file must run to be verified",
            "Try another opset or dtype, or export without verification",
        ) from error


def run_named(session: Session, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """The outputs for inputs by name, in order.

    Raises:
        ExportError: If ONNX Runtime fails.
        RuntimeCrashError: If it crashes or does not finish, where it is `isolated`.
    """
    try:
        results: list[NDArray[Any]] = session.run(None, dict(feed))
    except CrashError as error:
        raise _crash(error, f"it runs on inputs of shapes {_shapes(feed)}") from error
    except Exception as error:
        raise ExportError(
            "ONNX Runtime",
            f"it fails on inputs of shapes {_shapes(feed)} ({error})",
            "the file must run wherever the model runs",
            "Make only those axes dynamic that the model allows",
        ) from error
    return results


def rejected_by_checker(path: Path, *, full: bool) -> str | None:
    """Why onnx.checker rejects a file; None if it does not.

    Args:
        path: The file.
        full: Whether shapes are inferred, too.

    Raises:
        RuntimeCrashError: If it crashes or does not finish, where it is `isolated`.
    """
    seconds = _LIMIT.get()
    if seconds is None or os.name == "nt":
        return rejection(str(path), full=full)
    try:
        reason: str | None = _worker().ask("check", str(path), full, seconds=seconds)
    except CrashError as error:
        raise RuntimeCrashError(
            "onnx.checker",
            f"while it infers the shapes of the file, {error}",
            "a valid ONNX file is needed",
            "Export the file again; if it is not your own, do not trust it",
        ) from error
    return reason


def is_isolated() -> bool:
    """Whether files may be anybody's; see `isolated`."""
    return _LIMIT.get() is not None


def _shapes(feed: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in feed.items()}


def _crash(error: CrashError, when: str) -> RuntimeCrashError:
    return RuntimeCrashError(
        "ONNX Runtime",
        f"while {when}, {error}",
        "the model must run to be verified",
        "Give smaller inputs, or more time (--timeout); if the file is not your own, do not trust it",
    )


# --- sessions in another process ----------------------------------------------------------------------

_NUMBERS = itertools.count()
# One process for all sessions; it is started when the first one is opened, and anew after a crash.
_workers: list[Worker] = []


def _worker() -> Worker:
    if not _workers or not _workers[0].alive:
        _workers[:] = [Worker()]
        atexit.register(_workers[0].end)
    return _workers[0]


class _Remote:
    """A session in the other process."""

    def __init__(self, model: bytes | str, optimize: bool, seconds: float) -> None:
        self.seconds = seconds
        self.number = next(_NUMBERS)
        self.worker = _worker()
        declared = self.worker.ask("open", self.number, model, optimize, seconds=seconds)
        self.inputs, self.outputs = ([Declared(*value) for value in values] for values in declared)
        weakref.finalize(self, _close, self.worker, self.number)

    def get_inputs(self) -> list[Declared]:
        return self.inputs

    def get_outputs(self) -> list[Declared]:
        return self.outputs

    def run(self, output_names: None, feed: dict[str, NDArray[Any]]) -> list[Any]:
        if not self.worker.alive:
            raise CrashError("its process has ended before")
        results: list[Any] = self.worker.ask("run", self.number, feed, seconds=self.seconds)
        return results


def _close(worker: Worker, number: int) -> None:
    if worker.alive:
        with contextlib.suppress(CrashError, RuntimeError):
            worker.ask("close", number, seconds=60.0)
