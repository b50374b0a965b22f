"""ONNX files timed against each other in one runtime, on the same inputs and in turns.

All files are loaded into one process, which runs them in rotating order: what slows the machine slows all of
them. A file that ends the process is left out, and the others start anew. After a few rounds all are loaded
again, because where a file's buffers lie in memory makes it a little faster or slower for as long as it is
loaded; `deconvfix.runtimes.verdict` says what the times tell.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deconvfix.errors import OptionError
from deconvfix.files import scratch_folder
from deconvfix.frontends.onnx import file as onnx_file
from deconvfix.parity.worker import CrashError, Worker
from deconvfix.runtimes.base import Clock, Feed, shapes_in
from deconvfix.runtimes.process import said
from deconvfix.runtimes.registry import RUNTIMES, runtime_at, runtime_named
from deconvfix.runtimes.verdict import LOOKS, compare

__all__ = ["Clocks", "Timed", "time_in", "title_of", "version_of"]

# Rounds between two loads; where a run takes longer than `_SLOW` seconds, one, and no run to fill caches.
_ROUNDS, _SLOW = 4, 0.2
# A sample is as many runs as take this long: reading a clock and asking for it cost some microseconds.
_SAMPLE = 4e-3
# Loads up to the first look at them may take so many times the seconds that are given.
_PATIENCE = 4
# Seconds that importing a runtime's package may take, at least.
_IMPORT = 60.0


@dataclass(frozen=True)
class Timed:
    """What was measured of a file.

    Attributes:
        name: Its path.
        times: Seconds of one run, (loads, rounds): of the CPU on one thread, otherwise of the clock. A file
            that is clearly slower than the first one has fewer loads, one that does not run has none.
        words: Why it does not run; empty if it does.
    """

    name: str
    times: NDArray[np.float64]
    words: str = ""


def time_in(
    runtime: str,
    files: Sequence[Path],
    feed: Feed,
    *,
    threads: int = 1,
    seconds: float = 20.0,
    repeats: int | None = None,
    limit: float = 600.0,
) -> list[Timed]:
    """Times ONNX files in a runtime, the first one as the baseline of all others.

    Without `repeats` it stops after the first of `verdict.LOOKS` loads at which every verdict is decided
    (`Verdict.decided`), and leaves out at each of them what is clearly slower than the first file.

    Args:
        runtime: Its name; see `registry.RUNTIMES`.
        files: What is timed.
        feed: Inputs by name, the same for all.
        threads: That each may use.
        seconds: After which no file is loaded again, without `repeats`. What a first verdict needs may take
            four times as long, as on a busy machine.
        repeats: Loads of each file.
        limit: That loading a file, or one sample of its runs, may take, in seconds.

    Returns:
        One for each file, in their order.

    Raises:
        OptionError: If there is no such runtime, or it is not installed.
        DeconvfixError: If a file cannot be read.
    """
    _check(runtime)
    outputs = [
        tuple(str(value.name) for value in onnx_file.read(path).model.graph.outputs)
        for path in files
    ]
    failed: dict[int, str] = {}
    while True:
        with _Process(RUNTIMES[runtime], threads, feed, limit) as process:
            for number, path in enumerate(files):
                if number not in failed:
                    process.files[number] = (str(path), outputs[number])
            try:
                times = _taken(process, seconds, repeats)
            except _FailedError as error:
                # A process that a file has ended, or left in an unknown state, measures nothing more.
                failed[error.number] = str(error)
                continue
        none = np.empty((0, _ROUNDS))
        return [
            Timed(
                str(path),
                np.array(times[number]) if number in times else none,
                failed.get(number, ""),
            )
            for number, path in enumerate(files)
        ]


def version_of(runtime: str) -> str:
    """The version of a runtime, which is imported in another process.

    Raises:
        OptionError: If there is no such runtime, or it is not installed.
    """
    _check(runtime)
    with _Process(RUNTIMES[runtime], 1, {}, 600.0) as process:
        return process.version


def title_of(runtime: str) -> str:
    """Its name and version, for people; see `version_of`."""
    version = version_of(runtime)
    return f"{runtime_at(RUNTIMES[runtime]).title} {version}".rstrip()


def _check(runtime: str) -> None:
    if os.name == "nt":
        raise OptionError(
            "runtime",
            "this is Windows",
            "runtimes run in processes that are started as on Linux and macOS",
            "Use WSL",
        )
    runtime_named(runtime)


def _taken(process: _Process, seconds: float, repeats: int | None) -> dict[int, list[list[float]]]:
    """Times by file, load and round."""
    times: dict[int, list[list[float]]] = {number: [] for number in process.files}
    begun, turn = time.monotonic(), 0
    for load in range(1, 1 + (repeats or LOOKS[-1])):
        active = list(process.files)
        process.unload()
        slowest = max((process.load(number) for number in _turned(active, load)), default=0.0)
        rounds: dict[int, list[float]] = {number: [] for number in active}
        fast = slowest < _SLOW
        for _ in range(_ROUNDS if fast else 1):
            for number in _turned(active, turn):
                rounds[number].append(process.sample(number, fast))
            turn += 1
        turn += 1  # the first after a load is another one, too
        for number in active:
            times[number].append(rounds[number])
        if repeats is None and load in LOOKS and _decided(process, times):
            break
        patience = seconds if load >= LOOKS[0] else _PATIENCE * seconds
        if repeats is None and time.monotonic() - begun > patience:
            break
    return times


def _decided(process: _Process, times: dict[int, list[list[float]]]) -> bool:
    """Whether all verdicts are; what is clearly slower than the baseline is not run any more."""
    if 0 not in process.files:
        return False
    done = True
    for number in [number for number in process.files if number]:
        verdict = compare(np.array(times[0]), np.array(times[number]))
        done = done and verdict.decided
        if verdict.decided and verdict.slower:
            process.files.pop(number)
    return done


def _turned(numbers: Sequence[int], turn: int) -> list[int]:
    """All numbers, another one first in each turn, and backwards in every other row of turns.

    So each stands at each place, and none always comes after the same one.
    """
    start = turn % max(len(numbers), 1)
    order = [*numbers[start:], *numbers[:start]]
    return order[::-1] if turn // max(len(numbers), 1) % 2 else order


class _FailedError(Exception):
    """A file does not run; the message says why."""

    def __init__(self, number: int, words: str) -> None:
        super().__init__(words)
        self.number = number


class _Process:
    """The other process, seen from this one; a context that ends it."""

    def __init__(self, home: str, threads: int, feed: Feed, limit: float) -> None:
        self.home, self.threads, self.feed, self.limit = home, threads, feed, limit
        self.files: dict[int, tuple[str, tuple[str, ...]]] = {}
        self.counts: dict[int, int] = {}

    def __enter__(self) -> _Process:
        with contextlib.ExitStack() as ends:
            folder = ends.enter_context(scratch_folder())
            self.worker = Worker(f"{__name__}:Clocks")
            ends.callback(self.worker.end)
            request = ("open", self.home, self.threads, self.feed, str(folder))
            try:
                self.version: str = self.worker.ask(*request, seconds=max(self.limit, _IMPORT))
            except (CrashError, RuntimeError) as error:
                raise OptionError(
                    "runtime", str(error), "files run with its package", "Install it again"
                ) from error
            self.ends = ends.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.ends.close()

    def unload(self) -> None:
        """Forgets all files, so that where they lie in memory depends on the order of loading alone."""
        try:
            self.worker.ask("unload", seconds=self.limit)
        except (CrashError, RuntimeError) as error:
            raise _FailedError(next(iter(self.files)), str(error)) from error

    def load(self, number: int) -> float:
        """Loads a file anew and runs it, which does not count; the seconds of one run."""
        once = self._ask(number, "load", *self.files[number])
        self.counts.setdefault(number, max(1, math.ceil(_SAMPLE / max(once, 1e-6))))
        return once

    def sample(self, number: int, warm: bool) -> float:
        """The seconds of one run."""
        return self._ask(number, "sample", self.counts[number], warm) / self.counts[number]

    def _ask(self, number: int, request: str, *arguments: object) -> float:
        try:
            answer: float = self.worker.ask(request, number, *arguments, seconds=self.limit)
        except (CrashError, RuntimeError) as error:
            raise _FailedError(number, str(error)) from error
        return answer


# --- in the other process ---------------------------------------------------------------------------


class Clocks:
    """What the other process answers with: files in one runtime, loaded side by side."""

    def open(self, home: str, threads: int, feed: Feed, folder: str) -> str:
        """Says where everything is run, on what, and where temporary files go; the version is the answer."""
        tempfile.tempdir = folder
        self.runtime, self.threads, self.feed = runtime_at(home), threads, feed
        self.clocks: dict[int, Clock] = {}
        with said("its package cannot be imported"):
            return self.runtime.version()

    def unload(self) -> None:
        """Forgets all files."""
        self.clocks.clear()

    def load(self, number: int, path: str, outputs: tuple[str, ...]) -> float:
        """Loads a file, and runs it until caches are full and the runtime has planned its memory.

        Raises:
            RuntimeError: If the runtime fails, with its words.
        """
        with said("it does not load the file"):
            clock = self.runtime.clock(path, self.feed, outputs, self.threads)
        self.clocks[number] = clock
        with said(f"it fails on inputs of shapes {shapes_in(self.feed)}"):
            clock(1)
            return clock(1)

    def sample(self, number: int, runs: int, warm: bool) -> float:
        """The seconds that a few runs take together; `warm` runs it once before, which does not count.

        After another file, its own weights are no longer in the caches of the CPU.
        """
        with said(f"it fails on inputs of shapes {shapes_in(self.feed)}"):
            if warm:
                self.clocks[number](1)
            return self.clocks[number](runs)
