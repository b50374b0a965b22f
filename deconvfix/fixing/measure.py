"""A model's outputs, measured as people see them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.decibels import LOWEST_DB, decibels
from deconvfix.fixing.report import Measured, Pictures
from deconvfix.grid.flat_field import FlatField
from deconvfix.grid.periods import Period
from deconvfix.grid.tones import LockedTones, locked_tones, rms
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

    def measure(
        self, outputs: Outputs, flat: Mapping[int, FlatField] | None = None
    ) -> Measured | None:
        """Measures outputs on the same inputs; None where they have other shapes or are not finite.

        Args:
            outputs: Of a model.
            flat: Its answers to a constant input, by the number of the output.
        """
        flat = flat or {}
        grids, shifts, matches, closeness, ripples = [], [], [], [], []
        tones: LockedTones | None = None
        for i, period in self.periods.items():
            old, new = self.original[i], outputs[i]
            if new.shape != old.shape or not np.isfinite(new).all():
                return None
            span = float(np.ptp(old)) or 1.0
            if len(period) == 1:
                # Of sound the programme is what everything is relative to.
                span = rms(old) or 1.0
                heard = locked_tones(new, period, like=old)
                if heard is not None:
                    silence = decibels(flat[i].rms / span) if i in flat else LOWEST_DB
                    grids.append(
                        (_thousandths(max(heard.total_db, silence)), _thousandths(silence))
                    )
                    tones = heard if tones is None or heard.total_db > tones.total_db else tones
                ripples += [decibels(flat[i].rms / span)] if i in flat else []
            else:
                found = visible_grid(new, period, like=old, chosen=self.patches[i])
                grids += [] if found is None else [(found.mean, found.worst)]
                ripples += [flat[i].ripple_db] if i in flat else []
            axes = (0, *range(2, old.ndim))
            moved = new.mean(axes, dtype=np.float64) - old.mean(axes, dtype=np.float64)
            shifts.append(float(np.abs(moved).max()) * _STEPS / span)
            matches.append(psnr(new, self.goal[i], span))
            closeness.append(psnr(new, old, span))
        if not grids:
            return None
        truth = None
        if self.targets is not None and self.targets.shape == outputs[0].shape:
            sound = len(self.periods.get(0, ())) == 1
            span = rms(self.targets) if sound else float(np.ptp(self.targets))
            truth = psnr(outputs[0], self.targets, span or 1.0)
        return Measured(
            seen=max(seen for seen, _ in grids),
            worst=max(worst for _, worst in grids),
            match_db=min(matches),
            original_db=None if outputs is self.original else min(closeness),
            colour_shift=max(shifts),
            truth_db=truth,
            flat_db=max(ripples, default=None),
            tones=tones,
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


def _thousandths(level_db: float) -> float:
    """Of the programme, for a level relative to it."""
    return float(1000 * 10.0 ** (level_db / 20))


def psnr(values: NDArray[Any], other: NDArray[Any], span: float) -> float:
    """Peak signal-to-noise ratio in dB, with `span` as the peak."""
    error = float(np.mean((values.astype(np.float64) - other.astype(np.float64)) ** 2))
    return min(_EQUAL_DB, decibels(span / math.sqrt(error))) if error else _EQUAL_DB
