"""Cycle spinning: outputs without a grid, from runs alone.

The mean over shifts of the input, each output shifted back, has nothing that is locked to the phase of the
layers, and a part of the other errors averages out as well (Coifman and Donoho 1995, "Translation-invariant
de-noising"). It exists where an input and an output correspond pixel by pixel, at any ratio of their sizes.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.errors import DeconvfixError
from deconvfix.grid.periods import Period

__all__ = ["cycle_spun", "spread_shifts"]


def cycle_spun(
    run: Callable[[NDArray[Any]], Sequence[NDArray[Any]]],
    x: NDArray[Any],
    periods: Mapping[int, Period],
    most: int,
    seed: int,
) -> list[NDArray[Any]] | None:
    """The mean of the outputs over shifts of the input, each shifted back.

    Args:
        run: Gives all outputs for an input of any spatial size.
        x: The input, (N, C, *spatial); what lies beside it is continued by reflection.
        periods: Of the grid in each output, in its pixels per axis, by the number of the output.
        most: How many shifts are taken; all, if there are no more.
        seed: Of their choice.

    Returns:
        None where an output does not correspond to the input, or no shift of the input moves it within a
        period, or the model does not run on inputs that are a bit larger.
    """
    sizes = x.shape[2:]
    try:
        outputs = run(x)
        ratios = [_ratio(sizes, output.shape) for output in outputs]
        if set(periods) != set(range(len(outputs))) or not all(ratios):
            return None
        ways = [ratio for ratio in ratios if ratio is not None]
        # The input moves by so many pixels at once that all outputs move by whole ones.
        step = math.lcm(*(ratio.denominator for ratio in ways))
        moves = [int(ratio * step) for ratio in ways]
        # So many of these steps bring each output to every phase that it can get to.
        counts = [
            math.lcm(
                *(periods[i][axis] // math.gcd(periods[i][axis], n) for i, n in enumerate(moves))
            )
            for axis in range(len(sizes))
        ]
        if max(counts) < 2 or any(n * step >= size for n, size in zip(counts, sizes, strict=True)):
            return None
        around = [(0, 0), (0, 0), *((n * step, n * step) for n in counts)]
        wide = np.pad(x, around, mode="reflect")
        chosen = spread_shifts(counts, most, seed)
        totals: list[NDArray[Any]] = [np.zeros(output.shape) for output in outputs]
        for shift in chosen:
            window: Any = tuple(
                slice(begin * step, begin * step + size + n * step)
                for begin, n, size in zip(shift, counts, sizes, strict=True)
            )
            moved = run(np.ascontiguousarray(wide[(..., *window)]))
            for total, output, n_out in zip(totals, moved, moves, strict=True):
                back: Any = tuple(
                    slice(n_out * (n - begin), n_out * (n - begin) + have)
                    for begin, n, have in zip(shift, counts, total.shape[2:], strict=True)
                )
                if output[(..., *back)].shape != total.shape:
                    return None
                total += output[(..., *back)]
    except DeconvfixError:
        return None  # sizes that it does not take
    return [
        (total / len(chosen)).astype(output.dtype)
        for total, output in zip(totals, outputs, strict=True)
    ]


def spread_shifts(counts: Sequence[int], most: int, seed: int) -> list[tuple[int, ...]]:
    """Shifts, all or at most so many, that cover the phases of the shortest grids evenly.

    Where there are too many, an axis keeps one shift for each residue of a divisor of their number: what
    repeats with the divisor averages out as before, and the longer grids as far as chance allows. The grid of
    the last layer has the shortest period, and is the strongest as a rule.
    """
    residues = list(counts)
    while math.prod(residues) > most and max(residues) > 1:
        axis = residues.index(max(residues))
        n = residues[axis]
        residues[axis] = n // next(p for p in range(2, n + 1) if n % p == 0)
    draw = random.Random(seed)
    return [
        tuple(
            residue + have * draw.randrange(count // have)
            for residue, have, count in zip(place, residues, counts, strict=True)
        )
        for place in itertools.product(*map(range, residues))
    ]


def _ratio(sizes: Sequence[int], shape: Sequence[int]) -> Fraction | None:
    """Output pixels for an input pixel, the same on all axes; None where they do not correspond."""
    if len(shape) != len(sizes) + 2 or not min(sizes) or not min(shape):
        return None
    ratios = {Fraction(have, size) for have, size in zip(shape[2:], sizes, strict=True)}
    return ratios.pop() if len(ratios) == 1 else None
