"""Second moments of a layer's features and outputs, summed in float64 where the tensors are.

For each phase of a form's `Design` the rows z = (u, 1, y) hold the features (input channel, tap), a one
for the bias, and the outputs wanted, with the group axis first. `fit.regression` needs only
H = sum of z z^T.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deconvfix.fit.solve import HELDOUT_EVERY
from deconvfix.forms import form
from deconvfix.forms.base import Design, Phase, Settings
from deconvfix.frontends import torch_steps
from deconvfix.frontends.torch_processes import rank, total, world
from deconvfix.spec import ConvTransposeSpec

__all__ = ["Moments"]

# Elements of z that are in memory at once (32 MiB in float64).
_MOST_ELEMENTS = 2**22
# Columns that are multiplied at once with those from there on: the rest is their mirror image.
_PANEL = 128


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
        shapes = [self._shape(phase) for phase in self.design.phases]
        self._fitted = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        self._heldout = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]

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
        least = replace(self.spec, output_padding=(0,) * ndim).output_size(tuple(x.shape[2:]))
        more = tuple(n - low for n, low in zip(y.shape[2:], least, strict=True))
        design = self._design(replace(self.spec, output_padding=more))
        # Where the processes take turns with the samples, the same are held out as in one process.
        numbers = rank() + world() * (torch.arange(len(x)) + self.samples)
        heldout = numbers % HELDOUT_EVERY == HELDOUT_EVERY - 1
        self.samples += len(x)
        self.held += int(heldout.sum())
        for sums, chosen in ((self._fitted, ~heldout), (self._heldout, heldout)):
            if not chosen.any():
                continue
            for i, phase in enumerate(design.phases):
                for z in _rows(design, phase, x[chosen], y[chosen], self.spec.groups):
                    sums[i] = _add_products(sums[i].to(z.device), z)

    def gather(self) -> None:
        """Adds the sums of all processes of torch.distributed, where it is in use."""
        counts = torch.tensor([self.samples, self.held])
        total([*self._fitted, *self._heldout, counts])
        self.samples, self.held = counts.tolist()

    def of_group(self, group: int) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        """H_f of each phase, of the samples to fit to and of those held out."""
        fitted = [each[group].cpu().numpy() for each in self._fitted]
        return fitted, [each[group].cpu().numpy() for each in self._heldout]

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

    def _shape(self, phase: Phase) -> tuple[int, int, int]:
        groups = self.spec.groups
        features = self.spec.in_channels // groups * len(phase.taps)
        size = features + 1 + self.spec.out_channels // groups
        return groups, size, size


def _add_products(sums: Tensor, z: Tensor) -> Tensor:
    """sums + z^T z, in place: (groups, size, size) and (groups, rows, size).

    The product is symmetric, so that about half of it is computed and the other half copied. Each number
    is one product of two columns as before.
    """
    size = z.shape[-1]
    for begin in range(0, size, _PANEL):
        end = min(begin + _PANEL, size)
        product = z[..., begin:end].mT @ z[..., begin:]
        sums[..., begin:end, begin:] += product
        sums[..., end:, begin:end] += product[..., end - begin :].mT
    return sums


def _rows(design: Design, phase: Phase, x: Tensor, y: Tensor, groups: int) -> Iterator[Tensor]:
    """The rows z of one phase, (groups, rows, size), a piece at a time."""
    grid = zip(phase.first, phase.step, strict=True)
    wanted = y[_slices(slice(first, None, step) for first, step in grid)]
    if wanted.numel() == 0:
        return
    counts = tuple(wanted.shape[2:])
    per_row = x.shape[1] * len(phase.taps) + groups + y.shape[1]
    samples = max(1, _MOST_ELEMENTS // (per_row * math.prod(counts)))
    lines = max(1, _MOST_ELEMENTS // (per_row * math.prod(counts[1:])))
    for some_x, some_y in zip(x.split(samples), wanted.split(samples), strict=True):
        # The weight is that of the step Conv, which a design does not have.
        extended = torch_steps.apply_steps(design.steps, some_x.double(), some_x, None, groups)
        # (N, copies*C_in, *L) -> each copy, (N, C_in, *L)
        copies = extended.unflatten(1, (groups, design.copies, -1)).unbind(2)
        flat = [copy.flatten(1, 2) for copy in copies]
        seen = [flat[number] for number in phase.copies or (0,) * len(phase.taps)]
        for begin in range(0, counts[0], lines):
            end = min(begin + lines, counts[0])
            window = [(begin, end), *((0, count) for count in counts[1:])]
            pieces = [
                copy[_slices(slice(s + b, s + e) for s, (b, e) in zip(start, window, strict=True))]
                for copy, start in zip(seen, phase.starts, strict=True)
            ]
            # (N, C_in, *count) for each tap -> (N, g, C_in/g, taps, count)
            u = torch.stack(pieces, 2).flatten(3).unflatten(1, (groups, -1))
            v = some_y[:, :, begin:end].double().flatten(2).unflatten(1, (groups, -1))
            # -> (g, N * count, C_in/g * taps)
            u = u.flatten(2, 3).permute(1, 0, 3, 2).flatten(1, 2)
            v = v.permute(1, 0, 3, 2).flatten(1, 2)  # (N, g, C_out/g, count) -> the same
            yield torch.cat([F.pad(u, (0, 1), value=1.0), v], -1)


def _slices(spatial: Iterable[slice]) -> Any:
    """An index for (N, C, *L)."""
    return (..., *spatial)
