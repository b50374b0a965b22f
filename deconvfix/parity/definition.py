"""A layer by its definition: what its steps mean in NumPy, and how far rounding may move the result.

The rounding of the sums is that of `deconvfix.parity.bounds`, with the steps run on absolute values for
|W| (*) |x| + |b|. Upsampling adds two things to it:

*Repeated pixels* round alike, so a sum of n terms errs by up to n eps, not by sqrt(n) eps.

*Interpolated pixels* lie at positions p, and a runtime computes p + 1/2 = (u + 1/2) / factor for the output
pixel u up to eps * (p + 1/2), or exactly where the factor is a power of two. The value there moves by the
error times the slope of the map: not at all on a constant, and more the farther the pixel is from the
start of the map. Runtimes compute positions in float32 at least, whatever the dtype of the map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.rearrange import rearrange
from deconvfix.core.steps import Conv, ConvTranspose, Resize, Step, run
from deconvfix.forms.base import Compiled
from deconvfix.parity.bounds import LIMIT, rounding_unit

__all__ = ["Definition", "by_definition", "rounds_positions", "sum_unit"]

Array = NDArray[Any]
_FLOAT32_EPS = 2.0**-23


@dataclass(frozen=True, eq=False)
class Definition:
    """What a layer should give on an input.

    Attributes:
        value: (N, C_out, *L_out), in float64.
        rounding: The difference that one rounding explains, for each element of `value`.
    """

    value: Array
    rounding: Array


def by_definition(
    compiled: Compiled, x: Array, weight: Array, bias: Array | None, eps: float
) -> Definition:
    """Runs a layer's steps in NumPy, in float64.

    Args:
        compiled: The layer in its form.
        x: The layer's input, (N, C_in, *L).
        weight: The weight of the steps' convolution, in the layout of that step.
        bias: The layer's bias, (C_out,), or None.
        eps: Distance of 1 from the next number of the dtype that the layer runs in.
    """
    steps = compiled.steps
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    if bias is not None:
        bias = rearrange(compiled.bias, bias.astype(np.float64))
    size_of_bias = None if bias is None else np.abs(bias)
    value = run(steps, x, weight, bias)
    rounding = sum_unit(steps, eps) * run(steps, np.abs(x), np.abs(weight), size_of_bias)
    for index, step in enumerate(steps):
        if isinstance(step, Resize) and _rounded_axes(step):
            moved = _position_rounding(step, run(steps[:index], x, weight, bias))
            no_bias = None if bias is None else np.zeros_like(bias)
            reached = run(steps[index + 1 :], moved, np.abs(weight), no_bias)
            rounding = rounding + min(eps, _FLOAT32_EPS) * reached
    return Definition(value, rounding)


def rounds_positions(steps: Sequence[Step]) -> bool:
    """Whether there are positions that a runtime rounds: then rounding grows with the size of the map."""
    return any(isinstance(step, Resize) and bool(_rounded_axes(step)) for step in steps)


def _rounded_axes(step: Resize) -> tuple[int, ...]:
    """The spatial axes along which positions are no binary fractions."""
    if step.interpolation == "nearest":
        return ()
    return tuple(axis for axis, factor in enumerate(step.factors) if factor & (factor - 1))


def sum_unit(steps: Sequence[Step], eps: float) -> float:
    """What one rounding explains of the sums, relative to the magnitudes of their terms."""
    convolution = next(step for step in steps if isinstance(step, Conv | ConvTranspose))
    layer = convolution.spec if isinstance(convolution, ConvTranspose) else convolution
    terms = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    unit = rounding_unit(eps, terms)
    if any(isinstance(step, Resize) for step in steps):
        return max(unit, eps * terms / LIMIT)
    return unit


def _position_rounding(step: Resize, x: Array) -> Array:
    """How far one rounding of each position moves the upsampled map, in units of eps.

    Args:
        step: A linear upsampling.
        x: What it gets, (N, C, *L).

    Returns:
        (N, C, *(L * factors)).
    """
    no_weight = np.empty(0)
    rounded = _rounded_axes(step)
    moved = np.zeros_like(x)
    for axis, factor in enumerate(step.factors):
        factors = tuple(factor if other == axis else 1 for other in range(len(step.factors)))
        along = (Resize(factors, "linear"),)
        x, moved = run(along, x, no_weight), run(along, moved, no_weight)
        if axis not in rounded:
            continue
        # A position between two input pixels has an output neighbour between the same two; one on an
        # input pixel has one on either side, and rounding may take it to either side.
        jump = np.abs(np.diff(x, axis=2 + axis))
        ends = [(0, 0)] * x.ndim
        ends[2 + axis] = (1, 0)
        before = np.pad(jump, ends)
        ends[2 + axis] = (0, 1)
        slope = factor * np.maximum(before, np.pad(jump, ends))
        length = x.shape[2 + axis]
        position = (np.arange(length) + 0.5) / factor  # from the map's edge
        moved = moved + position.reshape(-1, *(1,) * (x.ndim - 3 - axis)) * slope
    return moved
