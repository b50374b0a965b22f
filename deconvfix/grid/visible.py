"""The grid that is seen in pictures, and heard in sounds: what repeats with its period where little else is.

Constants show what a network makes of nothing. People look at pictures, and there a residue that is locked to
the phase of the layers is seen in smooth regions: skies, walls, skin. So the output is cut into patches of a
few periods. What is slow is taken off (a Gaussian of 0.6 period). In the smoothest quarter of the patches the
mean over the periods is taken for each phase and channel: what is not locked to the phase averages out, and
what that mean still holds by chance is known from the variance within the phases and subtracted. The square
root of the rest, with its sign, is the visible grid. True pictures give about zero, textures some tenths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

__all__ = ["VISIBLE", "VisibleGrid", "smooth_patches", "visible_grid"]

# Periods of a patch along each axis, by the number of axes: about 16 repeats of each phase.
_REPEATS = {1: 16, 2: 4, 3: 3}
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
    high = values.astype(np.float64)
    for axis, n in enumerate(period, 2):
        high = gaussian_filter1d(high, _BLUR * n, axis, mode="nearest") if n > 1 else high
    # (patches, C, phases, repeats)
    patches = _patches(values - high, period)[chosen]
    phases, repeats = patches.shape[2:]
    means = patches.mean(3)
    # What all phases share is no grid.
    means = means - means.mean(2, keepdims=True)
    by_chance = patches.var(3, ddof=1).mean(2) / repeats * (phases - 1) / phases
    power = np.sort(((means**2).mean(2) - by_chance).mean(1))
    worst = power[-max(1, round(_WORST * len(power))) :]
    return VisibleGrid(
        _root(float(power.mean()), span), _root(float(worst.mean()), span), len(power)
    )


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


def _patches(values: Array, period: Sequence[int]) -> Array:
    """The patches of all samples, (patches, C, phases, repeats); what is left at the end is cut off."""
    ndim, repeats = len(period), _REPEATS[len(period)]
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
