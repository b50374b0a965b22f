"""The exact form without crops at the begin: by the windows of the output phases.

*union*: one convolution over the union of the windows, with zero taps where a phase has none. *phases*: one
convolution for each phase, with its own taps alone; together they have the taps of the layer, none of them
zero. The algebra is that of `core.windows`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from deconvfix.core.rearrange import Merge, Permute, Pick, Repeat, Split, Verb, ZeroExtend
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Conv, Crop, PhaseConv, PhaseConvs, PixelShuffle, Step
from deconvfix.core.windows import AxisWindows, windows
from deconvfix.forms.base import Compiled, zero_border

__all__ = ["compile_phases", "compile_union", "elements_of_union", "verbs_of_phase"]


def compile_union(spec: ConvTransposeSpec) -> Compiled:
    """Steps: pad, Conv over the union of all windows, PixelShuffle, and a crop where there is a surplus.

    A 4 x 4 kernel of stride 2 and padding 1 becomes 4 phases of 3 x 3 taps, and nothing is cropped:

    >>> spec = ConvTransposeSpec.create(8, 6, (4, 4), stride=2, padding=1)
    >>> compile_union(spec).steps[1:]
    (PixelShuffle(factors=(2, 2)),)
    """
    axes = windows(spec)
    unions = [axis.union() for axis in axes]
    conv = Conv(
        in_channels=spec.in_channels,
        out_channels=spec.out_channels * math.prod(spec.stride),
        kernel_size=tuple(size for _, size, _ in unions),
        padding=(0,) * spec.ndim,
        dilation=tuple(distance for _, _, distance in unions),
        groups=spec.groups,
        bias=spec.bias,
    )
    amounts = tuple(
        axis.pads(first, distance * (size - 1))
        for axis, (first, size, distance) in zip(axes, unions, strict=True)
    )
    taps = elements_of_union(spec)
    return Compiled(
        steps=(*zero_border(conv, amounts), *_shuffled(spec, axes)),
        weight=_union_verbs(axes),
        bias=(Repeat(math.prod(spec.stride)),),
        macs_per_position=spec.macs_per_position() // math.prod(spec.kernel_size) * taps,
    )


def elements_of_union(spec: ConvTransposeSpec) -> int:
    """Taps of all phases together, zeros included, for each pair of channels."""
    return math.prod(len(axis.phases) * axis.union()[1] for axis in windows(spec))


def compile_phases(spec: ConvTransposeSpec) -> Compiled:
    """Steps: the convolutions of the phases, PixelShuffle, and a crop where there is a surplus."""
    axes = windows(spec)
    phases = []
    for chosen in itertools.product(*(axis.phases for axis in axes)):
        empty = not all(window.taps for window in chosen)
        # Without taps the position's own pixel stands for a window, with a weight of zero.
        places = [(0, 1) if empty else (one.first, len(one.taps)) for one in chosen]
        pads = tuple(
            axis.pads(first, axis.gap * (size - 1))
            for axis, (first, size) in zip(axes, places, strict=True)
        )
        phases.append(PhaseConv(() if empty else tuple(one.taps for one in chosen), pads))
    convs = PhaseConvs(
        phases=tuple(phases),
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        kernel_size=spec.kernel_size,
        dilation=tuple(axis.gap for axis in axes),
        groups=spec.groups,
        bias=spec.bias,
    )
    return Compiled(
        steps=(convs, *_shuffled(spec, axes)),
        weight=(Merge(0, 1),),
        bias=(),
        macs_per_position=spec.macs_per_position(),
    )


def verbs_of_phase(phase: PhaseConv, kernel_size: Sequence[int]) -> tuple[Verb, ...]:
    """Verbs from the layer's weight to that of one phase, (C_out, C_in / groups, *taps)."""
    n = len(kernel_size)
    axes = tuple(3 + i for i in range(n))
    picked = phase.taps or tuple((k,) for k in kernel_size)
    # A tap of zeros behind the others, for a phase without one.
    zeros: tuple[Verb, ...] = () if phase.taps else (ZeroExtend((0, 0, 0, *(1,) * n)),)
    return (
        *zeros,
        *(Pick(axis, numbers) for axis, numbers in zip(axes, picked, strict=True)),
        Permute((0, 2, 1, *axes)),
        Merge(0, 1),
    )


def _shuffled(spec: ConvTransposeSpec, axes: tuple[AxisWindows, ...]) -> tuple[Step, ...]:
    steps: list[Step] = []
    if math.prod(spec.stride) > 1:
        steps.append(PixelShuffle(spec.stride))
    if any(axis.surplus for axis in axes):
        steps.append(Crop(tuple((0, axis.surplus) for axis in axes)))
    return tuple(steps)


def _union_verbs(axes: tuple[AxisWindows, ...]) -> tuple[Verb, ...]:
    n = len(axes)
    picked = [axis.taps_in_union() for axis in axes]
    # A tap of zeros behind the others, where a phase has none.
    missing = [int(axis.stored in numbers) for axis, numbers in zip(axes, picked, strict=True)]
    f_axes = tuple(3 + 2 * i for i in range(n))
    m_axes = tuple(4 + 2 * i for i in range(n))
    return (
        ZeroExtend((0, 0, 0, *missing)),
        *(Pick(3 + i, numbers) for i, numbers in enumerate(picked)),
        *(Split(3 + i, (len(axes[i].phases), -1)) for i in reversed(range(n))),
        # (g, C_in/g, C_out/g, f_1, m_1, .., f_n, m_n) -> (g, C_out/g, f_1, .., f_n, C_in/g, *m)
        Permute((0, 2, *f_axes, 1, *m_axes)),
        # -> (C_out*f_1*..*f_n, C_in/g, *m)
        Merge(0, 1 + n),
    )
