"""The grid that is seen in pictures, and heard in sounds: what repeats with its period where little else is.

Constants show what a network makes of nothing. People look at pictures, and there a residue that is locked to
the phase of the layers is seen in smooth regions: skies, walls, skin. So the output is cut into patches of a
few periods. What is slow is taken off (a Gaussian of 0.6 period). In the smoothest quarter of the patches the
mean over the periods is taken for each phase and channel: what is not locked to the phase averages out, and
what that mean still holds by chance is known from the variance within the phases and subtracted. The square
root of the rest, with its sign, is the visible grid. True pictures give about zero, textures some tenths.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

__all__ = [
    "REPEATS",
    "VISIBLE",
    "VisibleGrid",
    "grid_power",
    "patch_corner",
    "smooth_patches",
    "visible_grid",
    "without_grid",
]

# Periods of a patch along each axis, by the number of axes: about 16 repeats of each phase.
REPEATS = {1: 16, 2: 4, 3: 3}
# What is seen: the smoothest quarter, and of it the worst twentieth, so that one corner cannot hide.
_SMOOTHEST, _WORST = 0.25, 0.05
# With fewer patches than this the quarter is no sample.
_FEWEST = 8
_BLUR = 0.6
# A mean above this is seen; true pictures and textures stay below.
VISIBLE = 0.3
_STEPS = 255

Array = NDArray[np.float64]


@dataclass(frozen=True)
class VisibleGrid:
    """What is locked to the phase of the layers in the smooth parts of an output.

    Attributes:
        mean: Over the smoothest quarter of the patches, in 1/255 of the output's range; below zero
            where there is less than chance would give.
        worst: The same over the worst twentieth of these.
        patches: How many were looked at.
    """

    mean: float
    worst: float
    patches: int

    def in_words(self) -> str:
        """Both numbers, with what they mean."""
        seen = "is seen" if self.mean > VISIBLE else "is not seen"
        return (
            f"the visible grid is {max(self.mean, 0.0):.2f} steps of 255 in the smooth parts, "
            f"{max(self.worst, 0.0):.2f} in the worst patches: it {seen}"
        )


def visible_grid(
    values: NDArray[Any],
    period: Sequence[int],
    *,
    like: NDArray[Any] | None = None,
    chosen: NDArray[np.intp] | None = None,
) -> VisibleGrid | None:
    """Measures the visible grid of an output.

    Args:
        values: (N, C, *spatial).
        period: Of the grid, in pixels per axis.
        like: The output whose range and smooth patches count, of the same shape; None: its own.
        chosen: The patches, where they are known; see `smooth_patches`.

    Returns:
        None where the output has too few patches, or values that are not finite.
    """
    like = values if like is None else like
    if values.shape != like.shape or not (np.isfinite(values).all() and np.isfinite(like).all()):
        return None
    chosen = smooth_patches(like, period) if chosen is None else chosen
    span = float(like.max()) - float(like.min()) if like.size else 0.0
    if chosen is None or not span:
        return None
    power = np.sort(grid_power(values, period)[chosen])
    worst = power[-max(1, round(_WORST * len(power))) :]
    return VisibleGrid(
        _root(float(power.mean()), span), _root(float(worst.mean()), span), len(power)
    )


def grid_power(values: NDArray[Any], period: Sequence[int]) -> Array:
    """The mean square of what is locked to the phase in each patch, (patches,); see the module's text."""
    # (patches, C, phases, repeats)
    patches = _patches(_without_slow(values, period), period)
    phases, repeats = patches.shape[2:]
    means = patches.mean(3)
    # What all phases share is no grid.
    means = means - means.mean(2, keepdims=True)
    by_chance = patches.var(3, ddof=1).mean(2) / repeats * (phases - 1) / phases
    power: Array = ((means**2).mean(2) - by_chance).mean(1)
    return power


def patch_corner(
    number: int, shape: Sequence[int], period: Sequence[int]
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Sample, first pixel and size of a patch of an output of shape (N, C, *spatial)."""
    size = tuple(REPEATS[len(period)] * n for n in period)
    cells = tuple(have // n for have, n in zip(shape[2:], size, strict=True))
    sample, *place = np.unravel_index(number, (shape[0], *cells))
    corner = tuple(int(i) * n for i, n in zip(place, size, strict=True))
    return int(sample), corner, size


def without_grid(values: NDArray[Any], period: Sequence[int]) -> Array:
    """An output less what is locked to the phase, as far as that is more than chance.

    In each patch the phase means are taken off in proportion to what chance does not explain of them (the
    Wiener filter of a mean). Patches overlap by half, so that none has an edge.

    Args:
        values: (N, C, *spatial).
        period: Of the grid, in pixels per axis.
    """
    values = values.astype(np.float64)
    high = _without_slow(values, period)
    total, weights = np.zeros_like(values), np.zeros_like(values)
    repeats = REPEATS[len(period)]
    sizes = [
        min(repeats * n, size // n * n) for n, size in zip(period, values.shape[2:], strict=True)
    ]
    if 0 in sizes:
        return values
    steps = [
        [*range(0, size - patch + 1, max(n, patch // 2 // n * n))]
        for n, patch, size in zip(period, sizes, values.shape[2:], strict=True)
    ]
    window = functools.reduce(
        np.multiply.outer, [np.hanning(patch + 2)[1:-1] for patch in sizes], np.ones(())
    )
    for corner in itertools.product(*steps):
        place: Any = (
            ...,
            *(slice(at, at + patch) for at, patch in zip(corner, sizes, strict=True)),
        )
        split = high[place].reshape(
            *values.shape[:2],
            *itertools.chain.from_iterable(
                (size // n, n) for size, n in zip(sizes, period, strict=True)
            ),
        )
        axes = tuple(range(2, 2 + 2 * len(period), 2))
        means = split.mean(axes, keepdims=True)
        phases = tuple(axis + 1 for axis in axes)
        means = means - means.mean(phases, keepdims=True)
        chance = split.var(axes, keepdims=True).mean(phases, keepdims=True) / math.prod(
            size // n for size, n in zip(sizes, period, strict=True)
        )
        power = (means**2).mean(phases, keepdims=True)
        share = np.clip(1 - chance / np.maximum(power, np.finfo(np.float64).tiny), 0, 1)
        grid = np.broadcast_to(means * share, split.shape).reshape(high[place].shape)
        total[place] += grid * window
        weights[place] += window
    result: Array = values - total / np.maximum(weights, np.finfo(np.float64).tiny)
    return result


def smooth_patches(values: NDArray[Any], period: Sequence[int]) -> NDArray[np.intp] | None:
    """Which patches of an output are smooth, whatever grid they have; None if there are too few.

    Smooth is what varies little within the phases, so a grid does not make a patch less smooth.

    Args:
        values: (N, C, *spatial).
        period: Of the grid, in pixels per axis.
    """
    patches = _patches(values.astype(np.float64), period)
    if len(patches) < _FEWEST or max(period) < 2:
        return None
    rough = patches.var(3).mean((1, 2))
    count = max(1, round(_SMOOTHEST * len(patches)))
    return np.argsort(rough, kind="stable")[:count]


def _without_slow(values: NDArray[Any], period: Sequence[int]) -> Array:
    """What is left without a Gaussian of 0.6 period."""
    low = values.astype(np.float64)
    for axis, n in enumerate(period, 2):
        low = gaussian_filter1d(low, _BLUR * n, axis, mode="nearest") if n > 1 else low
    high: Array = values - low
    return high


def _patches(values: Array, period: Sequence[int]) -> Array:
    """The patches of all samples, (patches, C, phases, repeats); what is left at the end is cut off."""
    ndim, repeats = len(period), REPEATS[len(period)]
    samples, channels, *sizes = values.shape
    cells = [size // (repeats * n) for size, n in zip(sizes, period, strict=True)]
    for axis, (cell, n) in enumerate(zip(cells, period, strict=True), 2):
        values = values.take(range(cell * repeats * n), axis)
    shape = [samples, channels]
    for cell, n in zip(cells, period, strict=True):
        shape += [cell, repeats, n]
    # (N, C, cell, repeat, phase, ...) -> (N, cells, C, phases, repeats)
    order = [0, *(2 + 3 * i for i in range(ndim)), 1]
    order += [*(4 + 3 * i for i in range(ndim)), *(3 + 3 * i for i in range(ndim))]
    split = values.reshape(shape).transpose(order)
    return split.reshape(samples * math.prod(cells), channels, math.prod(period), repeats**ndim)


def _root(power: float, span: float) -> float:
    return math.copysign(math.sqrt(abs(power)), power) * _STEPS / span
