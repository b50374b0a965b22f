"""Verbs and steps as ONNX operators, in the version that the file has: no opset needs to be raised.

| operator | opset | what differs |
|---|---|---|
| Reshape | < 5 | the shape is an attribute |
| Slice | < 10 | starts and ends are attributes |
| Pad | < 2, < 11 | the amounts are an attribute, called `paddings` at first |
| Constant | < 9 | holds no integers, so these become initializers |
| Unsqueeze, Squeeze | any | not used: Reshape does the same |
| DepthToSpace | < 11 | no mode, so Reshape and Transpose do its work |
| Resize | < 11 | nearest only, as Upsample or Resize of opset 7 to 10 |

Unknown sizes stay unknown: Reshape copies them (0) from the same position, and at most one is -1. An
empty batch is the price: ONNX Runtime computes no -1 of a tensor without elements. Where the sizes are
in the file, or DepthToSpace does the work, it runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.rearrange import Flip, Merge, Permute, Repeat, Split, Verb, ZeroExtend
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
    PixelShuffle,
    Resize,
    Step,
    ZeroPhases,
)
from deconvfix.frontends.onnx.values import Names

__all__ = ["NEWEST_WITHOUT_BROADCAST", "Writer"]

# Add broadcasts as NumPy does from the next opset on; ONNX Runtime has no older Add.
NEWEST_WITHOUT_BROADCAST = 6
# Pad takes the amounts as an input, and DepthToSpace has a mode.
_PAD_INPUTS = 11
_SLICE_INPUTS = 10
_CONSTANT_INTEGERS = 9
_RESHAPE_INPUT = 5
_PAD_MODES: dict[PadMode, str] = {"zeros": "constant", "reflect": "reflect", "replicate": "edge"}
_INT64_MAX = 2**63 - 1

Size = int | None


class Writer:
    """Collects the nodes that take the place of one layer.

    Args:
        names: The names that the model has.
        prefix: What the new names begin with.
        opset: Version of the operators to write.
        like: The node whose metadata and documentation the new nodes get.
    """

    def __init__(self, names: Names, prefix: str, opset: int, like: ir.Node | None = None) -> None:
        self.names = names
        self.like = like
        self.prefix = prefix
        self.opset = opset
        self.nodes: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        what: str = "",
        domain: str = "",
        **attrs: Any,
    ) -> ir.Value:
        """One node with one output; `what` goes into its name."""
        name = self.names.fresh(f"{self.prefix}/{what or op_type}")
        value = ir.Value(name=name)
        attributes = ir.convenience.convert_attributes(attrs)
        node = ir.Node(domain, op_type, inputs, attributes, outputs=[value], name=name)
        if self.like is not None:
            node.metadata_props.update(self.like.metadata_props)
            node.doc_string = self.like.doc_string
        self.nodes.append(node)
        return value

    def constant(self, array: NDArray[Any], what: str) -> ir.Value:
        """A Constant node: unlike initializers these exist in functions, and are never inputs."""
        if self.opset < _CONSTANT_INTEGERS and array.dtype.kind == "i":
            graph = self.names.model.graph
            return self.names.initializer(array, graph, f"{self.prefix}/{what}")
        return self.op("Constant", value=ir.tensor(array), what=what)

    # --- operators whose form depends on the opset ---

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Reshape; 0 copies a size from the same position, -1 is computed."""
        if self.opset < _RESHAPE_INPUT:
            return self.op("Reshape", x, shape=list(shape))
        return self.op("Reshape", x, self.constant(np.array(shape, np.int64), "shape"))

    def transpose(self, x: ir.Value, order: Sequence[int]) -> ir.Value:
        """Transpose, left out where nothing moves."""
        if list(order) == sorted(order):
            return x
        return self.op("Transpose", x, perm=list(order))

    def gather(self, x: ir.Value, index: Sequence[int] | NDArray[Any], axis: int) -> ir.Value:
        """Elements by their numbers along an axis."""
        return self.op("Gather", x, self.constant(np.asarray(index, np.int64), "index"), axis=axis)

    def crop(self, x: ir.Value, amounts: Pairs) -> ir.Value:
        """`steps.Crop`."""
        # Axes that lose nothing are left out: a Slice over them would only hide a size that is open.
        axes = [i for i, pair in enumerate(amounts) if any(pair)]
        starts = [amounts[i][0] for i in axes]
        # An end of 0 would be an empty slice: "up to the end" is the largest integer.
        ends = [-amounts[i][1] or _INT64_MAX for i in axes]
        return self._slice(x, starts, ends, [i + 2 for i in axes])

    def _slice(self, x: ir.Value, starts: list[int], ends: list[int], axes: list[int]) -> ir.Value:
        if self.opset < _SLICE_INPUTS:
            return self.op("Slice", x, starts=starts, ends=ends, axes=axes)
        arrays = zip((starts, ends, axes), ("starts", "ends", "axes"), strict=True)
        return self.op("Slice", x, *(self.constant(np.array(a, np.int64), n) for a, n in arrays))

    def pad(self, x: ir.Value, widths: Sequence[tuple[int, int]], mode: PadMode) -> ir.Value:
        """Pads every axis, batch and channels included."""
        amounts = [b for b, _ in widths] + [e for _, e in widths]
        kind = _PAD_MODES[mode]
        if self.opset < 2:
            return self.op("Pad", x, mode=kind, paddings=amounts)
        if self.opset < _PAD_INPUTS:
            return self.op("Pad", x, mode=kind, pads=amounts)
        return self.op("Pad", x, self.constant(np.array(amounts, np.int64), "pads"), mode=kind)

    def resize(self, x: ir.Value, factors: Sequence[int], how: Interpolation) -> ir.Value:
        """`steps.Resize`; linear from opset 11 on."""
        scales = [1.0, 1.0, *map(float, factors)]
        if self.opset < 9:
            return self.op("Upsample", x, mode="nearest", scales=scales)
        value = self.constant(np.array(scales, np.float32), "scales")
        if self.opset < 11:
            return self.op("Upsample" if self.opset < 10 else "Resize", x, value, mode="nearest")
        # opset 11 has no way to leave out the region of interest
        roi = self.constant(np.zeros(0, np.float32), "roi") if self.opset < 13 else None
        if how == "nearest":
            return self.op(
                "Resize",
                x,
                roi,
                value,
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        return self.op(
            "Resize", x, roi, value, mode="linear", coordinate_transformation_mode="half_pixel"
        )

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
                case Repeat(times):
                    value = self.gather(value, np.repeat(np.arange(now[0]), times), 0)
                    now = [now[0] * times]
        return value

    # --- steps ---

    def steps(
        self,
        steps: Sequence[Step],
        x: ir.Value,
        weight: ir.Value | None,
        bias: ir.Value | None,
        channels: int,
        sizes: Sequence[Size],
    ) -> tuple[ir.Value, list[Size]]:
        """Writes steps; zeros around a convolution become its own padding.

        Args:
            steps: What to do.
            x: The input.
            weight: In the layout of the steps' convolution; None where none of them is one.
            bias: For the step that adds one, or None.
            channels: Channels of x.
            sizes: Spatial sizes of x, None where they are not known before running.

        Returns:
            The output, and its spatial sizes.
        """
        sizes = list(sizes)
        # Sizes and channels are carried along: what is known keeps Reshape free of -1.
        zeros: Pairs | None = None
        for step, following in itertools.zip_longest(steps, steps[1:]):
            match step:
                case Pad(amounts, mode):
                    if mode == "zeros" and isinstance(following, Conv):
                        zeros = amounts
                        continue
                    x, rest = self._wide_reflection(x, amounts, mode, sizes)
                    if any(map(any, rest)):
                        x = self.pad(x, [(0, 0), (0, 0), *rest], mode)
                    sizes = _grown(sizes, amounts)
                case Crop(amounts):
                    x = self.crop(x, amounts)
                    sizes = _grown(sizes, [(-b, -e) for b, e in amounts])
                case Resize(factors, interpolation):
                    x = self.resize(x, factors, interpolation)
                    sizes = _times(sizes, factors)
                case LocalMeans():
                    x = self.local_means(x, step, channels)
                    channels *= 2
                case Conv():
                    assert weight is not None
                    own: Pairs = tuple((p, p) for p in step.padding)
                    if zeros is not None:
                        own = tuple(
                            (a + c, b + d) for (a, b), (c, d) in zip(own, zeros, strict=True)
                        )
                    x = self._conv(x, weight, bias if step.bias else None, step, own)
                    reach = [
                        d * (k - 1) for d, k in zip(step.dilation, step.kernel_size, strict=True)
                    ]
                    sizes = _grown(
                        sizes, [(b, e - r) for (b, e), r in zip(own, reach, strict=True)]
                    )
                    channels = step.out_channels
                case PixelShuffle(factors):
                    channels //= math.prod(factors)
                    x = self.pixel_shuffle(x, factors, channels, sizes)
                    sizes = _times(sizes, factors)
                case ZeroPhases():
                    x = self._zero_phases(x, step, channels)
                    channels = channels // math.prod(step.blocks) * math.prod(step.strides)
                case AddBias():
                    assert bias is not None
                    x = self.add_bias(x, bias, channels, len(sizes))
                case ConvTranspose():
                    raise AssertionError("forms that keep the layer are not written as steps")
        return x, sizes

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
        both = self.op("Concat", x, means, axis=1)
        if step.groups == 1:
            return both
        # Channel c of the means follows the channels of its group.
        order = np.arange(2 * channels).reshape(2, step.groups, -1).swapaxes(0, 1)
        return self.gather(both, order.reshape(-1), 1)

    def _conv(
        self, x: ir.Value, weight: ir.Value, bias: ir.Value | None, step: Conv, pads: Pairs
    ) -> ir.Value:
        return self.op(
            "Conv",
            *[operand for operand in (x, weight, bias) if operand is not None],
            dilations=list(step.dilation),
            group=step.groups,
            kernel_shape=list(step.kernel_size),
            pads=[b for b, _ in pads] + [e for _, e in pads],
            strides=[1] * len(pads),
        )

    def pixel_shuffle(
        self, x: ir.Value, factors: Sequence[int], channels: int, sizes: Sequence[Size]
    ) -> ir.Value:
        """`steps.PixelShuffle` to `channels`: DepthToSpace where it applies, else axis by axis."""
        n = len(factors)
        if self.opset >= _PAD_INPUTS and n == 2 and factors[0] == factors[1]:
            return self.op("DepthToSpace", x, blocksize=factors[0], mode="CRD")
        if n == 1 or None not in sizes:
            return self._shuffle_known(x, factors, channels, sizes)
        return self._shuffle_open(x, factors, channels)

    def _shuffle_known(
        self, x: ir.Value, factors: Sequence[int], channels: int, sizes: Sequence[Size]
    ) -> ir.Value:
        """Axis by axis, the last one first: small transpositions are fast."""
        sizes = list(sizes)
        for i in reversed(range(len(factors))):
            # (N, C*r_1*..*r_i, L_1, .., L_n) -> (N, C*r_1*..*r_(i-1), r_i, L_1*..*L_i, L_(i+1), ..)
            rest = sizes[i + 1 :]
            left = channels * math.prod(factors[:i])
            before = -1 if sizes[i] is None else math.prod(n or 0 for n in sizes[: i + 1])
            if factors[i] > 1:
                x = self.reshape(x, [0, left, factors[i], before, *map(_copied, rest)])
                x = self.transpose(x, [0, 1, 3, 2, *range(4, 4 + len(rest))])
                sizes[i : i + 1] = _times(sizes[i : i + 1], factors[i : i + 1])
        return self.reshape(x, [0, channels, *map(_copied, sizes)])

    def _shuffle_open(self, x: ir.Value, factors: Sequence[int], channels: int) -> ir.Value:
        """For open sizes: Reshape copies all axes but the pair that it merges."""
        n = len(factors)
        # Axes that Reshape copies keep their position in it, before the pair that it merges.
        # (N, C*r_1*..*r_n, L_1, .., L_n) -> (N, L_1, .., L_n, C, r_1, .., r_n)
        x = self.transpose(x, [0, *range(2, n + 2), 1])
        split = [i for i in range(n) if factors[i] > 1]
        x = self.reshape(x, [0] * (n + 1) + [channels, *(factors[i] for i in split)])
        sizes_of = {"C": channels} | {f"r{i}": factors[i] for i in split}
        axes = ["N", *(f"L{i}" for i in range(n)), "C", *(f"r{i}" for i in split)]
        for i in split:
            pair = [f"L{i}", f"r{i}"]
            copied = [axis for axis in axes if axis not in pair and axis not in sizes_of]
            known = [axis for axis in axes if axis not in pair and axis in sizes_of]
            # With the last pair C moves to its place behind N.
            if i == split[-1]:
                copied, known = ["N", "C", *copied[1:]], []
            ordered = [*copied, *known, *pair]
            x = self.transpose(x, [axes.index(axis) for axis in ordered])
            axes = ordered[:-1]
            x = self.reshape(x, [*(sizes_of.get(axis, 0) for axis in axes[:-1]), -1])
        return self.transpose(x, [axes.index(axis) for axis in ["N", "C", *sorted(axes[2:])]])

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


def _grown(sizes: Sequence[Size], amounts: Sequence[tuple[int, int]]) -> list[Size]:
    return [None if n is None else n + b + e for n, (b, e) in zip(sizes, amounts, strict=True)]


def _times(sizes: Sequence[Size], factors: Sequence[int]) -> list[Size]:
    return [None if n is None else n * r for n, r in zip(sizes, factors, strict=True)]


def _copied(size: Size) -> int:
    return -1 if size is None else size
