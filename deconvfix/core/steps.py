"""The narrow waist: what a converted layer does, as a short tuple of steps.

A form compiles a `ConvTransposeSpec` into steps; a front end writes each kind of step into its own
graph. The steps hold numbers only, no weights: each tuple has one `Conv`, `PhaseConvs` or
`ConvTranspose` step, which takes the layer's weight, and `run` gives their executable meaning in NumPy.

Arrays have the shape (N, C, *L) with one to three spatial axes L. Amounts are per spatial axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec

__all__ = [
    "AddBias",
    "Conv",
    "ConvTranspose",
    "Crop",
    "Interpolation",
    "LocalMeans",
    "Pad",
    "PadMode",
    "Pairs",
    "PhaseConv",
    "PhaseConvs",
    "PixelShuffle",
    "Resize",
    "Step",
    "ZeroPhases",
    "run",
]

Array = NDArray[Any]
Pairs = tuple[tuple[int, int], ...]
PadMode = Literal["zeros", "reflect", "replicate"]
Interpolation = Literal["nearest", "linear"]


@dataclass(frozen=True)
class Pad:
    """Adds `(begin, end)` pixels per axis: zeros, `reflect` (32|123) or `replicate` (11|123).

    `reflect` wider than the map reflects again and again, as `numpy.pad` does.
    """

    amounts: Pairs
    mode: PadMode


@dataclass(frozen=True)
class Crop:
    """Removes `(begin, end)` pixels per axis."""

    amounts: Pairs


@dataclass(frozen=True)
class Resize:
    """Upsamples by whole factors: nearest, or linear with half-pixel centres (align_corners=False)."""

    factors: tuple[int, ...]
    interpolation: Interpolation


@dataclass(frozen=True)
class LocalMeans:
    """(N, C, *L) -> (N, 2*C, *L): in each group of channels the channels, and then their local means.

    The mean weights the pixels at distance i with reach + 1 - |i|, on each axis: the mean of reach + 1
    neighbours, taken twice. The map is continued by its border (11|123).
    """

    reach: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Conv:
    """Cross-correlation of stride 1 with zero padding `(amount, amount)` per axis.

    Its weight has the shape (out_channels, in_channels / groups, *kernel_size).
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    bias: bool


@dataclass(frozen=True)
class PhaseConv:
    """The convolution of one phase.

    Attributes:
        taps: Per axis the taps of the layer's kernel that it takes, in their order; empty where no tap
            reaches the phase, and all of it is the bias.
        pads: Zeros `(begin, end)` per axis; a negative number cuts pixels off.
    """

    taps: tuple[tuple[int, ...], ...]
    pads: Pairs


@dataclass(frozen=True)
class PhaseConvs:
    """(N, C_in, *L) -> (N, C_out*s_1*..*s_n, *U): a convolution of stride 1 for each phase.

    Channels are ordered as for `PixelShuffle`, which comes next. Its weight has the shape
    (in_channels, out_channels / groups, *k), and its bias (out_channels,).
    """

    phases: tuple[PhaseConv, ...]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    bias: bool

    def growth(self) -> Pairs:
        """Pixels `(begin, end)` by which the maps of the phases are larger than the input, together."""
        first = self.phases[0]
        kernel_size = self.conv(first).kernel_size
        reach = [d * (k - 1) for d, k in zip(self.dilation, kernel_size, strict=True)]
        return tuple((b, e - r) for (b, e), r in zip(first.pads, reach, strict=True))

    def conv(self, phase: PhaseConv) -> Conv:
        """The convolution of a phase, without its padding."""
        kernel_size = tuple(map(len, phase.taps)) or (1,) * len(self.dilation)
        channels = self.in_channels, self.out_channels
        nothing = (0,) * len(kernel_size)
        return Conv(*channels, kernel_size, nothing, self.dilation, self.groups, self.bias)


@dataclass(frozen=True)
class ConvTranspose:
    """The transposed convolution itself, for forms that correct its weight and keep the layer."""

    spec: ConvTransposeSpec


@dataclass(frozen=True)
class PixelShuffle:
    """(N, C*r_1*..*r_n, *L) -> (N, C, L_1*r_1, ..., L_n*r_n).

    Channels are ordered as in torch.nn.PixelShuffle, which is ONNX DepthToSpace with mode CRD:
    channel (c*r_1 + f_1)*r_2 + f_2 gives pixels (f_1, f_2) of channel c.
    """

    factors: tuple[int, ...]


@dataclass(frozen=True)
class ZeroPhases:
    """(N, C*r_1*..*r_n, *L) -> (N, C*s_1*..*s_n, *L): channels of zeros for phases without a tap.

    Comes before a pixel shuffle by the strides, where the convolution computed only `blocks` of the
    phases: phase f*gap of the result is phase f of the input, the others are zero.
    """

    blocks: tuple[int, ...]
    gaps: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class AddBias:
    """Adds the layer's bias, of shape (C,), where the convolution could not: after `ZeroPhases`."""


Convolution = Conv | PhaseConvs | ConvTranspose
Step = Pad | Crop | Resize | LocalMeans | Convolution | PixelShuffle | ZeroPhases | AddBias


def run(steps: Sequence[Step], x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Runs steps in NumPy.

    Args:
        steps: What to do, in order.
        x: Input, (N, C_in, *L).
        weight: Weight of the one `Conv` or `ConvTranspose` step, in that step's layout.
        bias: Bias of the step that adds one, or None.

    Returns:
        The output, (N, C_out, *L_out).

    A pixel shuffle makes pixels of neighbouring channels; linear upsampling has half-pixel centres, so that
    no output pixel lies on an input pixel:

    >>> x, unused = np.arange(4.0), np.zeros(())
    >>> run([PixelShuffle((2, 2))], x.reshape(1, 4, 1, 1), unused)
    array([[[[0., 1.],
             [2., 3.]]]])
    >>> run([Resize((2,), "linear")], x.reshape(1, 1, 4), unused)
    array([[[0.  , 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.  ]]])
    """
    for step in steps:
        match step:
            case Pad(amounts, mode):
                x = _pad(x, amounts, mode)
            case Crop(amounts):
                spatial = zip(amounts, x.shape[2:], strict=True)
                x = x[_last(slice(b, n - e) for (b, e), n in spatial)]
            case Resize(factors, interpolation):
                for axis, factor in enumerate(factors, start=2):
                    x = _resize_axis(x, axis, factor, interpolation)
            case LocalMeans():
                x = _local_means(x, step)
            case Conv():
                x = _conv(x, weight, step)
                if step.bias and bias is not None:
                    x = _add_bias(x, bias)
            case PhaseConvs():
                x = _phase_convs(x, weight, step)
                if step.bias and bias is not None:
                    x = _add_bias(x, np.repeat(bias, len(step.phases)))
            case ConvTranspose(spec):
                x = _conv_transpose(x, weight, spec)
                if bias is not None:
                    x = _add_bias(x, bias)
            case PixelShuffle(factors):
                x = _pixel_shuffle(x, factors)
            case ZeroPhases():
                x = _zero_phases(x, step)
            case AddBias():
                assert bias is not None
                x = _add_bias(x, bias)
    return x


def _last(index: Iterable[Any]) -> tuple[Any, ...]:
    """An index into the last axes."""
    return (..., *index)


def _pad(x: Array, amounts: Pairs, mode: PadMode) -> Array:
    widths = [(0, 0), (0, 0), *amounts]
    if mode == "zeros":
        return np.pad(x, widths)
    return np.pad(x, widths, mode="reflect" if mode == "reflect" else "edge")


def _resize_axis(x: Array, axis: int, factor: int, interpolation: Interpolation) -> Array:
    if factor == 1:
        return x
    if interpolation == "nearest":
        return np.repeat(x, factor, axis)
    length = x.shape[axis]
    # Output pixel u lies at (u + 0.5) / factor - 0.5 between input pixels, held inside the map.
    position = np.clip((np.arange(length * factor) + 0.5) / factor - 0.5, 0, length - 1)
    lower = position.astype(np.int64)
    upper = np.minimum(lower + 1, length - 1)
    fraction = (position - lower).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    result: Array = np.take(x, lower, axis) * (1 - fraction) + np.take(x, upper, axis) * fraction
    return result


def _local_means(x: Array, step: LocalMeans) -> Array:
    means = x
    for axis, reach in enumerate(step.reach, start=2):
        # Integers are summed first: their sums are exact.
        padded = np.moveaxis(means, axis, -1)
        padded = np.pad(padded, [(0, 0)] * (x.ndim - 1) + [(reach, reach)], mode="edge")
        length = x.shape[axis]
        weights = reach + 1 - np.abs(np.arange(-reach, reach + 1))
        total = sum(w * padded[..., i : i + length] for i, w in enumerate(weights))
        means = np.moveaxis(np.asarray(total) / weights.sum(), -1, axis)
    # (N, C, *L) twice -> (N, g, C/g, *L) twice -> (N, 2*C, *L)
    shape = (x.shape[0], step.groups, -1, *x.shape[2:])
    both = np.concatenate([x.reshape(shape), means.reshape(shape).astype(x.dtype)], 2)
    return both.reshape(x.shape[0], -1, *x.shape[2:])


def _conv(x: Array, weight: Array, step: Conv) -> Array:
    groups = step.groups
    x = _pad(x, tuple((p, p) for p in step.padding), "zeros")
    sizes = [
        n - d * (k - 1)
        for n, k, d in zip(x.shape[2:], step.kernel_size, step.dilation, strict=True)
    ]
    # (N, C_in, *L) -> (N, g, C_in/g, *L);  (C_out, C_in/g, *k) -> (g, C_out/g, C_in/g, *k)
    x = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    w = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    y = np.zeros((x.shape[0], groups, w.shape[1], *sizes), np.result_type(x, weight))
    for tap in itertools.product(*(range(k) for k in step.kernel_size)):
        window = tuple(
            slice(j * d, j * d + n) for j, d, n in zip(tap, step.dilation, sizes, strict=True)
        )
        # The group axis stays in front, so that groups never mix.
        y += np.einsum("ngi...,goi->ngo...", x[_last(window)], w[_last(tap)])
    return y.reshape(y.shape[0], groups * w.shape[1], *sizes)


def _phase_convs(x: Array, weight: Array, step: PhaseConvs) -> Array:
    maps = []
    for phase in step.phases:
        conv = step.conv(phase)
        padded = _pad(x, tuple((max(b, 0), max(e, 0)) for b, e in phase.pads), "zeros")
        spatial = zip(phase.pads, padded.shape[2:], strict=True)
        padded = padded[_last(slice(max(-b, 0), n - max(-e, 0)) for (b, e), n in spatial)]
        if phase.taps:
            chosen = weight
            for axis, taps in enumerate(phase.taps, start=2):
                chosen = np.take(chosen, taps, axis)
        else:
            chosen = np.zeros((*weight.shape[:2], *conv.kernel_size), weight.dtype)
        # (C_in, C_out/g, *q) -> (g, C_in/g, C_out/g, *q) -> (C_out, C_in/g, *q)
        chosen = chosen.reshape(step.groups, -1, *chosen.shape[1:]).swapaxes(1, 2)
        maps.append(_conv(padded, chosen.reshape(-1, *chosen.shape[2:]), conv))
    y = np.stack(maps, 2)
    return y.reshape(y.shape[0], -1, *y.shape[3:])


def _conv_transpose(x: Array, weight: Array, spec: ConvTransposeSpec) -> Array:
    groups = spec.groups
    sizes = [
        (n - 1) * s + big_k
        for n, s, big_k in zip(x.shape[2:], spec.stride, spec.effective_kernel_size, strict=True)
    ]
    # (N, C_in, *L) -> (N, g, C_in/g, *L);  (C_in, C_out/g, *k) -> (g, C_in/g, C_out/g, *k)
    x = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    w = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    y = np.zeros((x.shape[0], groups, w.shape[2], *sizes), np.result_type(x, weight))
    for tap in itertools.product(*(range(k) for k in spec.kernel_size)):
        reached = tuple(
            slice(j * d, j * d + (n - 1) * s + 1, s)
            for j, d, s, n in zip(tap, spec.dilation, spec.stride, x.shape[3:], strict=True)
        )
        # Each tap writes a copy of the input, s pixels apart and shifted by its place.
        y[_last(reached)] += np.einsum("ngi...,gio->ngo...", x, w[_last(tap)])
    y = y.reshape(y.shape[0], spec.out_channels, *sizes)
    # Appended positions are reached by no tap, and hold the bias that is added later.
    y = _pad(y, tuple((0, op) for op in spec.output_padding), "zeros")
    ends = zip(spec.padding, y.shape[2:], strict=True)
    result: Array = y[_last(slice(b, n - e) for (b, e), n in ends)]
    return result


def _pixel_shuffle(x: Array, factors: tuple[int, ...]) -> Array:
    batch, channels, *sizes = x.shape
    n = len(factors)
    # (N, C*r_1*..*r_n, *L) -> (N, C, r_1, .., r_n, L_1, .., L_n) -> (N, C, L_1, r_1, .., L_n, r_n)
    x = x.reshape(batch, channels // math.prod(factors), *factors, *sizes)
    order = [axis for i in range(n) for axis in (2 + n + i, 2 + i)]
    x = x.transpose(0, 1, *order)
    return x.reshape(*x.shape[:2], *(size * r for size, r in zip(sizes, factors, strict=True)))


def _zero_phases(x: Array, step: ZeroPhases) -> Array:
    batch, channels, *sizes = x.shape
    # (N, C*r_1*..*r_n, *L) -> (N, C, r_1, .., r_n, *L)
    x = x.reshape(batch, channels // math.prod(step.blocks), *step.blocks, *sizes)
    y = np.zeros((*x.shape[:2], *step.strides, *sizes), x.dtype)
    reached = (
        slice(0, block * gap, gap) for block, gap in zip(step.blocks, step.gaps, strict=True)
    )
    y[(slice(None), slice(None), *reached)] = x
    return y.reshape(batch, -1, *sizes)


def _add_bias(x: Array, bias: Array) -> Array:
    return x + bias.reshape(-1, *(1,) * (x.ndim - 2))
