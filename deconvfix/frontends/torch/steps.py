"""The verbs and steps of the waist, written with torch's functions.

Works for tensors of any dtype and device, batched or not, under autograd, autocast, torch.compile,
torch.export and torch.fx (where each helper is one leaf of the graph). Spatial axes are counted from
the end, so nothing here asks whether there is a batch axis.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deconvfix.core.rearrange import Flip, Merge, Permute, Pick, Repeat, Split, Verb, ZeroExtend
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import (
    AddBias,
    Conv,
    ConvTranspose,
    Crop,
    Interpolation,
    LocalMeans,
    Pad,
    PadMode,
    Pairs,
    PhaseConvs,
    PixelShuffle,
    Resize,
    Step,
    ZeroPhases,
)
from deconvfix.forms.base import Compiled, Settings
from deconvfix.forms.subpixel import SUBPIXEL

__all__ = [
    "add_bias",
    "apply_steps",
    "carry_out",
    "compile_exact",
    "conv_transpose",
    "crop",
    "cropped",
    "local_means",
    "mode_of",
    "pad",
    "per_axis",
    "pixel_shuffle",
    "rearrange_tensor",
    "resize",
    "shorten",
    "shuffled",
    "with_zero_phases",
    "zero_phases",
]

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def rearrange_tensor(verbs: Sequence[Verb], tensor: Tensor, groups: int = 1) -> Tensor:
    """`deconvfix.core.rearrange.rearrange` for a tensor: differentiable, on its device, in its dtype."""
    if tensor.dim() > 1:
        tensor = torch.unflatten(tensor, 0, (groups, -1))
    return carry_out(verbs, tensor)


def carry_out(verbs: Sequence[Verb], tensor: Tensor) -> Tensor:
    """The verbs on a tensor as it is, without making the group axis; for `inverse`."""
    for verb in verbs:
        match verb:
            case Split(axis, sizes):
                tensor = torch.unflatten(tensor, axis, sizes)
            case Merge(first, last):
                tensor = tensor.flatten(first, last)
            case ZeroExtend(amounts):
                if any(amounts):
                    tensor = F.pad(tensor, [n for a in reversed(amounts) for n in (0, a)])
            case Permute(order):
                tensor = tensor.permute(order)
            case Flip(axes):
                tensor = tensor.flip(axes)
            case Repeat(times):
                tensor = tensor.repeat_interleave(times)
            case Pick(axis, numbers):
                tensor = torch.cat([tensor.narrow(axis, number, 1) for number in numbers], axis)
    return tensor


def apply_steps(
    steps: Sequence[Step], x: Tensor, weight: Tensor, bias: Tensor | None, groups: int
) -> Tensor:
    """`deconvfix.core.steps.run` for tensors.

    Args:
        steps: What to do.
        x: Input, (N, C_in, *L) or (C_in, *L).
        weight: In the layout of the steps' convolution.
        bias: For the step that adds one, or None.
        groups: Groups of the convolution; may be symbolic, unlike those in the step.
    """
    for step in steps:
        match step:
            case Pad(amounts, mode):
                x = pad(x, amounts, mode)
            case Crop(amounts):
                x = crop(x, amounts)
            case Resize(factors, interpolation):
                x = resize(x, factors, interpolation)
            case LocalMeans(reach):
                x = local_means(x, reach, groups)
            case Conv():
                convolution = _CONVOLUTIONS[len(step.kernel_size)]
                own_bias = bias if step.bias else None
                x = convolution(x, weight, own_bias, 1, step.padding, step.dilation, groups)
            case PixelShuffle(factors):
                x = pixel_shuffle(x, factors)
            case ZeroPhases(blocks, gaps, strides):
                x = zero_phases(x, blocks, gaps, strides)
            case AddBias():
                assert bias is not None
                x = add_bias(x, bias, weight.dim() - 2)
            case ConvTranspose() | PhaseConvs():
                raise AssertionError(f"{type(step).__name__} is not written as a step of torch")
    return x


@torch.fx.wrap
def pad(x: Tensor, amounts: Pairs, mode: PadMode) -> Tensor:
    """`steps.Pad`. Reflection wider than the map goes on from the extended map, as in NumPy."""
    if mode == "zeros":
        return F.pad(x, _flat(amounts))
    if mode == "replicate":
        return F.pad(x, _flat(amounts), mode="replicate")
    while not torch.compiler.is_compiling() and any(map(any, amounts)):
        sizes = x.shape[-len(amounts) :]
        single = tuple(p if n == 1 else (0, 0) for p, n in zip(amounts, sizes, strict=True))
        if any(map(any, single)):
            # A map of one pixel has nothing to reflect but itself.
            x = F.pad(x, _flat(single), mode="replicate")
            amounts = tuple((0, 0) if n == 1 else p for p, n in zip(amounts, sizes, strict=True))
            continue
        now = tuple(
            (min(b, n - 1), min(e, n - 1)) for (b, e), n in zip(amounts, sizes, strict=True)
        )
        x = F.pad(x, _flat(now), mode="reflect")
        amounts = tuple(
            (b - done_b, e - done_e) for (b, e), (done_b, done_e) in zip(amounts, now, strict=True)
        )
    return F.pad(x, _flat(amounts), mode="reflect") if any(map(any, amounts)) else x


@torch.fx.wrap
def crop(x: Tensor, amounts: Pairs) -> Tensor:
    """`steps.Crop`; the result is dense in memory, as a convolution's would be.

    Raises:
        RuntimeError: If less than nothing is left, where torch's own layer raises too.
    """
    inside = tuple(slice(b or None, -e or None) for b, e in amounts)
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        # Keeping the order of memory would compare symbolic strides.
        return x[(..., *inside)].clone(memory_format=torch.contiguous_format)
    sizes = x.shape[-len(amounts) :]
    if any(n < b + e for n, (b, e) in zip(sizes, amounts, strict=True)):
        raise RuntimeError(
            f"the transposed convolution has no output for this input: cropping {amounts} from "
            f"{tuple(sizes)} pixels leaves less than nothing; use a larger input"
        )
    return x[(..., *inside)].clone()


@torch.fx.wrap
def shorten(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """The first pixels of each axis: (.., *L) -> (.., *sizes), dense in memory.

    An output_padding appends pixels at the end: the result of a smaller one is the begin of that of a larger
    one. The sizes may be symbolic; a slice of several axes would ask, as torch looks whether it is dense.
    """
    have = x.shape[-len(sizes) :]
    return F.pad(x, _flat(tuple((0, size - n) for n, size in zip(have, sizes, strict=True))))


@torch.fx.wrap
def resize(x: Tensor, factors: tuple[int, ...], interpolation: Interpolation) -> Tensor:
    """`steps.Resize`, also for unbatched inputs."""
    if x.dim() == len(factors) + 1:
        return resize(x[None], factors, interpolation)[0]
    scale = [float(factor) for factor in factors]
    if interpolation == "nearest":
        return F.interpolate(x, scale_factor=scale, mode="nearest")
    mode = mode_of(interpolation, len(factors))
    return F.interpolate(x, scale_factor=scale, mode=mode, align_corners=False)


def mode_of(interpolation: Interpolation, ndim: int) -> str:
    """What torch calls an interpolation."""
    return "nearest" if interpolation == "nearest" else _LINEAR[ndim]


@torch.fx.wrap
def local_means(x: Tensor, reach: tuple[int, ...], groups: int) -> Tensor:
    """`steps.LocalMeans`, also for unbatched inputs."""
    n = len(reach)
    if x.dim() == n + 1:
        return local_means(x[None], reach, groups)[0]
    means = F.pad(x, _flat(tuple((r, r) for r in reach)), mode="replicate")
    channels = x.shape[1]
    # A depthwise convolution for each axis: ten times as fast as torch's pooling on a CPU.
    for axis, r in enumerate(reach):
        if r:
            # Computed from integers, not written down: constants would be state of a graph, of one dtype.
            distance = torch.arange(-r, r + 1, device=x.device).abs()
            shape = [1] * (2 + n)
            shape[2 + axis] = 2 * r + 1
            kernel = x.new_ones(1) * (r + 1 - distance) / (r + 1) ** 2
            kernel = kernel.reshape(shape)
            kernel = kernel.expand(channels, *shape[1:])
            means = _CONVOLUTIONS[n](means, kernel, groups=channels)
    if groups == 1:
        return torch.cat([x, means], 1)
    # (N, C, *L) twice -> (N, g, C/g, *L) twice -> (N, 2*C, *L)
    grouped = (x.shape[0], groups, channels // groups, *x.shape[2:])
    both = [tensor.reshape(grouped) for tensor in (x, means)]
    return torch.cat(both, 2).flatten(1, 2)


@torch.fx.wrap
def pixel_shuffle(x: Tensor, factors: Sequence[int]) -> Tensor:
    """`steps.PixelShuffle`: torch's own where it applies (two axes, one factor)."""
    n = len(factors)
    if n == 2 and factors[0] == factors[1]:
        return F.pixel_shuffle(x, factors[0])
    if not torch.compiler.is_compiling():
        return shuffled(x, list(factors))
    # (.., C*r_1*..*r_n, *L) -> (.., C, r_1, .., r_n, *L)
    x = torch.unflatten(x, -n - 1, (-1, *factors))
    # One axis at a time: r_1 and L_1 to the end, merged, and so on until the order is restored.
    # The strides of one large permutation tie symbolic sizes to each other.
    for i in range(n):
        x = x.movedim((i - 2 * n, -n), (-1, -2)).flatten(-2)
    return x


@torch.fx.wrap
def zero_phases(
    x: Tensor, blocks: Sequence[int], gaps: Sequence[int], strides: Sequence[int]
) -> Tensor:
    """`steps.ZeroPhases`."""
    return with_zero_phases(x, list(blocks), list(gaps), list(strides))


# --- functions that TorchScript compiles ---------------------------------------------------------------
# Reshape, permute, slice and pad alone: what is made from a trace knows little else (Core ML, ncnn).


def shuffled(x: Tensor, factors: list[int]) -> Tensor:
    """`steps.PixelShuffle` for any number of axes: one reshape, one permutation, one reshape."""
    n = len(factors)
    # Of the shape as a list: TorchScript takes a convolution's result for batched if it is asked for dim().
    shape = list(x.shape)
    lead = len(shape) - n - 1
    split: list[int] = []
    merged: list[int] = []
    order: list[int] = []
    for i in range(lead):
        split.append(shape[i])
        merged.append(shape[i])
        order.append(i)
    # (.., C*r_1*..*r_n, *L) -> (.., C, r_1, .., r_n, *L) -> (.., C, L_1, r_1, .., L_n, r_n)
    phases = 1
    for factor in factors:
        phases *= factor
    channels = shape[lead] // phases
    split.append(channels)
    merged.append(channels)
    order.append(lead)
    for factor in factors:
        split.append(factor)
    for i in range(n):
        size = shape[lead + 1 + i]
        split.append(size)
        merged.append(size * factors[i])
        order.append(lead + 1 + n + i)
        order.append(lead + 1 + i)
    return x.reshape(split).permute(order).reshape(merged)


def with_zero_phases(x: Tensor, blocks: list[int], gaps: list[int], strides: list[int]) -> Tensor:
    """`steps.ZeroPhases`: zeros between the phases of a gap, and after the last one."""
    n = len(blocks)
    shape = list(x.shape)
    lead = len(shape) - n - 1
    begin, end = shape[:lead], shape[lead + 1 :]
    computed, phases = 1, 1
    for i in range(n):
        computed *= blocks[i]
        phases *= strides[i]
    channels = shape[lead] // computed
    # (.., C*r_1*..*r_n, *L) -> (.., C, r_1, .., r_n, *L)
    x = x.reshape(begin + [channels] + blocks + end)  # noqa: RUF005 - TorchScript has no splats
    for i in range(n):
        if gaps[i] > 1 and blocks[i] > 1:
            # (r) -> (r, 1) -> (r, gap) -> (r*gap)
            dim = lead + 1 + i
            amounts = [0, 0] * (2 * n - 1 - i) + [0, gaps[i] - 1]
            x = F.pad(x.unsqueeze(dim + 1), amounts).flatten(dim, dim + 1)
    # A block of one phase takes no gap: it is the first phase.
    amounts = [0, 0] * n
    for i in range(n):
        last = n - 1 - i
        filled = blocks[last] * gaps[last] if blocks[last] > 1 else 1
        amounts += [0, strides[last] - filled]
    return F.pad(x, amounts).reshape(begin + [channels * phases] + end)  # noqa: RUF005


def cropped(x: Tensor, begins: list[int], ends: list[int]) -> Tensor:
    """`steps.Crop`; torch raises where less than nothing is left."""
    for i in range(len(begins)):
        dim = i - len(begins)
        x = x.narrow(dim, begins[i], x.size(dim) - begins[i] - ends[i])
    return x


@torch.fx.wrap
def add_bias(x: Tensor, bias: Tensor, ndim: int) -> Tensor:
    """`steps.AddBias`; under autocast the bias follows the convolution's dtype."""
    bias = bias if bias.dtype == x.dtype else bias.to(x.dtype)
    return x + bias.reshape(-1, *(1,) * ndim)


@torch.fx.wrap
def conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Drop-in for torch.nn.functional.conv_transpose1d, 2d and 3d that runs the sub-pixel form.

    The weight is rearranged while the model runs, by differentiable operations, so it may be computed
    from the input (modulated convolutions), tied or parametrized. Groups and batch may be symbolic.

    Args:
        input: (N, C_in, *L) or (C_in, *L).
        weight: (C_in, C_out / groups, *kernel_size).
        bias: (C_out,) or None.
    """
    ndim = weight.dim() - 2
    strides, amounts = per_axis(stride, ndim), per_axis(output_padding, ndim)
    compiled = _compile(
        tuple(int(k) for k in weight.shape[2:]),
        strides,
        per_axis(padding, ndim),
        # Where the amount is not known yet, the largest; what is too much is cut off below.
        tuple(a if isinstance(a, int) else s - 1 for a, s in zip(amounts, strides, strict=True)),
        per_axis(dilation, ndim),
        bias is not None,
    )
    if bias is not None:
        bias = rearrange_tensor(compiled.bias, bias)
    result = apply_steps(
        compiled.steps, input, rearrange_tensor(compiled.weight, weight, groups), bias, groups
    )
    if all(isinstance(amount, int) for amount in amounts):
        return result
    sizes = [
        n if isinstance(a, int) else n - (s - 1) + a
        for n, a, s in zip(result.shape[-ndim:], amounts, strides, strict=True)
    ]
    return shorten(result, sizes)


def compile_exact(spec: ConvTransposeSpec) -> Compiled:
    """The sub-pixel form of a layer with symmetric padding, remembered."""
    padding = tuple(begin for begin, _ in spec.padding)
    geometry = (spec.kernel_size, spec.stride, padding, spec.output_padding, spec.dilation)
    compiled: Compiled = _compile(*geometry, spec.bias)
    return compiled


# torch.compile takes the result as a constant instead of tracing the arithmetic behind it.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _compile(*geometry: Any) -> Compiled:
    return _compile_cached(*geometry)


@functools.lru_cache(maxsize=1024)
def _compile_cached(
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    output_padding: tuple[int, ...],
    dilation: tuple[int, ...],
    bias: bool,
) -> Compiled:
    # Neither steps nor verbs depend on channels and groups, which may be symbolic here.
    pairs = tuple((p, p) for p in padding)
    spec = ConvTransposeSpec(1, 1, kernel_size, stride, pairs, output_padding, dilation, 1, bias)
    return SUBPIXEL.compile(spec, Settings())


def per_axis(value: Any, ndim: int) -> tuple[Any, ...]:
    """torch's shorthand: an int, or one entry, stands for every axis; what is symbolic stays so."""
    if hasattr(value, "__index__"):
        value = (value,)
    values = tuple(v if isinstance(v, torch.SymInt) else int(v) for v in value)
    return values * ndim if len(values) == 1 else values


def _flat(amounts: Pairs) -> list[int]:
    """torch.nn.functional.pad wants the last axis first."""
    return [n for pair in reversed(amounts) for n in pair]
