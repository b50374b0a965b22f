"""Whether one of two models is faster, from times that were taken in turns: a ratio, and how sure it is.

Each load of both files into a process gives one number, the median of log(baseline / candidate) over its
rounds: what disturbs a machine for a while disturbs both, and cancels in a round. The rounds of one load are
no independent evidence, as where its buffers lie in memory stays the same (Kalibera and Jones 2013, "Rigorous
benchmarking in reasonable time", ISMM: repeat at the highest level that varies); the loads are.

If the times of both have errors of one distribution, but for a factor, these numbers are symmetric about the
logarithm of the true ratio, whatever the distribution. That is all that the interval of Wilcoxon's signed
ranks needs: its ends are the k-th smallest and the k-th largest mean of two numbers (a number with itself
included), and the estimate is the median of these means (Hodges and Lehmann 1963, Ann. Math. Stat. 34;
Hollander, Wolfe and Chicken 2014, "Nonparametric Statistical Methods", 3.2 and 3.3). It is exact for every
count, and no single disturbed load moves it far.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONFIDENCE", "LOOKS", "NO_DIFFERENCE", "Verdict", "compare"]

# Numbers of loads after which a measurement may stop. One interval misses the truth in 1 of 100 cases, so all
# five together in at most 5 (the union bound): stopping where it looks good is paid for.
LOOKS = (8, 12, 16, 24, 32)
CONFIDENCE = 0.99
NO_DIFFERENCE = "no difference measurable"
# A gain or loss below this is not worth a choice, and an interval narrower than this needs no more runs.
_WORTH, _NARROW = 0.03, 0.02


@dataclass(frozen=True)
class Verdict:
    """A ratio of times, and how far it is known.

    Attributes:
        ratio: Time of the baseline over that of the candidate: above 1 the candidate is faster.
        low: Lower end of the interval that holds the true ratio.
        high: Upper end; infinite, and the lower one 0, if there were too few runs to say anything.
        confidence: How often such an interval holds the true ratio.
        loads: Independent measurements that it comes from.
    """

    ratio: float
    low: float
    high: float
    confidence: float
    loads: int

    @property
    def faster(self) -> bool:
        """Whether the candidate is, with confidence."""
        return self.low > 1

    @property
    def slower(self) -> bool:
        """Whether the candidate is, with confidence."""
        return self.high < 1

    @property
    def decided(self) -> bool:
        """Whether more runs would not change what is to be done."""
        worth = self.low > 1 + _WORTH or self.high < 1 - _WORTH
        return worth or self.high - self.low < _NARROW

    def words(self) -> str:
        """For people: "faster by 12 to 18 %", as runs in the same time, or "no difference measurable"."""
        if not (self.faster or self.slower):
            return NO_DIFFERENCE
        if self.low >= 2 or self.high <= 0.5:
            return f"{_span(self.low, self.high)} times as fast"
        if self.faster:
            return f"faster by {_span(100 * (self.low - 1), 100 * (self.high - 1))} %"
        return f"slower by {_span(100 * (1 - self.high), 100 * (1 - self.low))} %"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; an unknown end is null."""
        known = math.isfinite(self.high)
        ends = {"low": self.low if known else None, "high": self.high if known else None}
        return {**asdict(self), **ends, "words": self.words()}


def compare(
    baseline: NDArray[Any], candidate: NDArray[Any], confidence: float = CONFIDENCE
) -> Verdict:
    """Compares times that were taken in turns.

    Args:
        baseline: Seconds, (loads, rounds) or (loads,): times with the same index were taken together.
        candidate: Those of the other one; the loads that both have are compared.
        confidence: How often the interval is to hold the true ratio.

    Raises:
        ValueError: If there are none, or their rounds differ.
    """
    loads = min(len(baseline), len(candidate))
    one, other = (np.asarray(times, np.float64)[:loads] for times in (baseline, candidate))
    if loads == 0 or one.shape != other.shape:
        raise ValueError(f"times of shapes {one.shape} and {other.shape} cannot be compared")
    logs = np.log(one) - np.log(other)
    values = np.median(logs, axis=1) if logs.ndim == 2 else logs
    rows, columns = np.triu_indices(loads)
    means = np.sort((values[rows] + values[columns]) / 2)
    ratio = math.exp(float(np.median(means)))
    rank = _rank(loads, (1 - confidence) / 2)
    if rank == 0:
        return Verdict(ratio, 0.0, math.inf, confidence, loads)
    low, high = (math.exp(float(end)) for end in (means[rank - 1], means[-rank]))
    return Verdict(ratio, low, high, confidence, loads)


def _rank(count: int, tail: float) -> int:
    """The largest k with P(signed ranks of `count` numbers sum to less than k) <= tail; 0 if none."""
    chances = np.ones(1)
    for rank in range(1, count + 1):
        # Each rank counts or does not, with equal chances.
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    return int(np.searchsorted(np.cumsum(chances), tail, side="right"))


def _span(low: float, high: float) -> str:
    """A range in words, or one number where both ends are the same in two digits."""
    digits = 1 if low < 1 else 2
    first, last = (_rounded(number, digits) for number in (low, high))
    return first if first == last else f"{first} to {last}"


def _rounded(number: float, digits: int) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.{digits}g}"
