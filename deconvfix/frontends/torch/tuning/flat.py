"""Inputs on which a layer must make no grid, where it may make one on others: silence, for instance.

A kernel with equal phase sums makes no grid on any constant, which also takes away what a network says on
purpose at multiples of 1/s: real tones of a vocoder. If only some constant inputs of the network have to
stay free of it, then only what the layer gets on these needs equal phase sums: a few directions of its
input channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deconvfix.core.decibels import decibels
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.errors import OptionError
from deconvfix.frontends.torch.inputs import Inputs, flat_tensors, run_model

__all__ = ["check_constant", "directions", "grid_notes"]

Array = NDArray[np.float64]

# Directions weaker than this share of the strongest are rounding.
_RANK = 1e-6
# How far pixels in the middle may differ, relative to the largest.
_CONSTANT = 1e-3


def directions(seen: Sequence[Tensor], spec: ConvTransposeSpec) -> Array:
    """What a layer gets in the middle of flat inputs, as orthonormal columns.

    Args:
        seen: Its inputs, (N, C_in, *L) or (C_in, *L).
        spec: The layer.

    Returns:
        (groups, C_in / groups, directions). Where a group has fewer of them than others, some are zero.
    """
    pixels = torch.cat([_middle(x, spec.ndim) for x in seen]).double().cpu().numpy()
    found = []
    for group in np.split(pixels, spec.groups, axis=1):  # (pixels, C_in/g)
        # The rows of V^T span what the group gets: (directions, C_in/g)
        _, sizes, rows = np.linalg.svd(group, full_matrices=False)
        found.append(rows * (sizes > _RANK * max(sizes[0], 1e-300))[:, None])
    # (groups, directions, C_in/g) -> (groups, C_in/g, directions)
    stacked = np.stack(found).swapaxes(1, 2)
    # Columns that are zero in all groups go. One that is zero in some stays, for equal shapes.
    strong: Array = stacked[:, :, np.abs(stacked).sum((0, 1)) > 0]
    return strong


def check_constant(name: str, seen: Sequence[Tensor], ndim: int) -> None:
    """Flat inputs must be flat, and large enough that the border does not reach their middle.

    Raises:
        OptionError: If a layer gets something else.
    """
    for x in seen:
        middle = _middle(x, ndim)
        for axis in range(x.dim() - ndim, x.dim()):
            length = x.shape[axis]
            # A neighbour along each axis: on a constant both are equal.
            beside = x.narrow(axis, max(0, length // 2 - 1), 1)
            off = float((_middle(beside, ndim) - middle).abs().max())
            if length < 3 or off > _CONSTANT * float(middle.abs().max()):
                raise OptionError(
                    "flat_inputs",
                    f"{name or '(model)'} does not get a constant input away from the border",
                    "inputs that are constant, and larger than the reach of the layers before, are needed",
                    "Give larger ones, for instance 64 pixels or frames of silence",
                )


def grid_notes(
    before: nn.Module, after: nn.Module, flat: Sequence[Inputs], period: int
) -> list[str]:
    """What became of the grid on flat inputs, in a sentence for each output."""
    notes = []
    for index, (old, new) in enumerate(
        zip(_outputs(before, flat), _outputs(after, flat), strict=True)
    ):
        one, other = _ripple(old, period), _ripple(new, period)
        if one is None or other is None:
            continue
        change = f"{decibels(other / one):.1f} dB" if one else "there was none"
        notes.append(
            f"The grid of output {index} on the flat inputs went from {one:.3g} to {other:.3g} "
            f"(rms; {change})."
        )
    return notes


def _outputs(model: nn.Module, flat: Sequence[Inputs]) -> list[list[Tensor]]:
    """For each output its values on each of the flat inputs."""
    runs = [flat_tensors(run_model(model, batch)) for batch in flat]
    return [list(column) for column in zip(*runs, strict=True)]


def _ripple(values: Sequence[Tensor], period: int) -> float | None:
    """The rms deviation from the mean within two periods in the middle; None for other outputs."""
    squares = []
    for value in values:
        if not value.is_floating_point() or value.dim() < 3:
            return None
        for axis in range(2, value.dim()):
            length = value.shape[axis]
            # Whole periods, as a part of one would not have the mean of all phases.
            size = min(length, 2 * period)
            value = value.narrow(axis, (length - size) // 2, size)
        value = value.double()
        axes = tuple(range(2, value.dim()))
        squares.append(float((value - value.mean(axes, keepdim=True)).square().mean()))
    return float(np.sqrt(np.mean(squares)))


def _middle(x: Tensor, ndim: int) -> Tensor:
    """The pixel in the middle, (N, C)."""
    for axis in range(x.dim() - ndim, x.dim()):
        x = x.narrow(axis, x.shape[axis] // 2, 1)
    pixel = x.flatten(x.dim() - ndim) if ndim else x
    pixel = pixel.squeeze(-1)
    return pixel if pixel.dim() == 2 else pixel[None]
