"""Second moments of a layer's features and outputs in NumPy, for models that run without torch.

For each phase of a form's `Design` the rows z = (u, 1, y) hold the features (tap, input channel), a one
for the bias, and the outputs wanted. `fit.regression` needs only H = sum of z z^T, for each group of
channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import run
from deconvfix.fit.design import Design
from deconvfix.fit.products import Waiting, add_products, samples_at_once
from deconvfix.fit.solve import HELDOUT_EVERY

__all__ = ["Moments"]

Array = NDArray[np.float64]


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
        sizes = design.moment_sizes(spec)
        # Of the samples to fit to, and of those held out.
        self._sums = [[np.zeros((spec.groups, size, size)) for size in sizes] for _ in range(2)]
        self._waiting = [Waiting(np.concatenate) for _ in range(2)]

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
        for part, chosen in enumerate((~heldout, heldout)):
            for some_x, some_y in self._waiting[part].put(x[chosen], y[chosen]):
                self._add(part, some_x, some_y)

    def of_group(self, group: int) -> tuple[list[Array], list[Array]]:
        """H_f of each phase, of the samples to fit to and of those held out."""
        for part, waiting in enumerate(self._waiting):
            for x, y in waiting.take():
                self._add(part, x, y)
        fitted, heldout = ([each[group] for each in part] for part in self._sums)
        return fitted, heldout

    def _add(self, part: int, x: NDArray[Any], y: NDArray[Any]) -> None:
        """Adds to one of the parts, those to fit to and those held out."""
        for some_x, some_y in self._pieces(x, y):
            # The weight is that of the step Conv, which a design does not have.
            extended = run(self.design.steps, some_x.astype(np.float64), np.zeros(()))
            add_products(
                self._sums[part],
                self.design.phases,
                self._channels_last(extended, self.design.copies),
                self._channels_last(some_y, 1)[0],
                np.zeros,
            )

    def _pieces(
        self, x: NDArray[Any], y: NDArray[Any]
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Some samples at a time; at least one."""
        if x.size == 0 or y.size == 0:
            return
        size = samples_at_once(self.design, x.shape, y.shape)
        for begin in range(0, len(x), size):
            yield x[begin : begin + size], y[begin : begin + size]

    def _channels_last(self, values: NDArray[Any], copies: int) -> NDArray[Any]:
        """(N, groups * copies * C, *L) -> (copies, groups, N, *L, C)."""
        split = values.reshape(len(values), self.groups, copies, -1, *values.shape[2:])
        return np.moveaxis(split.swapaxes(0, 2), 3, -1)
