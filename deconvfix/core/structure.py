"""What the numbers of a trained weight allow: the same function with fewer taps, fewer channels, fewer axes.

With the letters of `ConvTransposeSpec`:

*Diagonal.* A group whose kernels between different channels are zero is one layer for each channel.

*Planes of zeros* at the ends of an axis are no taps: without b of them at the begin and e at the end,
o + p_b = s*i + d*j means o + (p_b - d*b) = s*i + d*(j - b), and the output keeps its size if op - p_e grows
by d*e. Padding is not negative, so at most p_b // d go at the begin.

*Planes of zeros between taps*, where the others are m apart: o + p_b = s*i + d*m*j, a layer of dilation d*m.
If s and m have a common factor, whole phases of the output have no tap.

*Separable.* A kernel that is an outer product, W[j_1, .., j_n] = f_1[j_1] * .. * f_n[j_n], is one layer for
each axis after the other: what lies outside of the map is zero in all of them.

Factors are read off the lines through the largest tap m, divided by m**(n - 1) together, and rounded to the
weight's dtype. If the weight was an outer product before it was rounded, then the product of the factors has
n roundings from the lines, n - 1 from m and n of its own, and what it is compared with has one: it differs
by at most 3*n halves of an eps, relative to each tap. That is what `separated` accepts; it leaves the rest
of the ten eps of |W| (*) |x| that a layer's proof allows (`parity.bounds`) to the sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from deconvfix.core.spec import ConvTransposeSpec

__all__ = ["Reduced", "along", "matrix_of", "reduced", "separated"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Reduced:
    """A layer without what is zero in its weight.

    Attributes:
        spec: Its geometry.
        weight: (C_in, C_out / groups, *kernel_size) of that geometry.
        diagonal: Whether its groups have become single channels.
        planes: Planes of zeros that are left out.
    """

    spec: ConvTransposeSpec
    weight: Array
    diagonal: bool
    planes: int

    @property
    def changed(self) -> bool:
        """Whether anything is left out."""
        return self.diagonal or self.planes > 0


def reduced(spec: ConvTransposeSpec, weight: Array) -> Reduced:
    """Leaves out what is zero: kernels between different channels, and planes of the kernel.

    Args:
        spec: The layer.
        weight: (C_in, C_out / groups, *kernel_size).

    Four channels that go to themselves alone, with a last row of zeros:

    >>> weight = np.zeros((4, 4, 3, 2))
    >>> weight[range(4), range(4), :2] = 1
    >>> less = reduced(ConvTransposeSpec.create(4, 4, (3, 2), stride=2, padding=1), weight)
    >>> less.spec.groups, less.spec.kernel_size, less.spec.padding, less.weight.shape
    (4, (2, 2), ((1, 0), (1, 1)), (4, 1, 2, 2))
    """
    per_group = spec.in_channels // spec.groups
    diagonal = _is_diagonal(spec, weight)
    if diagonal:
        channels = np.arange(spec.in_channels)
        weight = weight[channels, channels % per_group][:, None]
        spec = replace(spec, groups=spec.in_channels)
    planes = 0
    for axis in range(spec.ndim):
        first, behind = _zeros_at_the_ends(weight, axis + 2)
        first = min(first, spec.padding[axis][0] // spec.dilation[axis])
        if first or behind:
            kept = slice(first, spec.kernel_size[axis] - behind)
            weight = weight[(slice(None),) * (axis + 2) + (kept,)]
            spec = _without(spec, axis, first, behind)
            planes += first + behind
        apart = _distance(weight, axis + 2, spec.stride[axis])
        if apart > 1:
            weight = weight[(slice(None),) * (axis + 2) + (slice(None, None, apart),)]
            planes += spec.kernel_size[axis] - weight.shape[axis + 2]
            spec = _dilated(spec, axis, apart)
    return Reduced(spec, weight, diagonal, planes)


def _is_diagonal(spec: ConvTransposeSpec, weight: Array) -> bool:
    per_group = spec.in_channels // spec.groups
    if per_group == 1 or spec.in_channels != spec.out_channels:
        return False
    # (g, C/g, C/g, *k): a pair of channels has taps, or has none.
    pairs = weight.reshape(spec.groups, per_group, per_group, -1)
    # One pair tells most layers apart without a look at all of the weight.
    if pairs[0, 0, 1].any():
        return False
    return not (pairs.any(axis=-1) & ~np.eye(per_group, dtype=np.bool_)).any()


def _zeros_at_the_ends(weight: Array, axis: int) -> tuple[int, int]:
    """How many planes of zeros an axis begins and ends with; one stays, even of zeros."""
    size = weight.shape[axis]
    first = last = 0
    # The end first: all that is zero there can go.
    while last < size - 1 and not weight.take(size - 1 - last, axis).any():
        last += 1
    while first < size - 1 - last and not weight.take(first, axis).any():
        first += 1
    return first, last


def _distance(weight: Array, axis: int, stride: int) -> int:
    """How far planes that are not zero are from each other at least, counted from the first, which is kept.

    Without a common factor with the stride no phase is left out, and a convolution keeps its taps of zero.
    """
    distance = 0  # all taps are in the first plane
    for plane in range(1, weight.shape[axis]):
        if weight.take(plane, axis).any():
            distance = math.gcd(distance, plane)
        # Most weights are told by their second plane, without a look at the others.
        if distance == 1:
            break
    return max(1, math.gcd(distance, stride) if distance and stride > 1 else distance)


def _dilated(spec: ConvTransposeSpec, axis: int, apart: int) -> ConvTransposeSpec:
    kernel, dilation = list(spec.kernel_size), list(spec.dilation)
    kernel[axis] = 1 + (kernel[axis] - 1) // apart
    dilation[axis] *= apart
    return replace(spec, kernel_size=tuple(kernel), dilation=tuple(dilation))


def _without(spec: ConvTransposeSpec, axis: int, first: int, behind: int) -> ConvTransposeSpec:
    kernel, padding = list(spec.kernel_size), list(spec.padding)
    output_padding = list(spec.output_padding)
    d = spec.dilation[axis]
    begin, end = padding[axis]
    more = output_padding[axis] - end + d * behind
    kernel[axis] -= first + behind
    padding[axis] = (begin - d * first, max(0, -more))
    output_padding[axis] = max(0, more)
    return replace(
        spec,
        kernel_size=tuple(kernel),
        padding=tuple(padding),
        output_padding=tuple(output_padding),
    )


def separated(weight: Array, dtype: DTypeLike) -> tuple[Array, ...] | None:
    """The factors of a depthwise kernel, one for each axis; None if it is no outer product.

    Args:
        weight: (C, 1, *k).
        dtype: That of the stored weight, which the factors are rounded to.

    Returns:
        For each axis (C, k), or (1, k) where all channels have the same factor. None also for kernels that
        have one axis alone, or none, with more than one tap.

    The taps of linear interpolation by 2, for two channels:

    >>> taps = np.multiply.outer([0.25, 0.75, 0.75, 0.25], [0.25, 0.75, 0.75, 0.25])
    >>> separated(np.stack([taps, taps])[:, None], np.float32)[0]
    array([[0.25, 0.75, 0.75, 0.25]], dtype=float32)
    """
    kernels = weight[:, 0].astype(np.float64)
    n = kernels.ndim - 1
    if sum(size > 1 for size in kernels.shape[1:]) < 2:
        return None
    channels = np.arange(len(kernels))
    flat = np.abs(kernels).reshape(len(kernels), -1).argmax(1)
    place = np.unravel_index(flat, kernels.shape[1:])
    largest = kernels[(channels, *place)]
    largest = np.where(largest == 0, 1.0, largest)  # a channel without taps has factors of zeros
    lines = []
    for axis in range(n):
        index = [place[i][:, None] for i in range(n)]
        index[axis] = np.arange(kernels.shape[axis + 1])[None]
        lines.append(kernels[(channels[:, None], *index)])
    # Equal parts give kernels that are alike on all axes their own factors, such as those of interpolation;
    # one whole line gives exact factors where the ratios of taps are.
    part = np.abs(largest) ** ((n - 1) / n)
    alike = [part, *[part * np.sign(largest)] * (n - 1)]
    whole = [np.ones_like(largest), *[largest] * (n - 1)]
    best, least = None, 1.5 * n * float(np.finfo(dtype).eps)
    for scales in (alike, whole):
        factors = [
            (line / scale[:, None]).astype(dtype) for line, scale in zip(lines, scales, strict=True)
        ]
        error = _largest_error(_product(factors), kernels)
        if error < least or (best is None and error == least):
            best, least = factors, error
    if best is None:
        return None
    return tuple(f[:1] if (f == f[:1]).all() else f for f in best)


def _largest_error(product: Array, kernels: Array) -> float:
    """Relative to each tap; infinite where one is zero and should not be, or the other way around."""
    difference = np.abs(product - kernels)
    size = np.where(kernels == 0, np.where(difference == 0, 1.0, 0.0), np.abs(kernels))
    with np.errstate(divide="ignore"):
        return float((difference / size).max())


def _product(factors: Sequence[Array]) -> Array:
    """(C, k_i) of each axis to (C, *k), in float64."""
    product = np.ones((1,) * (len(factors) + 1))
    for axis, factor in enumerate(factors):
        shape = [len(factor), *(1,) * len(factors)]
        shape[axis + 1] = factor.shape[1]
        product = product * factor.astype(np.float64).reshape(shape)
    return product


def along(spec: ConvTransposeSpec, axis: int) -> ConvTransposeSpec:
    """The part of a separable layer on one axis, without a bias: one tap, and no stride, on the others."""

    def only(values: Sequence[Any], other: Any) -> tuple[Any, ...]:
        return tuple(value if i == axis else other for i, value in enumerate(values))

    return replace(
        spec,
        kernel_size=only(spec.kernel_size, 1),
        stride=only(spec.stride, 1),
        padding=only(spec.padding, (0, 0)),
        output_padding=only(spec.output_padding, 0),
        dilation=only(spec.dilation, 1),
        bias=False,
    )


def matrix_of(spec: ConvTransposeSpec, axis: int, factor: Array, length: int) -> Array:
    """What one axis of a separable layer does, as matrices.

    Args:
        spec: The layer.
        axis: The axis.
        factor: Its taps, (C, k).
        length: L: its input pixels.

    Returns:
        (C, L_out, L), of the dtype of the factor.
    """
    one = along(spec, axis)
    size = one.output_size([length if i == axis else 1 for i in range(spec.ndim)])[axis]
    matrix = np.zeros((len(factor), size, length), factor.dtype)
    for i in range(length):
        for j in range(spec.kernel_size[axis]):
            o = spec.stride[axis] * i + spec.dilation[axis] * j - spec.padding[axis][0]
            if 0 <= o < size:
                matrix[:, o, i] += factor[:, j]
    return matrix
