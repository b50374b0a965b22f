"""A model's outputs, measured as people see them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.decibels import decibels
from deconvfix.fixing.report import Measured, Pictures
from deconvfix.grid.periods import Period
from deconvfix.grid.visible import grid_power, patch_corner, smooth_patches, visible_grid

__all__ = ["Reference", "psnr"]

_STEPS = 255
# The PSNR that stands for equal outputs.
_EQUAL_DB = 200.0

Outputs = Sequence[NDArray[Any]]


class Reference:
    """The original's outputs on held-out inputs, and what another model's are compared with.

    Args:
        original: Its outputs, each (N, C, *spatial).
        goal: The same without their grid.
        periods: Of the grid, by the number of the output.
        targets: True outputs, if there are some; the first output is compared with them.
    """

    def __init__(
        self,
        original: Outputs,
        goal: Outputs,
        periods: Mapping[int, Period],
        targets: NDArray[Any] | None,
    ) -> None:
        self.original = original
        self.goal = goal
        self.periods = periods
        self.targets = targets
        # The same patches for every model: smooth ones of the original.
        self.patches = {i: smooth_patches(original[i], period) for i, period in periods.items()}

    def measure(self, outputs: Outputs, flat_db: float | None = None) -> Measured | None:
        """Measures outputs on the same inputs; None where they have other shapes or are not finite."""
        grids, shifts, matches, closeness = [], [], [], []
        for i, period in self.periods.items():
            old, new = self.original[i], outputs[i]
            if new.shape != old.shape or not np.isfinite(new).all():
                return None
            found = visible_grid(new, period, like=old, chosen=self.patches[i])
            if found is not None:
                grids.append(found)
            span = float(np.ptp(old)) or 1.0
            axes = (0, *range(2, old.ndim))
            moved = new.mean(axes, dtype=np.float64) - old.mean(axes, dtype=np.float64)
            shifts.append(float(np.abs(moved).max()) * _STEPS / span)
            matches.append(psnr(new, self.goal[i], span))
            closeness.append(psnr(new, old, span))
        if not grids:
            return None
        truth = None
        if self.targets is not None and self.targets.shape == outputs[0].shape:
            truth = psnr(outputs[0], self.targets, float(np.ptp(self.targets)) or 1.0)
        return Measured(
            seen=max(grid.mean for grid in grids),
            worst=max(grid.worst for grid in grids),
            match_db=min(matches),
            original_db=None if outputs is self.original else min(closeness),
            colour_shift=max(shifts),
            truth_db=truth,
            flat_db=flat_db,
        )

    def regions(self, outputs: Outputs) -> tuple[Pictures, ...]:
        """Where the grid is strongest before and after, in the smooth parts of the first output with one."""
        for i, period in self.periods.items():
            old, new, patches = self.original[i], outputs[i], self.patches[i]
            if patches is None or len(period) != 2 or old.shape[1] not in (1, 3):
                continue
            found = []
            for title, values in (("before", old), ("after", new)):
                strongest = int(patches[grid_power(values, period)[patches].argmax()])
                sample, corner, size = patch_corner(strongest, old.shape, period)
                rows, columns = (slice(at, at + n) for at, n in zip(corner, size, strict=True))
                found.append(
                    Pictures(
                        f"where the grid is strongest {title}",
                        old[sample][:, rows, columns],
                        new[sample][:, rows, columns],
                        old[sample],
                        new[sample],
                        (corner[0], corner[1]),
                    )
                )
            return tuple(found)
        return ()


def psnr(values: NDArray[Any], other: NDArray[Any], span: float) -> float:
    """Peak signal-to-noise ratio in dB, with `span` as the peak."""
    error = float(np.mean((values.astype(np.float64) - other.astype(np.float64)) ** 2))
    return min(_EQUAL_DB, decibels(span / math.sqrt(error))) if error else _EQUAL_DB
