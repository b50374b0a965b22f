"""Times two models that do the same job, in turns and in one process, so that a busy machine slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from deconvfix.errors import OptionError
from deconvfix.parity.runtime import run_named

__all__ = ["FORMAT", "BenchReport", "Runner", "Timing", "bench", "session_runner"]

FORMAT = "deconvfix.bench/1"
# Runs of each that do not count: caches fill, and runtimes plan their memory.
_WARM_UP = 2


@dataclass(frozen=True)
class Runner:
    """A model with its inputs, ready to run.

    Attributes:
        runtime: Where it runs, in words.
        run: Runs it once.
    """

    runtime: str
    run: Callable[[], object]


def session_runner(session: Any, feed: Mapping[str, NDArray[Any]]) -> Runner:
    """A session of ONNX Runtime (`parity.runtime.open_session`) on inputs by name.

    Raises:
        ExportError: If ONNX Runtime fails on them.
    """
    run_named(session, feed)  # its errors say what is wrong
    return Runner("ONNX Runtime", partial(session.run, None, dict(feed)))


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
        repeats: Runs of each.
        threads: That each may use.
    """

    before: Timing
    after: Timing
    ratio: float
    ratio_quartiles: tuple[float, float]
    repeats: int
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {"format": FORMAT, **asdict(self)}


def bench(before: Runner, after: Runner, *, repeats: int, threads: int) -> BenchReport:
    """Runs two models in turns.

    Args:
        before: The original.
        after: The converted model.
        repeats: Runs of each that count, 2 or more.
        threads: What the runners were made for; for the report.

    Raises:
        OptionError: If there are too few runs.
    """
    if repeats < 2:
        raise OptionError(
            "repeats",
            f"the value is {repeats}",
            "2 or more runs are needed to see how much they differ",
            "Correct the value, or omit it",
        )
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_WARM_UP + repeats):
        for runner, measured in zip((before, after), times, strict=True):
            started = time.perf_counter()
            runner.run()
            measured.append(1e3 * (time.perf_counter() - started))
    old, new = (run[_WARM_UP:] for run in times)
    return BenchReport(
        _timing(before, old),
        _timing(after, new),
        statistics.median(old) / statistics.median(new),
        _quartiles([one / other for one, other in zip(old, new, strict=True)]),
        repeats,
        threads,
    )


def _timing(runner: Runner, times: list[float]) -> Timing:
    return Timing(runner.runtime, statistics.median(times), _quartiles(times))


def _quartiles(values: list[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
