"""Verbs and steps as ONNX operators.

`operators` has the operators in the version that the file has, and `pixel_shuffle` the ways to shuffle.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike

from deconvfix.core.rearrange import Flip, Merge, Permute, Pick, Repeat, Split, Verb, ZeroExtend
from deconvfix.core.steps import (
    AddBias,
    Conv,
    ConvTranspose,
    Crop,
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
from deconvfix.frontends.onnx.operators import Operators
from deconvfix.frontends.onnx.pixel_shuffle import Maps, Place, Size, pixel_shuffle, times
from deconvfix.targets.writing import Shuffle

__all__ = ["NEWEST_WITHOUT_BROADCAST", "Operands", "Writer"]

# Add broadcasts as NumPy does from the next opset on; ONNX Runtime has no older Add.
NEWEST_WITHOUT_BROADCAST = 6


@dataclass(frozen=True)
class Operands:
    """What the steps of a layer take besides its input.

    Attributes:
        weights: Of the convolution, or of those of the phases, in their layout.
        bias: For the steps that add it, or None.
        dtype: Of the values.
    """

    weights: Sequence[ir.Value]
    bias: ir.Value | None
    dtype: DTypeLike


class Writer(Operators):
    """Writes what takes the place of one layer."""

    # --- verbs ---

    def rearrange(
        self, verbs: Sequence[Verb], value: ir.Value, shape: Sequence[int], groups: int
    ) -> ir.Value:
        """`deconvfix.core.rearrange.rearrange` in the graph, for weights that are not stored.

        Args:
            verbs: What to do.
            value: A weight (C_in, C_out / groups, *k) or a bias (C_out,).
            shape: Its shape.
            groups: Groups of the layer.
        """
        now = list(shape)
        if len(now) > 1:
            now = [groups, now[0] // groups, *now[1:]]
            value = self.reshape(value, now)
        for verb in verbs:
            match verb:
                case Split(axis, sizes):
                    # A -1 makes the product of the sizes negative: this is that of the others.
                    known = -math.prod(sizes)
                    full = [now[axis] // known if n == -1 else n for n in sizes]
                    now = [*now[:axis], *full, *now[axis + 1 :]]
                    value = self.reshape(value, now)
                case Merge(first, last):
                    now = [*now[:first], math.prod(now[first : last + 1]), *now[last + 1 :]]
                    value = self.reshape(value, now)
                case ZeroExtend(amounts):
                    if any(amounts):
                        value = self.pad(value, [(0, a) for a in amounts], "zeros")
                    now = [n + a for n, a in zip(now, amounts, strict=True)]
                case Permute(order):
                    value = self.transpose(value, order)
                    now = [now[i] for i in order]
                case Flip(axes):
                    for axis in axes:
                        if now[axis] > 1:
                            value = self.gather(value, range(now[axis])[::-1], axis)
                case Repeat(copies):
                    value = self.gather(value, np.repeat(np.arange(now[0]), copies), 0)
                    now = [now[0] * copies]
                case Pick(axis, numbers):
                    value = self.gather(value, numbers, axis)
                    now[axis] = len(numbers)
        return value

    # --- steps ---

    def steps(
        self,
        steps: Sequence[Step],
        maps: Maps,
        operands: Operands,
        channels: int,
        sizes: Sequence[Size],
        shuffle: Shuffle | None = None,
    ) -> tuple[Maps, list[Size]]:
        """Writes steps; zeros around a convolution become its own padding.

        Args:
            steps: What to do.
            maps: The input, or what convolutions of single phases gave.
            operands: For the steps that take some.
            channels: Channels of the input.
            sizes: Its spatial sizes, None where they are not known before running.
            shuffle: How the pixel shuffle is written; None: as it comes out best.

        Returns:
            The output, and its spatial sizes.
        """
        sizes, is_cropped = list(sizes), False
        # Sizes and channels are carried along: what is known keeps Reshape free of -1.
        zeros: Pairs | None = None
        nothing = ((0, 0),) * len(sizes)
        for step, following in itertools.zip_longest(steps, steps[1:]):
            # Only a shuffle takes the maps of single phases.
            x = cast(ir.Value, maps)
            match step:
                case Pad(amounts, mode):
                    if mode == "zeros" and isinstance(following, Conv):
                        zeros = amounts
                        continue
                    x, rest = self._wide_reflection(x, amounts, mode, sizes)
                    maps = self.pad(x, [(0, 0), (0, 0), *rest], mode) if any(map(any, rest)) else x
                    sizes = _grown(sizes, amounts)
                case Crop(amounts):
                    maps = maps if is_cropped else self.crop(x, amounts)
                    is_cropped = False  # of what follows the shuffle, only the next crop is done
                    sizes = _grown(sizes, [(-b, -e) for b, e in amounts])
                case Resize(factors, interpolation):
                    maps = self.resize(x, factors, interpolation, sizes)
                    sizes = times(sizes, factors)
                case LocalMeans():
                    maps = self.local_means(x, step, channels)
                    channels *= 2
                case Conv():
                    (weight,) = operands.weights
                    pads = tuple(
                        (p + b, p + e)
                        for p, (b, e) in zip(step.padding, zeros or nothing, strict=True)
                    )
                    maps = self.conv(x, weight, operands.bias if step.bias else None, step, pads)
                    sizes = _grown(sizes, _growth(step, pads))
                    channels = step.out_channels
                case PhaseConvs():
                    maps = self._phase_convs(x, step, operands)
                    sizes = _grown(sizes, step.growth())
                    channels = step.out_channels * len(step.phases)
                case PixelShuffle(factors):
                    channels //= math.prod(factors)
                    crop = following.amounts if isinstance(following, Crop) else None
                    place = Place(factors, channels, tuple(sizes), crop, operands.dtype)
                    maps, is_cropped = pixel_shuffle(self, maps, place, shuffle)
                    sizes = times(sizes, factors)
                case ZeroPhases():
                    maps = self._zero_phases(x, step, channels)
                    channels = channels // math.prod(step.blocks) * math.prod(step.strides)
                case AddBias():
                    assert operands.bias is not None
                    maps = self.add_bias(x, operands.bias, channels, len(sizes))
                case ConvTranspose():
                    raise AssertionError("forms that keep the layer are not written as steps")
        return maps, sizes

    def _phase_convs(self, x: ir.Value, step: PhaseConvs, operands: Operands) -> Maps:
        bias = operands.bias if step.bias else None
        maps = [
            self.conv(x, weight, bias, step.conv(phase), phase.pads)
            for phase, weight in zip(step.phases, operands.weights, strict=True)
        ]
        # A single one is the map itself, and no shuffle follows.
        return maps if len(maps) > 1 else maps[0]

    def _wide_reflection(
        self, x: ir.Value, amounts: Pairs, mode: PadMode, sizes: Sequence[Size]
    ) -> tuple[ir.Value, Pairs]:
        """Reflections wider than the map, as Gather; and the amounts that are left for Pad.

        ONNX Runtime's Pad stops with an error there, which it still does where sizes are open.
        """
        rest = list(amounts)
        for i, (pair, size) in enumerate(zip(amounts, sizes, strict=True)):
            if mode == "reflect" and size is not None and max(pair) >= size:
                x = self.gather(x, np.pad(np.arange(size), pair, mode="reflect"), i + 2)
                rest[i] = (0, 0)
        return x, tuple(rest)

    def local_means(self, x: ir.Value, step: LocalMeans, channels: int) -> ir.Value:
        """`steps.LocalMeans` of `channels` channels."""
        n = len(step.reach)
        means = self.pad(x, [(0, 0), (0, 0), *((r, r) for r in step.reach)], "replicate")
        window = [r + 1 for r in step.reach]
        # Two box means of width r + 1 are the triangle of width 2*r + 1 that the step asks for.
        for _ in range(2):
            means = self.op(
                "AveragePool", means, kernel_shape=window, strides=[1] * n, pads=[0] * (2 * n)
            )
        if step.groups == 1:
            return self.op("Concat", x, means, axis=1)
        # The means of a group's channels follow these.
        groups = [channels // step.groups] * step.groups
        pairs = zip(self.split(x, groups), self.split(means, groups), strict=True)
        return self.op("Concat", *itertools.chain(*pairs), axis=1)

    def _zero_phases(self, x: ir.Value, step: ZeroPhases, channels: int) -> ir.Value:
        """A channel of zeros is appended, and Gather takes it wherever no tap reaches."""
        blocks = math.prod(step.blocks)
        number = np.full((channels // blocks, *step.strides), channels, np.int64)
        # Block f of an axis is its phase f*gap.
        reached = tuple(
            slice(0, block * gap, gap) for block, gap in zip(step.blocks, step.gaps, strict=True)
        )
        number[(slice(None), *reached)] = np.arange(channels).reshape(-1, *step.blocks)
        n = len(step.strides)
        x = self.pad(x, [(0, 0), (0, 1), *[(0, 0)] * n], "zeros")
        return self.gather(x, number.reshape(-1), 1)

    def add_bias(self, x: ir.Value, bias: ir.Value, channels: int, ndim: int) -> ir.Value:
        """`steps.AddBias`."""
        return self.op("Add", x, self.reshape(bias, [channels, *[1] * ndim]))


def _growth(step: Conv, pads: Pairs) -> Pairs:
    """Pixels by which a convolution's result is larger than its input, together."""
    reach = (d * (k - 1) for d, k in zip(step.dilation, step.kernel_size, strict=True))
    return tuple((b, e - r) for (b, e), r in zip(pads, reach, strict=True))


def _grown(sizes: Sequence[Size], amounts: Sequence[tuple[int, int]]) -> list[Size]:
    return [None if n is None else n + b + e for n, (b, e) in zip(sizes, amounts, strict=True)]
