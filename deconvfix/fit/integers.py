"""Kernels rounded to integers, so that the sums which must be equal are equal in integers.

A kernel has no grid on constants iff the sums of its phases are equal. Rounding each tap on its own moves
each sum by up to half a unit for each of its taps, and brings a grid back. Here the sums are rounded first,

    T_f = round(mean of all sums) + round(sum_f - mean)

which is the same number for equal sums, and then the taps of each phase become those integers with the sum
T_f that lie closest to them: from the nearest integers on, one unit after the other where it costs least.
The cost of a unit is convex for each tap, so the greedy choice is the best one (largest remainders).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["rounded_with_sums"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


def rounded_with_sums(
    taps: Array, phases: Sequence[NDArray[np.int64]], low: Integers, high: Integers
) -> Integers:
    """The integers closest to the taps of each kernel, with sums of the phases that are rounded alike.

    Args:
        taps: (kernels, taps), in units of the integers.
        phases: For each phase the positions of its taps; no tap belongs to two of them.
        low: Smallest integer for each kernel, (kernels,).
        high: Largest one.

    Returns:
        (kernels, taps). Where the sums of the phases are equal and no tap is out of its range, they are
        equal in integers, and each tap is off by less than one unit.

    Two phases, of two taps and of one, with the sum 1.6. Rounding each tap gives the sums 2 and 2 for the
    first kernel, by chance, and 1 and 2 for the second:

    >>> taps, phases = np.array([[0.7, 0.9, 1.6], [0.45, 1.15, 1.6]]), [np.array([0, 1]), np.array([2])]
    >>> rounded_with_sums(taps, phases, np.array([-9, -9]), np.array([9, 9]))
    array([[1, 1, 2],
           [1, 1, 2]])
    """
    low, high = low[:, None], high[:, None]
    rounded = np.clip(np.rint(taps), low, high).astype(np.int64)
    sums = np.stack([taps[:, phase].sum(1) for phase in phases], 1)
    mean = sums.mean(1, keepdims=True)
    targets = (np.rint(mean) + np.rint(sums - mean)).astype(np.int64)
    for phase, target in zip(phases, targets.T, strict=True):
        wanted = np.clip(target, len(phase) * low[:, 0], len(phase) * high[:, 0])
        rounded[:, phase] = _with_sum(taps[:, phase], rounded[:, phase], wanted, low, high)
    return rounded


def _with_sum(
    taps: Array, rounded: Integers, wanted: Integers, low: Integers, high: Integers
) -> Integers:
    """Integers (kernels, taps) moved unit by unit until each kernel has its sum, (kernels,)."""
    rounded = rounded.copy()
    while True:
        lacking = wanted - rounded.sum(1)
        rows = np.flatnonzero(lacking)
        if not rows.size:
            return rounded
        unit = np.sign(lacking[rows])[:, None]
        moved = rounded[rows] + unit
        gain = unit * (taps[rows] - rounded[rows])
        # A tap at the end of the range stays there, and the next one moves.
        gain = np.where((moved >= low[rows]) & (moved <= high[rows]), gain, -np.inf)
        rounded[rows, gain.argmax(1)] += unit[:, 0]
