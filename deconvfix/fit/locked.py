"""What a layer's outputs have in common phase by phase, as equations beside those of its outputs.

A grid is what is locked to the phase of the layers: in a patch of a few periods the mean m_F of the outputs
of each phase F, less the mean over all phases. These means are linear in the kernel too, with the means of
the features, so that

    sum over patches and phases  weight * repeats * |m_F(W) - m_F(goal)|^2

adds a normal matrix and a right side to those of `fit.regression`. Each mean counts for the pixels that it
is of. A patch counts the more the smoother it is, as a grid is seen there: by one over the variance within
the phases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import run
from deconvfix.fit.design import Design, Phase
from deconvfix.fit.regression import Equations

__all__ = ["LockedMoments", "any_kernel", "roughness", "weights_of"]

Array = NDArray[np.float64]
# Of the median variance: patches that are smoother than this count alike.
_SMOOTH = 0.05


def any_kernel(design: Design) -> Design:
    """The same layer with a basis of all kernels."""
    return replace(design, basis=np.eye(len(design.basis)), has_offset=False)


def roughness(values: NDArray[Any], period: Sequence[int], repeats: Sequence[int]) -> Array:
    """The variance within the phases of each patch, (patches,).

    Args:
        values: (N, C, *spatial).
        period: Of the grid, in pixels per axis.
        repeats: Periods of a patch per axis.
    """
    ndim = len(period)
    split = _split(values.astype(np.float64), period, repeats)
    # (N, C, cell, repeat, phase, ..) -> (N, C, cell, phase, ..) -> (N, cell, ..)
    rough = split.var(tuple(3 + 3 * i for i in range(ndim)))
    mean: Array = rough.mean((1, *(3 + 2 * i for i in range(ndim)))).reshape(-1)
    return mean


def weights_of(rough: Sequence[Array]) -> list[Array]:
    """What patches count, by their roughness, batch by batch; one in the mean."""
    typical = float(np.median(np.concatenate(rough))) or 1.0
    weights = [1 / (batch / typical + _SMOOTH) for batch in rough]
    mean = float(np.concatenate(weights).mean())
    return [batch / mean for batch in weights]


class LockedMoments:
    """Sums over samples for one layer that may have any kernel.

    Args:
        spec: The layer.
        design: Its form as a linear model, with one copy of the channels; a tap belongs to one phase.
        period: Of the grid in its output, whole multiples of its stride, per axis.
        repeats: Periods of a patch per axis.
    """

    def __init__(
        self,
        spec: ConvTransposeSpec,
        design: Design,
        period: Sequence[int],
        repeats: Sequence[int],
    ) -> None:
        self.spec = spec
        self.design = design
        self.period = tuple(period)
        self.repeats = tuple(repeats)
        features = spec.in_channels // spec.groups * len(design.basis)
        self._normal = np.zeros((spec.groups, features, features))
        self._right = np.zeros((spec.groups, features, spec.out_channels // spec.groups))

    def add(self, x: NDArray[Any], goal: NDArray[Any], weights: Array) -> None:
        """Adds samples.

        Args:
            x: What the layer gets, (N, C_in, *L).
            goal: What its output should have in common with, phase by phase, (N, C_out, *L_out).
            weights: Of each patch, (patches,).
        """
        groups, ndim = self.spec.groups, self.spec.ndim
        steps = tuple(p // s for p, s in zip(self.period, self.spec.stride, strict=True))
        cells = tuple(
            size // (p * r)
            for size, p, r in zip(goal.shape[2:], self.period, self.repeats, strict=True)
        )
        if not math.prod(cells) or not len(x):
            return
        extended = run(self.design.steps, x.astype(np.float64), np.zeros(()))
        root = np.sqrt(weights * math.prod(self.repeats))[:, None, None]
        # (patches, phases of the period, C_out): less the mean over the phases
        split = _split(goal.astype(np.float64), self.period, self.repeats)
        means = _of_patches(split.mean(tuple(3 + 3 * i for i in range(ndim))), ndim)
        means = root * (means - means.mean(1, keepdims=True))
        c_in, c_out = self.spec.in_channels // groups, self.spec.out_channels // groups
        common = np.zeros((groups, len(means), self._normal.shape[1]))
        numbers = np.arange(math.prod(self.period)).reshape(self.period)
        for phase in self.design.phases:
            mine = numbers[
                tuple(slice(f, None, s) for f, s in zip(phase.first, phase.step, strict=True))
            ]
            seen = root[..., None] * self._means(phase, extended, steps, cells)
            for group in range(groups):
                # (patches * phases, taps * C_in / groups), ordered (tap, channel) as the equations are
                own = seen[..., group * c_in : (group + 1) * c_in]
                u = own.reshape(-1, len(phase.taps) * c_in)
                at = (np.array(phase.taps)[:, None] * c_in + np.arange(c_in)).reshape(-1)
                self._normal[group][np.ix_(at, at)] += u.T @ u
                t = means[:, mine.reshape(-1), group * c_out : (group + 1) * c_out]
                self._right[group][at] += u.T @ t.reshape(-1, c_out)
                common[group][:, at] += own.sum(1).reshape(len(means), -1)
        # What all phases share is no grid.
        self._normal -= common.transpose(0, 2, 1) @ common / math.prod(self.period)

    def _means(
        self, phase: Phase, extended: Array, steps: Sequence[int], cells: Sequence[int]
    ) -> Array:
        """The features of a phase, averaged: (patches, phases of the period within it, taps, C_in)."""
        found = []
        ndim = self.spec.ndim
        for start in phase.starts:
            size = tuple(c * r * n for c, r, n in zip(cells, self.repeats, steps, strict=True))
            place: Any = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
            part = extended[(..., *place)]
            split = _split(part, steps, self.repeats)
            found.append(_of_patches(split.mean(tuple(3 + 3 * i for i in range(ndim))), ndim))
        return np.stack(found, 2)

    def beside(self, problem: Equations, group: int, weight: float) -> Equations:
        """The equations of a group with these added, so many times."""
        size = self._normal.shape[1]
        normal, right = problem.normal.copy(), problem.right.copy()
        normal[:size, :size] += weight * self._normal[group]
        right[:size] += weight * self._right[group]
        return Equations(normal, right, problem.power)


def _split(values: Array, period: Sequence[int], repeats: Sequence[int]) -> Array:
    """(N, C, *spatial) -> (N, C, cell, repeat, phase, ..), cut to whole patches."""
    shape = list(values.shape[:2])
    for axis, (n, count) in enumerate(zip(period, repeats, strict=True), 2):
        cells = values.shape[axis] // (n * count)
        values = np.take(values, range(cells * n * count), axis)
        shape += [cells, count, n]
    return values.reshape(shape)


def _of_patches(means: Array, ndim: int) -> Array:
    """(N, C, cell, phase, ..) -> (patches, phases, C)."""
    order = [0, *(2 + 2 * i for i in range(ndim)), *(3 + 2 * i for i in range(ndim)), 1]
    moved = means.transpose(order)
    patches = math.prod(moved.shape[: 1 + ndim])
    return moved.reshape(patches, -1, moved.shape[-1])
