"""The products that second moments are sums of; the same lines for arrays of NumPy and tensors of torch.

H_f of `fit.regression` holds for each pair of taps (a, b) of phase f the sum, over the pixels t of the phase,

    u_a u_b^T = e(start_a + t) e(start_b + t)^T          e: the extended input

The taps come in only through their distance start_b - start_a and through the window start_a + t. There are
few distances (13 for the 85 pairs of taps of a 5 x 5 kernel with stride 2), and the windows differ by some
pixels at the border. So the products are summed once for each distance, over the cells into which the edges
of all windows cut the map, and each pair of taps adds up the cells of its window.

The map lies in memory with zeros after each line, as many as a distance can be long. Its pixels are rows of
one matrix then, and a distance is a number of rows: the sum over the whole map is a product of two parts of
that matrix, which nothing has to be copied for. The largest cell is that sum less the other cells.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import reduce
from operator import sub
from typing import Any, NamedTuple

from deconvfix.fit.design import Design, Phase

__all__ = ["Waiting", "add_products", "samples_at_once"]

# Values of the extended inputs and the outputs that are worked on at once (32 MiB in float64).
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
        if sum(math.prod(array.shape) for pair in self._pairs for array in pair) >= _MOST_ELEMENTS:
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


# Makes an array of zeros of a shape.
_Zeros = Callable[[tuple[int, ...]], Any]
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


def add_products(
    sums: Sequence[Any], phases: Sequence[Phase], extended: Any, target: Any, zeros: _Zeros
) -> None:
    """Adds z^T z, z = (u, 1, y), of some samples.

    Args:
        sums: H_f for each phase, (groups, size, size), in float64; changed in place.
        phases: The phases of a form's `Design`.
        extended: The extended input, (copies, groups, N, *L, C_in / groups).
        target: The outputs, (groups, N, *L_out, C_out / groups).
        zeros: Makes an array of zeros in float64, like the sums.
    """
    # Outputs that each phase has: fewer for the last phases where the stride does not divide the size.
    counts = [
        tuple(
            len(range(*indices))
            for indices in zip(phase.first, target.shape[2:-1], phase.step, strict=True)
        )
        for phase in phases
    ]
    pairs = _pairs(phases, counts)
    size = tuple(extended.shape[3:-1])
    # Zeros behind the map, as many as the longest distance between two taps: a pixel and one that is so
    # far away are then a fixed number of rows apart, and rows that run into the next line meet zeros.
    longest = [
        max((abs(distance.pixels[axis]) for distance in pairs), default=0)
        for axis in range(len(size))
    ]
    padded = [n + more for n, more in zip(size, longest, strict=True)]
    seen = zeros((*extended.shape[:3], *padded, extended.shape[-1]))
    inside = tuple(slice(n) for n in size)
    seen[(..., *inside, slice(None))] = extended
    _add_outputs(sums, phases, seen, target, counts, zeros)
    channels = seen.shape[-1]
    # Taps at the same distance multiply the same pixels, over windows that differ at the border only.
    for distance, found in pairs.items():
        boxes = _boxes(distance, found, seen, size)
        for pair in found:
            one, other = (_features(tap, channels) for tap in pair.taps)
            _add_both(sums[pair.phase], one, other, boxes[pair.window])


def _features(tap: int, channels: int) -> slice:
    """Those of a tap. They are ordered (tap, input channel): what is added lies together."""
    return slice(tap * channels, (tap + 1) * channels)


def _add_both(h: Any, one: slice, other: slice, product: Any) -> None:
    """Adds a product, and its mirror image."""
    h[:, one, other] += product
    if one != other:
        h[:, other, one] += product.swapaxes(-1, -2)


def _rows(values: Any) -> Any:
    """(groups, N, *L, channels) -> (groups, rows, channels)."""
    return values.reshape(values.shape[0], -1, values.shape[-1])


def _shift(pixels: Sequence[int], seen: Any) -> int:
    """How many rows further a pixel lies that is so many pixels away."""
    return reduce(
        lambda rows, axis: rows * axis[0] + axis[1], zip(seen.shape[3:-1], pixels, strict=True), 0
    )


def _product(one: Any, other: Any, shift: int) -> Any:
    """The sum of the products of each row with the one that is `shift` rows further, (groups, C, C')."""
    return one[:, : one.shape[1] - shift].swapaxes(-1, -2) @ other[:, shift:]


def _add_outputs(
    sums: Sequence[Any],
    phases: Sequence[Phase],
    seen: Any,
    target: Any,
    counts: Sequence[tuple[int, ...]],
    zeros: _Zeros,
) -> None:
    """The products with ones and outputs, which lie as the map does, each at its pixel t."""
    channels = seen.shape[-1]
    for h, phase, count in zip(sums, phases, counts, strict=True):
        if 0 in count:
            continue
        grid = tuple(
            slice(first, None, step) for first, step in zip(phase.first, phase.step, strict=True)
        )
        # Ones and outputs, put into a map of the padded size: then a tap is a shift of rows here, too.
        lies = zeros((*seen.shape[1:-1], 1 + target.shape[-1]))
        at = (slice(None), slice(None), *(slice(n) for n in count))
        lies[(*at, slice(1))] = 1.0
        lies[(*at, slice(1, None))] = target[(slice(None), slice(None), *grid)]
        rows = _rows(lies)
        others = slice(channels * len(phase.taps), None)
        _add_both(h, others, others, rows.swapaxes(-1, -2) @ rows)
        for tap, (copy, start) in enumerate(zip(_copies(phase), phase.starts, strict=True)):
            product = _product(rows, _rows(seen[copy]), _shift(start, seen))
            _add_both(h, others, _features(tap, channels), product)


def _copies(phase: Phase) -> tuple[int, ...]:
    return phase.copies or (0,) * len(phase.taps)


def _pairs(
    phases: Sequence[Phase], counts: Sequence[tuple[int, ...]]
) -> dict[_Distance, list[_Pair]]:
    """All pairs of taps by their distance, which begins with no minus."""
    found: dict[_Distance, list[_Pair]] = defaultdict(list)
    for number, (phase, count) in enumerate(zip(phases, counts, strict=True)):
        if 0 in count:
            continue
        places = sorted(zip(phase.starts, _copies(phase), range(len(phase.taps)), strict=True))
        for one, other in itertools.combinations_with_replacement(places, 2):
            # Sorted places: the first difference that is not 0 is positive, and so is the shift in rows.
            pixels = tuple(b - a for a, b in zip(one[0], other[0], strict=True))
            window = tuple((a, a + n) for a, n in zip(one[0], count, strict=True))
            distance = _Distance((one[1], other[1]), pixels)
            found[distance].append(_Pair(number, (one[2], other[2]), window))
    return found


def _boxes(
    distance: _Distance, pairs: Sequence[_Pair], seen: Any, size: Sequence[int]
) -> dict[_Window, Any]:
    """The sum of the products over each window, (groups, C_in / groups, C_in / groups)."""
    one, other = (seen[copy] for copy in distance.copies)
    windows = {pair.window for pair in pairs}
    # Where both pixels are in the map.
    whole = [(max(0, -d), n - max(0, d)) for n, d in zip(size, distance.pixels, strict=True)]
    # All edges of all windows, per axis: between two neighbouring cuts a window has all pixels or none.
    cuts = [
        sorted({edge for window in axis for edge in window})
        for axis in zip(whole, *windows, strict=True)
    ]
    cells = {
        cell: tuple((edges[i], edges[i + 1]) for i, edges in zip(cell, cuts, strict=True))
        for cell in itertools.product(*(range(len(edges) - 1) for edges in cuts))
    }
    # Almost all pixels lie in one cell, the middle. Its sum is what the whole map leaves, so that the map
    # is multiplied once, and the thin cells along the border besides.
    largest = max(cells, key=lambda cell: math.prod(end - begin for begin, end in cells[cell]))

    def product(cell: _Window) -> Any:
        here, there = (
            tuple(slice(begin + d, end + d) for (begin, end), d in zip(cell, pixels, strict=True))
            for pixels in ((0,) * len(cell), distance.pixels)
        )
        ahead = (slice(None), slice(None))
        return _rows(one[(*ahead, *here)]).swapaxes(-1, -2) @ _rows(other[(*ahead, *there)])

    sums = {cell: product(window) for cell, window in cells.items() if cell != largest}
    total = _product(_rows(one), _rows(other), _shift(distance.pixels, seen))
    sums[largest] = reduce(sub, sums.values(), total)
    # Summed up along each axis in turn: then a box is a sum over its corners.
    for axis in range(len(cuts)):
        for cell in cells:
            if cell[axis]:
                before = (*cell[:axis], cell[axis] - 1, *cell[axis + 1 :])
                sums[cell] = sums[cell] + sums[before]
    # The sum over a window from the four corners of a summed-area table (eight in 3-D), with signs.
    boxes = {}
    for window in windows:
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
