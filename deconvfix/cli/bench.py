"""Times two models that do the same job, in turns and in one process, so that a busy machine slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.errors import OptionError
from deconvfix.parity.runtime import run_named
from deconvfix.runtimes.verdict import Verdict, compare

__all__ = [
    "FORMAT",
    "BenchReport",
    "Runner",
    "Timing",
    "bench",
    "checked",
    "report_of",
    "session_runner",
]

FORMAT = "deconvfix.bench/1"
# Runs of each that do not count: caches fill, and runtimes plan their memory.
_WARM_UP = 2
_REPEATS = 20


@dataclass(frozen=True)
class Runner:
    """A model with its inputs, ready to run.

    Attributes:
        runtime: Where it runs, in words.
        run: Runs it once.
        inputs: The shapes of its inputs, by name or number.
    """

    runtime: str
    run: Callable[[], object]
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)


def session_runner(session: Any, feed: Mapping[str, NDArray[Any]]) -> Runner:
    """A session of ONNX Runtime (`parity.runtime.open_session`) on inputs by name.

    Raises:
        ExportError: If ONNX Runtime fails on them.
    """
    run_named(session, feed)  # its errors say what is wrong
    shapes = {name: tuple(array.shape) for name, array in feed.items()}
    return Runner("ONNX Runtime", partial(session.run, None, dict(feed)), shapes)


@dataclass(frozen=True)
class Timing:
    """Of one of the two, in milliseconds.

    Attributes:
        runtime: Where it ran.
        median_ms: Of all runs.
        quartiles_ms: The range of the middle half of them.
    """

    runtime: str
    median_ms: float
    quartiles_ms: tuple[float, float]


@dataclass(frozen=True)
class BenchReport:
    """Two models timed.

    Attributes:
        before: The original.
        after: The converted model.
        ratio: Median time before over that after: above 1 the converted model is faster.
        ratio_quartiles: The middle half of the ratios of runs that followed each other; where it is
            wide, the machine was busy.
        repeats: Samples of each: runs, or in a runtime means of a few.
        threads: That each may use.
        inputs: The shapes that it was timed at, by name or number.
        verdict: What the times tell, as an interval that knows their noise.
    """

    before: Timing
    after: Timing
    ratio: float
    ratio_quartiles: tuple[float, float]
    repeats: int
    threads: int
    inputs: dict[str, tuple[int, ...]]
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {"format": FORMAT, **asdict(self), "verdict": self.verdict.to_dict()}


def bench(
    before: Runner, after: Runner, *, repeats: int | None = None, threads: int
) -> BenchReport:
    """Runs two models in turns.

    Args:
        before: The original.
        after: The converted model.
        repeats: Runs of each that count, 2 or more; 20 by default.
        threads: What the runners were made for; for the report.

    Raises:
        OptionError: If there are too few runs.
    """
    repeats = checked(repeats, least=2) or _REPEATS
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_WARM_UP + repeats):
        for runner, measured in zip((before, after), times, strict=True):
            started = time.perf_counter()
            runner.run()
            measured.append(1e3 * (time.perf_counter() - started))
    old, new = (np.array(run[_WARM_UP:]) for run in times)
    return report_of((before.runtime, after.runtime), (old, new), before.inputs, threads)


def report_of(
    runtimes: tuple[str, str],
    times: tuple[NDArray[Any], NDArray[Any]],
    inputs: dict[str, tuple[int, ...]],
    threads: int,
) -> BenchReport:
    """What times tell.

    Args:
        runtimes: Where each ran.
        times: Milliseconds of each, (runs,) or (loads, runs); those with the same index were taken together.
        inputs: The shapes of the inputs, by name or number.
        threads: That each could use.
    """
    verdict = compare(*times)
    old, new = (own[: min(map(len, times))].reshape(-1).tolist() for own in times)
    one, other = (
        Timing(runtime, statistics.median(own), _quartiles(own))
        for runtime, own in zip(runtimes, (old, new), strict=True)
    )
    ratios = _quartiles([before / after for before, after in zip(old, new, strict=True)])
    ratio = one.median_ms / other.median_ms
    return BenchReport(one, other, ratio, ratios, len(old), threads, inputs, verdict)


def checked(repeats: int | None, *, least: int) -> int | None:
    """A number of runs, if there is one.

    Raises:
        OptionError: If it is too small.
    """
    if repeats is not None and repeats < least:
        raise OptionError(
            "repeats",
            f"the value is {repeats}",
            f"{least} or more runs are needed to see how much they differ",
            "Correct the value, or omit it",
        )
    return repeats


def _quartiles(values: list[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
