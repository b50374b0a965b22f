"""Second moments of a layer's features and outputs, summed in float64 where the tensors are.

For each phase of a form's `Design` the rows z = (u, 1, y) hold the features (tap, input channel), a one
for the bias, and the outputs wanted, with the group axis first. `fit.regression` needs only
H = sum of z z^T.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.fit.products import Waiting, add_products, samples_at_once
from deconvfix.fit.solve import HELDOUT_EVERY
from deconvfix.forms import form
from deconvfix.forms.base import Design, Settings
from deconvfix.frontends.torch import steps as torch_steps
from deconvfix.frontends.torch.tuning.processes import rank, total, world

__all__ = ["Moments"]


class Moments:
    """Sums over samples, batches, calls and processes for one layer in one form.

    Args:
        spec: The layer.
        form_name: Its form.
        settings: The form's choices.

    Attributes:
        design: The form as a linear model.
        samples: How many were added.
        held: How many of these are held out.
    """

    def __init__(self, spec: ConvTransposeSpec, form_name: str, settings: Settings) -> None:
        self.spec = spec
        self.form_name = form_name
        self.settings = settings
        self.samples = self.held = 0
        self.design = self._design(spec)
        groups = spec.groups
        shapes = [(groups, size, size) for size in self.design.moment_sizes(spec)]
        # Of the samples to fit to, and of those held out.
        self._sums = [
            [torch.zeros(shape, dtype=torch.float64) for shape in shapes] for _ in range(2)
        ]
        self._waiting = [Waiting(torch.cat) for _ in range(2)]

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds one call.

        Args:
            x: Input, (N, C_in, *L) or (C_in, *L).
            y: Output wanted, (N, C_out, *L_out) or (C_out, *L_out), of any `output_size`.
        """
        ndim = self.spec.ndim
        if x.dim() == ndim + 1:
            x, y = x[None], y[None]
        if x.device.type == "mps":  # has no float64
            x, y = x.cpu(), y.cpu()
        # Where the processes take turns with the samples, the same are held out as in one process.
        numbers = rank() + world() * (torch.arange(len(x)) + self.samples)
        heldout = numbers % HELDOUT_EVERY == HELDOUT_EVERY - 1
        self.samples += len(x)
        self.held += int(heldout.sum())
        for part, chosen in enumerate((~heldout, heldout)):
            for some_x, some_y in self._waiting[part].put(x[chosen], y[chosen]):
                self._add(part, some_x, some_y)

    def _add(self, part: int, x: Tensor, y: Tensor) -> None:
        """Adds to one of the parts, those to fit to and those held out."""
        if x.numel() == 0 or y.numel() == 0:
            return
        sums = self._sums[part] = [each.to(x.device) for each in self._sums[part]]
        least = replace(self.spec, output_padding=(0,) * self.spec.ndim).output_size(x.shape[2:])
        more = tuple(n - low for n, low in zip(y.shape[2:], least, strict=True))
        design = self._design(replace(self.spec, output_padding=more))
        for some_x, some_y in _pieces(design, x, y):
            # The weight is that of the step Conv, which a design does not have.
            extended = torch_steps.apply_steps(
                design.steps, some_x.double(), some_x, None, self.groups
            )
            # (N, groups * copies * C, *L) -> (copies, groups, N, *L, C)
            channels = extended.unflatten(1, (self.groups, design.copies, -1))
            channels = channels.transpose(0, 2).movedim(3, -1)
            # (N, groups * C, *L) -> (groups, N, *L, C)
            outputs = some_y.unflatten(1, (self.groups, -1)).transpose(0, 1).movedim(2, -1)
            add_products(sums, design.phases, channels, outputs, sums[0].new_zeros)

    def _add_all(self) -> None:
        """Adds what still waits."""
        for part, waiting in enumerate(self._waiting):
            for x, y in waiting.take():
                self._add(part, x, y)

    def gather(self) -> None:
        """Adds the sums of all processes of torch.distributed, where it is in use."""
        self._add_all()
        counts = torch.tensor([self.samples, self.held])
        total([*itertools.chain(*self._sums), counts])
        self.samples, self.held = counts.tolist()

    def of_group(self, group: int) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        """H_f of each phase, of the samples to fit to and of those held out."""
        self._add_all()
        fitted, heldout = ([each[group].cpu().numpy() for each in part] for part in self._sums)
        return fitted, heldout

    @property
    def groups(self) -> int:
        """Groups of the layer's channels."""
        return self.spec.groups

    @property
    def has_heldout(self) -> bool:
        """Whether there are samples to choose on that were not fitted to."""
        return self.held > 0

    def _design(self, spec: ConvTransposeSpec) -> Design:
        design = form(self.form_name).design(spec, self.settings)
        assert design is not None, "only forms that are fitted have moments"
        return design


def _pieces(design: Design, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some samples at a time; at least one."""
    size = samples_at_once(design, x.shape, y.shape)
    yield from zip(x.split(size), y.split(size), strict=True)
