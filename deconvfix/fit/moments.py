"""Second moments of a layer's features and outputs in NumPy, for models that run without torch.

For each phase of a form's `Design` the rows z = (u, 1, y) hold the features (input channel, tap), a one
for the bias, and the outputs wanted. `fit.regression` needs only H = sum of z z^T, for each group of
channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.fit.design import Design, Phase
from deconvfix.fit.solve import HELDOUT_EVERY
from deconvfix.spec import ConvTransposeSpec
from deconvfix.steps import run

__all__ = ["Moments"]

Array = NDArray[np.float64]

# Elements of z, and of the extended input, that are in memory at once (32 MiB in float64).
_MOST_ELEMENTS = 2**22


class Moments:
    """Sums over samples and batches for one layer in one form.

    Args:
        spec: The layer.
        design: Its form as a linear model.

    Attributes:
        design: The same.
        samples: How many were added.
    """

    def __init__(self, spec: ConvTransposeSpec, design: Design) -> None:
        self.spec = spec
        self.design = design
        self.samples = 0
        per_group = spec.in_channels // spec.groups
        others = 1 + spec.out_channels // spec.groups
        sizes = [per_group * len(phase.taps) + others for phase in design.phases]
        self._fitted = [np.zeros((spec.groups, size, size)) for size in sizes]
        self._heldout = [np.zeros((spec.groups, size, size)) for size in sizes]

    @property
    def groups(self) -> int:
        """Groups of the layer's channels."""
        return self.spec.groups

    @property
    def has_heldout(self) -> bool:
        """Whether there are samples to choose on that were not fitted to."""
        return self.samples >= HELDOUT_EVERY

    def add(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        """Adds samples.

        Args:
            x: Input, (N, C_in, *L).
            y: Output wanted, (N, C_out, *L_out).

        Raises:
            ValueError: If the output is not of the size that the layer's geometry gives.
        """
        wanted = (len(x), self.spec.out_channels, *self.spec.output_size(x.shape[2:]))
        if x.shape[1] != self.spec.in_channels or y.shape != wanted:
            raise ValueError(f"its outputs have the shape {y.shape}, its geometry gives {wanted}")
        heldout = (np.arange(len(x)) + self.samples) % HELDOUT_EVERY == HELDOUT_EVERY - 1
        self.samples += len(x)
        for sums, chosen in ((self._fitted, ~heldout), (self._heldout, heldout)):
            for some_x, some_y in self._pieces(x[chosen], y[chosen]):
                # The weight is that of the step Conv, which a design does not have.
                extended = run(self.design.steps, some_x.astype(np.float64), np.zeros(()))
                for i, phase in enumerate(self.design.phases):
                    for z in self._rows(phase, extended, some_y):
                        sums[i] += z.mT @ z

    def of_group(self, group: int) -> tuple[list[Array], list[Array]]:
        """H_f of each phase, of the samples to fit to and of those held out."""
        return [each[group] for each in self._fitted], [each[group] for each in self._heldout]

    def _pieces(
        self, x: NDArray[Any], y: NDArray[Any]
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Some samples at a time; at least one."""
        if x.size == 0 or y.size == 0:
            return
        # The extended input may be upsampled to the output's size.
        pixels = max(math.prod(x.shape[2:]), math.prod(y.shape[2:]))
        size = max(1, _MOST_ELEMENTS // (pixels * (self.design.copies * x.shape[1] + y.shape[1])))
        for begin in range(0, len(x), size):
            yield x[begin : begin + size], y[begin : begin + size]

    def _rows(self, phase: Phase, extended: Array, y: NDArray[Any]) -> Iterator[Array]:
        """The rows z of one phase, (groups, rows, size), some lines of the map at a time."""
        groups, copies = self.groups, self.design.copies
        grid = zip(phase.first, phase.step, strict=True)
        wanted = y[_last(slice(None), (slice(first, None, step) for first, step in grid))]
        counts = wanted.shape[2:]
        if wanted.size == 0:
            return
        # (N, g, copies, C_in/g, *L) -> (copies, g, N, C_in/g, *L)
        seen = extended.reshape(len(y), groups, copies, -1, *extended.shape[2:])
        seen = seen.swapaxes(0, 2)
        numbers = phase.copies or (0,) * len(phase.taps)
        per_row = self.spec.in_channels * len(phase.taps) + groups + y.shape[1]
        lines = max(1, _MOST_ELEMENTS // (len(y) * math.prod(counts[1:]) * per_row))
        for begin in range(0, counts[0], lines):
            window = [(begin, min(begin + lines, counts[0])), *((0, n) for n in counts[1:])]
            pieces = [
                seen[
                    _last(
                        number,
                        (slice(s + b, s + e) for s, (b, e) in zip(start, window, strict=True)),
                    )
                ]
                for number, start in zip(numbers, phase.starts, strict=True)
            ]
            # (N, C_out, *count) -> (g, N, C_out/g, *count)
            v = wanted[_last(slice(None), (slice(b, e) for b, e in window))].astype(np.float64)
            v = v.reshape(len(v), groups, -1, *v.shape[2:]).swapaxes(0, 1)
            yield np.concatenate([*self._features(pieces, v), _as_rows(v)], -1)

    def _features(self, pieces: list[Array], v: Array) -> Iterator[Array]:
        """The features and the one, (groups, rows, ..) each."""
        rows = v.shape[1] * math.prod(v.shape[3:])
        if pieces:
            # (g, N, C_in/g, *count) for each tap -> (g, N, C_in/g, taps, *count)
            u = np.stack(pieces, 3)
            yield _as_rows(u.reshape(*u.shape[:2], -1, *u.shape[4:]))
        yield np.ones((self.groups, rows, 1))


def _last(first: Any, spatial: Iterable[slice]) -> tuple[Any, ...]:
    """An index into the first axis and the last ones."""
    return (first, ..., *spatial)


def _as_rows(values: Array) -> Array:
    """(g, N, size, *count) -> (g, N * count, size)."""
    groups, batch, size, *count = values.shape
    rows = np.moveaxis(values, 2, -1)
    return rows.reshape(groups, batch * math.prod(count), size)
