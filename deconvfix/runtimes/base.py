"""What a runtime is: a class that says what it needs, and loads a file."""

from __future__ import annotations

import importlib.util
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from deconvfix.parity.worker import prepare

__all__ = ["Clock", "Feed", "Run", "Runtime", "clock_of", "program", "shapes_in"]

Feed = dict[str, NDArray[Any]]
# Inputs by name to all outputs, in the order of the file.
Run = Callable[[Feed], list[NDArray[Any]]]
# A number of runs to the seconds that they take together.
Clock = Callable[[int], float]


class Runtime(ABC):
    """A runtime on the CPU, in float32. Its package is imported by `version`, `load` and `clock` alone.

    Attributes:
        title: Its name, for people.
        modules: The packages that it needs, by the names under which they are imported.
        install: The command that installs them.
        fixed_sizes: Whether a file is loaded anew for other sizes of its inputs.
        batches: Whether it takes more than one sample.
    """

    title: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    install: ClassVar[str]
    fixed_sizes: ClassVar[bool] = False
    batches: ClassVar[bool] = True

    def missing(self) -> str | None:
        """What is not installed of what it needs, in words; None if nothing is."""
        for module in self.modules:
            # The package around it may be missing too, which is an error there.
            outer = module.partition(".")[0]
            if not all(map(importlib.util.find_spec, dict.fromkeys((outer, module)))):
                return f"the package {module!r} is not installed"
        return None

    @abstractmethod
    def version(self) -> str:
        """Of the runtime that is installed."""

    @abstractmethod
    def load(
        self, path: str, example: Feed, outputs: tuple[str, ...], threads: int | None = None
    ) -> Run:
        """Loads an ONNX file.

        Args:
            path: The file.
            example: Inputs as they will be given: their names, shapes and dtypes.
            outputs: The names of the outputs.
            threads: That a run may use; None leaves it to the runtime.

        Raises:
            Exception: Whatever the runtime says; the words are for people.
        """

    def clock(self, path: str, feed: Feed, outputs: tuple[str, ...], threads: int) -> Clock:
        """Loads an ONNX file to be timed; like `load`.

        Overridden where `load` does more in a run than the runtime itself, such as copying the outputs.
        """
        run = self.load(path, feed, outputs, threads)
        return clock_of(lambda: run(feed), threads)


def clock_of(run: Callable[[], object], threads: int) -> Clock:
    """Times a function: with one thread the time of the CPU, which other processes hardly change."""
    read = time.process_time if threads == 1 else time.perf_counter

    def clock(runs: int) -> float:
        started = read()
        for _ in range(runs):
            run()
        return read() - started

    return clock


def shapes_in(feed: Feed) -> dict[str, tuple[int, ...]]:
    """The shapes of inputs, by name."""
    return {name: tuple(array.shape) for name, array in feed.items()}


def program(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program in a folder; it ends with this process."""
    return subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        preexec_fn=prepare,
    )
