"""Nearest upsampling in front of a convolution, found in the main graph of an ONNX model.

Upsampling is Resize or Upsample by whole factors whose coordinates give floor(v / s), which is computed here
from the operator's definition. Between it and the convolution there may be nodes that treat each element
alike, and a Pad.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.folded import Folded
from deconvfix.core.steps import PadMode, Pairs
from deconvfix.errors import Refusal
from deconvfix.frontends.folded import (
    NOT_A_STORED_WEIGHT,
    NOT_WHOLE,
    NOTHING_SAVED,
    OTHER_BORDER,
    OTHER_STEPS,
    READ_ELSEWHERE,
    WIDE_REFLECTION,
)
from deconvfix.frontends.onnx.nodes import opset_of
from deconvfix.frontends.onnx.shuffles import attribute, is_elementwise, padding_of
from deconvfix.frontends.onnx.values import DEFAULT_DOMAINS, Known, constant

__all__ = ["UpsampledConv", "upsampled_convolutions"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_PAD_MODES: dict[str, PadMode] = {"constant": "zeros", "reflect": "reflect", "edge": "replicate"}
# Coordinates and rounding of Resize where the node does not say them, from this opset on; before it, and of
# Upsample, there is nothing to say.
_COORDINATES = 11
_NEW = ("half_pixel", "round_prefer_floor")
_OLD = ("asymmetric", "floor")


@dataclass(frozen=True, eq=False)
class UpsampledConv:
    """A convolution, and what comes before it.

    Attributes:
        conv: The Conv.
        pad: The Pad in front of it, if there is one.
        between: Nodes that treat each element alike, in order, in front of that.
        resize: The upsampling.
        folded: The geometry.
        weight: As it is stored, (C_out, C_in / groups, *k).
    """

    conv: ir.Node
    pad: ir.Node | None
    between: tuple[ir.Node, ...]
    resize: ir.Node
    folded: Folded
    weight: NDArray[Any]

    @property
    def replaced(self) -> list[ir.Node]:
        """The nodes that a transposed convolution stands for."""
        return [node for node in (self.resize, self.pad, self.conv) if node is not None]


def upsampled_convolutions(model: ir.Model) -> Iterator[tuple[ir.Node, UpsampledConv | Refusal]]:
    """The convolutions of the main graph that get an upsampled map, each with why it cannot be folded."""
    known = Known(model)
    for node in list(model.graph):
        if node.op_type == "Conv" and node.domain in DEFAULT_DOMAINS:
            found = _understood(known, node)
            if found is not None:
                yield node, found


def _understood(known: Known, conv: ir.Node) -> UpsampledConv | Refusal | None:
    version = known.model.ir_version
    way = _chain(conv, version)
    if way is None:
        return None
    resize, between, pad, late = way
    weight = constant(conv.inputs[1], version)
    if weight is None or weight.dtype not in _FLOATS:
        return NOT_A_STORED_WEIGHT
    stored = weight.numpy()
    ndim = stored.ndim - 2
    factors = _factors(known, resize, ndim)
    if factors is None:
        return NOT_WHOLE
    if max(factors) < 2:
        return None
    chain = [resize, *between, *([] if pad is None else [pad])]
    if any(len(v.uses()) != 1 or v.is_graph_output() for v in (node.outputs[0] for node in chain)):
        return READ_ELSEWHERE
    own = padding_of(conv, stored.shape[2:])
    if own is None:
        return OTHER_STEPS
    border = _border(known, pad, own)
    if border is None or (late and border[0] == "zeros"):
        return OTHER_BORDER
    mode, padding = border
    groups = int(attribute(conv, "group", 1))
    folded = Folded(
        factors=factors,
        kernel_size=stored.shape[2:],
        padding=padding,
        mode=mode,
        in_channels=stored.shape[1] * groups,
        out_channels=len(stored),
        groups=groups,
        bias=len(conv.inputs) > 2 and conv.inputs[2] is not None,
    )
    if not folded.can_be_folded:
        return WIDE_REFLECTION
    if not folded.saves:
        return NOTHING_SAVED
    return UpsampledConv(conv, pad, tuple(between), resize, folded, stored)


def _chain(
    conv: ir.Node, version: int
) -> tuple[ir.Node, list[ir.Node], ir.Node | None, bool] | None:
    """The way back from a convolution to an upsampling: that, the nodes between, and the Pad.

    Returns:
        The last of the four says whether a node between comes behind the Pad. None without upsampling.
    """
    between: list[ir.Node] = []
    pad: ir.Node | None = None
    late = False
    node = _producer(conv)
    while node is not None and node.domain in DEFAULT_DOMAINS:
        if node.op_type in ("Resize", "Upsample"):
            nearest = attribute(node, "mode", "nearest") == "nearest"
            return (node, between[::-1], pad, late) if nearest else None
        if node.op_type == "Pad" and pad is None:
            pad, late = node, bool(between)
        elif is_elementwise(node, version):
            between.append(node)
        else:
            return None
        node = _producer(node)
    return None


def _producer(node: ir.Node) -> ir.Node | None:
    value = node.inputs[0] if node.inputs else None
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.graph is node.graph else None


def _factors(known: Known, resize: ir.Node, ndim: int) -> tuple[int, ...] | None:
    """Whole factors of an upsampling that repeats each pixel; None for any other."""
    scales = _scales(known, resize, ndim + 2)
    if scales is None or any(scale != int(scale) for scale in scales):
        return None
    batch, channels, *factors = map(int, scales)
    if (batch, channels) != (1, 1) or min(factors) < 1:
        return None
    coordinates, rounding = _NEW if _says_coordinates(known, resize) else _OLD
    coordinates = attribute(resize, "coordinate_transformation_mode", coordinates)
    rounding = attribute(resize, "nearest_mode", rounding)
    if all(_repeats(s, str(coordinates), str(rounding)) for s in factors):
        return tuple(factors)
    return None


def _says_coordinates(known: Known, resize: ir.Node) -> bool:
    return resize.op_type == "Resize" and opset_of(known.model.opset_imports) >= _COORDINATES


def _scales(known: Known, resize: ir.Node, rank: int) -> list[float] | None:
    """Of all axes; None where they are not known before running."""
    version = known.model.ir_version
    given = attribute(resize, "scales", None)
    inputs = [*resize.inputs, None, None, None]
    axes = [int(axis) % rank for axis in attribute(resize, "axes", range(rank))]
    if given is None:
        # (X, scales) up to opset 10, then (X, roi, scales, sizes).
        newer = _says_coordinates(known, resize)
        tensor = constant(inputs[2] if newer else inputs[1], version)
        given = None if tensor is None or not tensor.size else tensor.numpy().tolist()
        sizes = constant(inputs[3], version) if newer else None
        shape = known.shape(resize.inputs[0], None)
        if given is None and sizes is not None and shape is not None:
            if attribute(resize, "keep_aspect_ratio_policy", "stretch") != "stretch":
                return None
            before = [shape[axis] if axis < len(shape) else None for axis in axes]
            if None in before or 0 in before:
                return None
            given = [size / n for size, n in zip(sizes.numpy().tolist(), before, strict=True)]
    if given is None or len(given) != len(axes):
        return None
    scales = [1.0] * rank
    for axis, scale in zip(axes, given, strict=True):
        scales[axis] = float(scale)
    return scales


def _repeats(s: int, coordinates: str, rounding: str) -> bool:
    """Whether pixel 1 of a long map becomes the pixels s to 2s - 1, by the definition of Resize-19."""
    positions = {
        "asymmetric": lambda v: Fraction(v, s),
        "half_pixel": lambda v: (v + Fraction(1, 2)) / s - Fraction(1, 2),
        # As half_pixel for whole factors, but for a result of one pixel, which is no upsampling.
        "half_pixel_symmetric": lambda v: (v + Fraction(1, 2)) / s - Fraction(1, 2),
        "pytorch_half_pixel": lambda v: (v + Fraction(1, 2)) / s - Fraction(1, 2),
        "tf_half_pixel_for_nn": lambda v: (v + Fraction(1, 2)) / s,
    }
    roundings = {
        "round_prefer_floor": lambda x: ceil(x - Fraction(1, 2)),
        "round_prefer_ceil": lambda x: floor(x + Fraction(1, 2)),
        "floor": floor,
        "ceil": ceil,
    }
    if coordinates not in positions or rounding not in roundings:
        return False
    position, rounded = positions[coordinates], roundings[rounding]
    return all(rounded(position(v)) == 1 for v in range(s, 2 * s))


def _border(known: Known, pad: ir.Node | None, own: Pairs) -> tuple[PadMode, Pairs] | None:
    """How the upsampled map is extended by a Pad and by the convolution's own padding."""
    if pad is None:
        return "zeros", own
    version, rank = known.model.ir_version, len(own) + 2
    amounts = attribute(pad, "pads", attribute(pad, "paddings", None))
    inputs = [*pad.inputs, None, None, None]
    value = attribute(pad, "value", 0.0)
    axes = list(range(rank))
    if amounts is None:
        stored = constant(inputs[1], version)
        if stored is None:
            return None
        amounts = stored.numpy().tolist()
        if inputs[2] is not None:
            constant_value = constant(inputs[2], version)
            if constant_value is None:
                return None
            value = float(np.asarray(constant_value.numpy()).reshape(-1)[0])
        if inputs[3] is not None:
            chosen = constant(inputs[3], version)
            if chosen is None:
                return None
            axes = [int(axis) % rank for axis in chosen.numpy().tolist()]
    mode = _PAD_MODES.get(str(attribute(pad, "mode", "constant")))
    if mode is None or len(amounts) != 2 * len(axes) or min(amounts) < 0:
        return None
    widths = [(0, 0)] * rank
    for axis, begin, end in zip(axes, amounts[: len(axes)], amounts[len(axes) :], strict=True):
        widths[axis] = (int(begin), int(end))
    if widths[0] != (0, 0) or widths[1] != (0, 0) or (mode == "zeros" and value != 0):
        return None
    padding = tuple(widths[2:])
    if mode == "zeros" or not any(map(any, padding)):
        both = tuple((a + c, b + d) for (a, b), (c, d) in zip(padding, own, strict=True))
        return "zeros", both
    # Zeros around copies of the border are neither.
    return None if any(map(any, own)) else (mode, padding)
