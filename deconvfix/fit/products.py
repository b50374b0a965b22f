"""The products that second moments are sums of; the same lines for arrays of NumPy and tensors of torch.

H_f of `fit.regression` holds for each pair of taps (a, b) of phase f the sum, over the pixels t of the phase,

    u_a u_b^T = e(start_a + t) e(start_b + t)^T          e: the extended input

The taps come in only through their distance start_b - start_a and through the window start_a + t. There are
few distances (13 for the 85 pairs of taps of a 5 x 5 kernel with stride 2), and the windows differ by some
pixels at the border. So the products are summed once for each distance, over the cells into which the edges
of all windows cut the map, and each pair of taps adds up the cells of its window.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any, NamedTuple

from deconvfix.fit.design import Design, Phase

__all__ = ["Waiting", "add_products", "samples_at_once"]

# Elements of the extended input, and of pieces of it, that are in memory at once (32 MiB in float64).
_MOST_ELEMENTS = 2**22


class Waiting:
    """Samples of one shape that wait for others: products of many rows take less time than many products.

    Args:
        join: Joins a list of arrays along the first axis.
    """

    def __init__(self, join: Callable[[list[Any]], Any]) -> None:
        self._join = join
        self._pairs: list[tuple[Any, Any]] = []

    def put(self, x: Any, y: Any) -> list[tuple[Any, Any]]:
        """Inputs and outputs, (N, ..) each: they wait; returned is what need not wait longer."""
        ready = []
        if any(
            one.shape[1:] != other.shape[1:]
            for one, other in zip((x, y), self._pairs[0] if self._pairs else (x, y), strict=True)
        ):
            ready = self.take()
        self._pairs.append((x, y))
        if sum(math.prod(each.shape) for pair in self._pairs for each in pair) >= _MOST_ELEMENTS:
            ready += self.take()
        return ready

    def take(self) -> list[tuple[Any, Any]]:
        """All that waits, joined; an empty list if there is nothing."""
        pairs, self._pairs = self._pairs, []
        return [tuple(map(self._join, map(list, zip(*pairs, strict=True))))] if pairs else []


def samples_at_once(design: Design, x: Sequence[int], y: Sequence[int]) -> int:
    """Samples, of inputs x and outputs y of these shapes (N, C, *L), that are in memory at once."""
    # The extended input may be upsampled to the output's size.
    pixels = max(math.prod(x[2:]), math.prod(y[2:]))
    return max(1, _MOST_ELEMENTS // (pixels * (design.copies * x[1] + y[1])))


# (begin, end) on each axis.
_Window = tuple[tuple[int, int], ...]


class _Pair(NamedTuple):
    """Two taps of a phase, and the window of the first."""

    phase: int
    taps: tuple[int, int]
    window: _Window


class _Distance(NamedTuple):
    """Two copies of the channels, and the way from a pixel of the first to one of the second."""

    copies: tuple[int, int]
    pixels: tuple[int, ...]


def add_products(sums: Sequence[Any], phases: Sequence[Phase], seen: Any, wanted: Any) -> None:
    """Adds z^T z, z = (u, 1, y), of some samples.

    Args:
        sums: H_f for each phase, (groups, size, size), in float64; changed in place.
        phases: The phases of a form's `Design`.
        seen: The extended input, (copies, groups, N, *L, C_in / groups), in float64.
        wanted: Ones and the outputs, (groups, N, *L_out, 1 + C_out / groups), in float64.
    """
    channels = seen.shape[-1]
    outputs = []
    for phase in phases:
        grid = zip(phase.first, phase.step, strict=True)
        outputs.append(wanted[(slice(None), slice(None), *(slice(f, None, s) for f, s in grid))])
    counts = [tuple(v.shape[2:-1]) for v in outputs]
    _add_outputs(sums, phases, seen, outputs)
    for distance, pairs in _pairs(phases, counts).items():
        boxes = _boxes(distance, pairs, seen)
        for pair in pairs:
            h = sums[pair.phase]
            # Features are ordered (tap, input channel): what is added lies together.
            one, other = (slice(tap * channels, (tap + 1) * channels) for tap in pair.taps)
            h[:, one, other] += boxes[pair.window]
            if one != other:
                h[:, other, one] += boxes[pair.window].mT


def _add_outputs(
    sums: Sequence[Any], phases: Sequence[Phase], seen: Any, outputs: Sequence[Any]
) -> None:
    """The products with ones and outputs; taps of several phases may see the same pixels."""
    seeing: dict[tuple[int, _Window], list[tuple[int, int]]] = defaultdict(list)
    for number, (h, phase, v) in enumerate(zip(sums, phases, outputs, strict=True)):
        features = seen.shape[-1] * len(phase.taps)
        counts = tuple(v.shape[2:-1])
        everything = [(0, count) for count in counts]
        for rows, values in _pieces((v, v), ((0,) * len(counts),) * 2, everything):
            h[:, features:, features:] += rows.mT @ values
        copies = phase.copies or (0,) * len(phase.taps)
        for tap, (copy, start) in enumerate(zip(copies, phase.starts, strict=True)):
            window = tuple((a, a + n) for a, n in zip(start, counts, strict=True))
            seeing[copy, window].append((number, tap))
    channels = seen.shape[-1]
    for (copy, window), uses in seeing.items():
        back = tuple(-begin for begin, _ in window)
        factors = [seen[copy], *(outputs[number] for number, _ in uses)]
        for rows, *values in _pieces(factors, [(0,) * len(back)] + [back] * len(uses), window):
            for (number, tap), each in zip(uses, values, strict=True):
                product, h = rows.mT @ each, sums[number]
                features = channels * len(phases[number].taps)
                one = slice(tap * channels, (tap + 1) * channels)
                h[:, one, features:] += product
                h[:, features:, one] += product.mT


def _pairs(
    phases: Sequence[Phase], counts: Sequence[tuple[int, ...]]
) -> dict[_Distance, list[_Pair]]:
    """All pairs of taps by their distance, which begins with no minus."""
    found: dict[_Distance, list[_Pair]] = defaultdict(list)
    for number, (phase, count) in enumerate(zip(phases, counts, strict=True)):
        copies = phase.copies or (0,) * len(phase.taps)
        places = sorted(zip(phase.starts, copies, range(len(phase.taps)), strict=True))
        for one, other in itertools.combinations_with_replacement(places, 2):
            pixels = tuple(b - a for a, b in zip(one[0], other[0], strict=True))
            window = tuple((a, a + n) for a, n in zip(one[0], count, strict=True))
            distance = _Distance((one[1], other[1]), pixels)
            found[distance].append(_Pair(number, (one[2], other[2]), window))
    return found


def _boxes(distance: _Distance, pairs: Sequence[_Pair], seen: Any) -> dict[_Window, Any]:
    """The sum of the products over each window, (groups, C_in / groups, C_in / groups)."""
    windows = {pair.window for pair in pairs}
    cuts = [sorted({edge for each in axis for edge in each}) for axis in zip(*windows, strict=True)]
    factors = [seen[copy] for copy in distance.copies]
    starts = ((0,) * len(cuts), distance.pixels)

    def product(window: _Window) -> Any:
        return reduce(add, (one.mT @ other for one, other in _pieces(factors, starts, window)))

    # Summed up along each axis in turn: then a box is a sum over its corners.
    sums: dict[tuple[int, ...], Any] = {
        cell: product(tuple((edges[i], edges[i + 1]) for i, edges in zip(cell, cuts, strict=True)))
        for cell in itertools.product(*(range(len(edges) - 1) for edges in cuts))
    }
    for axis in range(len(cuts)):
        for cell in sums:
            if cell[axis]:
                before = (*cell[:axis], cell[axis] - 1, *cell[axis + 1 :])
                sums[cell] = sums[cell] + sums[before]
    boxes = {}
    for window in windows:
        if any(begin == end for begin, end in window):
            boxes[window] = product(window)
            continue
        last = [edges.index(end) - 1 for edges, (_, end) in zip(cuts, window, strict=True)]
        first = [edges.index(begin) - 1 for edges, (begin, _) in zip(cuts, window, strict=True)]
        boxes[window] = sums[tuple(last)]
        for sides in itertools.product((False, True), repeat=len(cuts)):
            corner = tuple(f if side else e for side, f, e in zip(sides, first, last, strict=True))
            if any(sides) and min(corner) >= 0:
                odd = sum(sides) % 2
                box = boxes[window]
                boxes[window] = box - sums[corner] if odd else box + sums[corner]
    return boxes


def _pieces(
    factors: Sequence[Any], starts: Sequence[Sequence[int]], window: Sequence[tuple[int, int]]
) -> Iterator[list[Any]]:
    """The pixels of a window as rows of each factor, (groups, rows, channels), some lines at a time.

    Args:
        factors: (groups, N, *L, channels).
        starts: Where the window begins in each factor.
        window: Its pixels.
    """
    (begin, end), *others = window
    widest = max(math.prod(factor.shape[:2]) * factor.shape[-1] for factor in factors)
    per_line = widest * math.prod(b - a for a, b in others)
    lines = max(1, _MOST_ELEMENTS // max(1, per_line))
    for first in range(begin, max(end, begin + 1), lines):
        part = [(first, min(first + lines, end)), *others]
        yield [
            factor[
                (
                    slice(None),
                    slice(None),
                    *(slice(s + a, s + b) for s, (a, b) in zip(start, part, strict=True)),
                )
            ].reshape(factor.shape[0], -1, factor.shape[-1])
            for factor, start in zip(factors, starts, strict=True)
        ]
