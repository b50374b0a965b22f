"""The pixel shuffle as operators, in six ways.

| name | operators | open sizes | order of the channels |
|---|---|---|---|
| crd, dcr | DepthToSpace of that mode: two axes, one factor | any | by channel, by phase |
| whole | Reshape, Transpose, Reshape of rank 2 + 2*n | one | either |
| axes | the same for one axis after the other, of lower rank | any | by channel |
| slices | Split, and Concat for each axis, of rank 4 | in one axis | by phase |
| identity | ConvTranspose of a group for each channel, which also crops | any | by channel |

Channels ordered *by channel* are those of `core.steps.PixelShuffle`, (c, f_1, .., f_n); *by phase* they are
(f_1, .., f_n, c). Operator specifications: DepthToSpace-11 and -13, Reshape-5, ConvTranspose-11.

Unknown sizes stay unknown: Reshape copies them (0) from the same position, and at most one is -1. An
empty batch is the price: ONNX Runtime computes no -1 of a tensor without elements. Where the sizes are
in the file, or DepthToSpace does the work, it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

from deconvfix.core.steps import Pairs
from deconvfix.frontends.onnx.operators import DEPTH_TO_SPACE_MODE, Operators
from deconvfix.frontends.onnx.values import constant
from deconvfix.targets.writing import Shuffle

__all__ = [
    "Maps",
    "Place",
    "Size",
    "by_phase",
    "copied",
    "is_pixel_shuffle",
    "pixel_shuffle",
    "times",
    "why_not",
]

Size = int | None
_CONCAT = 4


@dataclass(frozen=True)
class Place:
    """Where a shuffle stands.

    Attributes:
        factors: r_1, .., r_n.
        channels: C of the result.
        sizes: L_1, .., L_n of the input; None where they are not known before running.
        crop: What follows; `identity` does it as well.
        dtype: Of the values.
        phases_first: Whether the channels are ordered by phase, though the shuffle does not ask for it.
    """

    factors: tuple[int, ...]
    channels: int
    sizes: tuple[Size, ...]
    crop: Pairs | None
    dtype: DTypeLike
    phases_first: bool = False

    @property
    def phases(self) -> int:
        """Channels of the input for each one of the result."""
        return math.prod(self.factors)


# One map with all phases as channels, or a map for each phase.
Maps = ir.Value | list[ir.Value]


def by_phase(shuffle: Shuffle | None) -> bool:
    """Whether a shuffle takes channels ordered by phase from a convolution of all phases."""
    return shuffle in ("dcr", "slices")


def why_not(
    shuffle: Shuffle, factors: Sequence[int], sizes: Sequence[Size], opset: int, *, apart: bool
) -> str | None:
    """Why a shuffle cannot be written so: a clause; None if it can.

    Args:
        shuffle: The way.
        factors: Of the shuffle.
        sizes: Of its input.
        opset: Of the file.
        apart: Whether there is a map for each phase.
    """
    if shuffle in ("crd", "dcr") and (len(factors) != 2 or factors[0] != factors[1]):
        return "DepthToSpace has two axes and one factor for both"
    if shuffle == "crd" and opset < DEPTH_TO_SPACE_MODE:
        return f"DepthToSpace has modes from opset {DEPTH_TO_SPACE_MODE} on"
    if opset < _CONCAT and (apart or shuffle == "slices"):
        return f"ONNX Runtime has Concat from opset {_CONCAT} on"
    if shuffle == "whole" and list(sizes).count(None) > 1:
        return "Reshape computes one open size at most"
    if shuffle == "slices" and None in sizes and len(sizes) > 1:
        return "Concat and Reshape need known sizes"
    if apart and shuffle in ("crd", "axes", "identity"):
        return "a convolution for each phase gives the phases one after the other"
    return None


def pixel_shuffle(
    write: Operators, maps: Maps, place: Place, shuffle: Shuffle | None
) -> tuple[ir.Value, bool]:
    """Writes a pixel shuffle.

    Args:
        write: Where to.
        maps: The phases, as channels of one map or as a map each.
        place: Where it stands.
        shuffle: The way; None: DepthToSpace where it applies, else axis by axis.

    Returns:
        The result, and whether the crop that follows is done already.
    """
    if shuffle is None:
        crd = why_not("crd", place.factors, place.sizes, write.opset, apart=False) is None
        shuffle = "crd" if crd else "axes"
    if shuffle == "slices":
        return _slices(write, maps, place), False
    phases_first = isinstance(maps, list) or by_phase(shuffle) or place.phases_first
    x = write.op("Concat", *maps, axis=1) if isinstance(maps, list) else maps
    if shuffle == "identity":
        return _identity(write, x, place), place.crop is not None
    if shuffle == "whole":
        return _whole(write, x, place, phases_first=phases_first), False
    ways: dict[str, Callable[[Operators, ir.Value, Place], ir.Value]] = {
        "crd": _depth_to_space("CRD"),
        "dcr": _depth_to_space("DCR"),
        "axes": _axes,
    }
    return ways[shuffle](write, x, place), False


def _depth_to_space(mode: str) -> Callable[[Operators, ir.Value, Place], ir.Value]:
    def written(write: Operators, x: ir.Value, place: Place) -> ir.Value:
        size = place.factors[0]
        if write.opset < DEPTH_TO_SPACE_MODE:  # which has no modes, and is what DCR is later
            return write.op("DepthToSpace", x, blocksize=size)
        return write.op("DepthToSpace", x, blocksize=size, mode=mode)

    return written


def _whole(write: Operators, x: ir.Value, place: Place, *, phases_first: bool) -> ir.Value:
    n, sizes = len(place.factors), list(map(copied, place.sizes))
    # (N, C*r_1*..*r_n, *L) -> (N, C, r_1, .., r_n, *L), or the channels behind the phases
    if phases_first:
        lead, channel, first = [*place.factors, place.channels], 1 + n, 1
    else:
        lead, channel, first = [place.channels, *place.factors], 1, 2
    x = write.reshape(x, [0, *lead, *sizes])
    pairs = [axis for i in range(n) for axis in (2 + n + i, first + i)]
    x = write.transpose(x, [0, channel, *pairs])
    return write.reshape(x, [0, place.channels, *map(copied, times(place.sizes, place.factors))])


def _axes(write: Operators, x: ir.Value, place: Place) -> ir.Value:
    """Axis by axis, the last one first: small transpositions are fast."""
    factors, channels, sizes = place.factors, place.channels, list(place.sizes)
    if len(factors) > 1 and None in sizes:
        return _axes_open(write, x, place)
    most = write.profile.max_rank
    low = most is not None and most < len(factors) + 3
    for i in reversed(range(len(factors))):
        # (N, C*r_1*..*r_i, L_1, .., L_n) -> (N, C*r_1*..*r_(i-1), r_i, L_1*..*L_i, L_(i+1), ..)
        rest = sizes[i + 1 :]
        left = channels * math.prod(factors[:i])
        before = -1 if sizes[i] is None else math.prod(n or 0 for n in sizes[: i + 1])
        if factors[i] > 1 and low:
            # The batch joins the channels, and the later axes each other: rank 4 at most.
            after = [math.prod(n or 0 for n in rest)] if rest else []
            x = write.reshape(x, [-1, factors[i], before, *after])
            x = write.transpose(x, [0, 2, 1, *range(3, 3 + len(after))])
        elif factors[i] > 1:
            x = write.reshape(x, [0, left, factors[i], before, *map(copied, rest)])
            x = write.transpose(x, [0, 1, 3, 2, *range(4, 4 + len(rest))])
        sizes[i : i + 1] = times(sizes[i : i + 1], factors[i : i + 1])
    return write.reshape(x, [-1 if low else 0, channels, *map(copied, sizes)])


def _axes_open(write: Operators, x: ir.Value, place: Place) -> ir.Value:
    """For open sizes: Reshape copies all axes but the pair that it merges."""
    factors, channels, n = place.factors, place.channels, len(place.factors)
    # Axes that Reshape copies keep their position in it, before the pair that it merges.
    # (N, C*r_1*..*r_n, L_1, .., L_n) -> (N, L_1, .., L_n, C, r_1, .., r_n)
    x = write.transpose(x, [0, *range(2, n + 2), 1])
    split = [i for i in range(n) if factors[i] > 1]
    x = write.reshape(x, [0] * (n + 1) + [channels, *(factors[i] for i in split)])
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
        x = write.transpose(x, [axes.index(axis) for axis in ordered])
        axes = ordered[:-1]
        x = write.reshape(x, [*(sizes_of.get(axis, 0) for axis in axes[:-1]), -1])
    return write.transpose(x, [axes.index(axis) for axis in ["N", "C", *sorted(axes[2:])]])


def _slices(write: Operators, maps: Maps, place: Place) -> ir.Value:
    """The phases laid beside each other, one axis after the other, the last one first."""
    parts = maps if isinstance(maps, list) else write.split(maps, [place.channels] * place.phases)
    sizes, rest = list(place.sizes), 1
    for i in reversed(range(len(place.factors))):
        factor = place.factors[i]
        # (N, C*L_1*..*L_i, 1, what lies behind): the phases of this axis follow each other on axis 2.
        before = -1 if None in sizes else place.channels * math.prod(n or 0 for n in sizes[: i + 1])
        apart = [write.reshape(part, [0, before, 1, rest]) for part in parts]
        rest *= factor * (sizes[i] or 0)
        parts = [
            write.op("Concat", *apart[first : first + factor], axis=2)
            if factor > 1
            else apart[first]
            for first in range(0, len(apart), factor)
        ]
    (whole,) = parts
    return write.reshape(whole, [0, place.channels, *map(copied, times(sizes, place.factors))])


def _identity(write: Operators, x: ir.Value, place: Place) -> ir.Value:
    kernel = _identity_kernel(place.channels, place.factors, place.dtype)
    crop = place.crop or ((0, 0),) * len(place.factors)
    return write.op(
        "ConvTranspose",
        x,
        write.constant(kernel, "identity"),
        group=place.channels,
        kernel_shape=list(place.factors),
        pads=[b for b, _ in crop] + [e for _, e in crop],
        strides=list(place.factors),
        what="shuffle",
    )


def _identity_kernel(channels: int, factors: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """(C*phases, 1, *r): phase f of a channel has its one at tap f."""
    phases = math.prod(factors)
    return np.tile(np.eye(phases, dtype=np.dtype(dtype)), (channels, 1)).reshape(-1, 1, *factors)


def is_pixel_shuffle(node: ir.Node, ir_version: int) -> bool:
    """Whether a ConvTranspose does nothing but move pixels, as `identity` writes it."""
    tensor = constant(node.inputs[1] if len(node.inputs) == 2 else None, ir_version)
    group, strides = node.attributes.get("group"), node.attributes.get("strides")
    if tensor is None or group is None or strides is None or group.is_ref() or strides.is_ref():
        return False
    groups, factors = group.as_int(), strides.as_ints()
    shape = (groups * math.prod(factors), 1, *factors)
    if math.prod(factors) == 1 or tuple(tensor.shape.numpy()) != shape:
        return False
    return np.array_equal(tensor.numpy(), _identity_kernel(groups, factors, tensor.dtype.numpy()))


def times(sizes: Sequence[Size], factors: Sequence[int]) -> list[Size]:
    """The sizes of an upsampled map."""
    return [None if n is None else n * r for n, r in zip(sizes, factors, strict=True)]


def copied(size: Size) -> int:
    """A size as Reshape takes it, -1 where it is not known."""
    return -1 if size is None else size
