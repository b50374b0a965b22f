"""Convolutions in front of pixel shuffles, found in the main graph of an ONNX model.

A shuffle is DepthToSpace of either mode, or Reshape, Transpose, Reshape with the permutation of a pixel
shuffle. Between it and the convolution there may be nodes that treat each element alike, or each channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.shuffled import Shuffled
from deconvfix.frontends.onnx.elementwise import ELEMENTWISE, Chain, Map, chain_behind
from deconvfix.frontends.onnx.nodes import opset_of
from deconvfix.frontends.onnx.values import DEFAULT_DOMAINS, Known, bodies, constant

__all__ = [
    "ShuffledConv",
    "attribute",
    "count_others",
    "is_elementwise",
    "padding_of",
    "shuffle_at",
    "shuffled_convolutions",
]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, eq=False)
class ShuffledConv:
    """A convolution, what follows it, and the shuffle.

    Attributes:
        conv: The Conv.
        between: Nodes that treat each element alike, or each channel, in order, with their inputs that hold
            a number for each channel.
        shuffle: The nodes of the shuffle, in order.
        shuffled: The geometry.
        weight: As it is stored, (C_out * phases, C_in / groups, *k).
        bias: As it is stored, (C_out * phases,), or None.
    """

    conv: ir.Node
    between: Chain
    shuffle: tuple[ir.Node, ...]
    shuffled: Shuffled
    weight: NDArray[Any]
    bias: NDArray[Any] | None

    @property
    def is_plain(self) -> bool:
        """Whether the nodes between are a row, and each treats all elements of its first input alike."""
        value = self.conv.outputs[0]
        for node, operands in self.between.items():
            if operands or node.inputs.count(value) != 1 or node.inputs[0] is not value:
                return False
            value = node.outputs[0]
        return True


def shuffled_convolutions(model: ir.Model) -> Iterator[ShuffledConv]:
    """The convolutions of the main graph whose outputs are shuffled, and go nowhere else."""
    known = Known(model)
    for node in list(model.graph):
        if node.op_type == "Conv" and node.domain in DEFAULT_DOMAINS:
            found = _understood(known, node)
            if found is not None:
                yield found


def count_others(model: ir.Model, found: Iterable[ShuffledConv]) -> tuple[int, int]:
    """How many DepthToSpace nodes follow none of these convolutions, and how many nodes interpolate."""
    known = {node for one in found for node in one.shuffle}
    ops = [
        node.op_type
        for body in bodies(model)
        for node in body.all_nodes()
        if node.domain in DEFAULT_DOMAINS and node not in known
    ]
    return ops.count("DepthToSpace"), ops.count("Resize") + ops.count("Upsample")


def _understood(known: Known, conv: ir.Node) -> ShuffledConv | None:
    version = known.model.ir_version
    operands = [value for value in conv.inputs[1:] if value is not None]
    if not operands or not all(
        value.is_initializer() and constant(value, version) for value in operands
    ):
        return None
    weight, bias = [*(constant(value, version) for value in operands), None][:2]
    if weight is None or weight.dtype not in _FLOATS or weight.shape.rank() < 3:
        return None
    stored = weight.numpy()
    where = Map(
        conv.outputs[0],
        len(stored),
        stored.ndim - 2,
        known.model.graph,
        opset_of(known.model.opset_imports),
        sizes_are_free=True,
    )
    between = chain_behind(where)
    following = _only_reader([conv, *between][-1])
    if following is None:
        return None
    geometry = padding_of(conv, stored.shape[2:])
    written = shuffle_at(known, following, len(stored), stored.ndim - 2)
    if geometry is None or written is None:
        return None
    nodes, channels = written
    groups = int(attribute(conv, "group", 1))
    shuffled = Shuffled.of(
        channels,
        stored.shape[1] * groups,
        stored.shape[2:],
        geometry,
        groups,
        bias=bias is not None,
    )
    if shuffled is None:
        return None
    stored_bias = None if bias is None else bias.numpy()
    return ShuffledConv(conv, between, nodes, shuffled, stored, stored_bias)


def _only_reader(node: ir.Node) -> ir.Node | None:
    """The node that reads the output of this one as its first input, if nothing else reads its values."""
    value = node.outputs[0]
    uses = [use for use in value.uses() if use.node.op_type != "Shape"]
    if value.is_graph_output() or len(uses) != 1:
        return None
    ((reader, index),) = uses
    return reader if index == 0 and reader.graph is node.graph else None


def is_elementwise(node: ir.Node, version: int) -> bool:
    """Whether it treats each element of its first input alike; `version` is that of the model's IR."""
    if node.domain not in DEFAULT_DOMAINS or len(node.outputs) != 1:
        return False
    if node.op_type in ("Mul", "Add", "Div", "Sub", "PRelu") and len(node.inputs) == 2:
        other = constant(node.inputs[1], version)
        return other is not None and other.size == 1
    return node.op_type in ELEMENTWISE


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Value of an attribute, or what stands for it where the node has none of its own."""
    found = node.attributes.get(name)
    return default if found is None or found.is_ref() else found.value


def padding_of(conv: ir.Node, kernel: tuple[int, ...]) -> tuple[tuple[int, int], ...] | None:
    """The padding of a convolution of stride 1; None for another one (Conv-11: auto_pad, pads)."""
    if {*attribute(conv, "strides", [1]), *attribute(conv, "dilations", [1])} != {1}:
        return None
    auto_pad = attribute(conv, "auto_pad", "NOTSET")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        less, more = [(k - 1) // 2 for k in kernel], [k // 2 for k in kernel]
        pairs = (
            zip(less, more, strict=True)
            if auto_pad == "SAME_UPPER"
            else zip(more, less, strict=True)
        )
        return tuple(pairs)
    pads = (
        attribute(conv, "pads", [0] * 2 * len(kernel))
        if auto_pad == "NOTSET"
        else [0] * 2 * len(kernel)
    )
    return tuple(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))


def shuffle_at(
    known: Known, node: ir.Node, count: int, ndim: int
) -> tuple[tuple[ir.Node, ...], NDArray[np.int64]] | None:
    """The nodes of a shuffle that begins at a node, and where it puts the channels; None for another node.

    Args:
        known: Of the model.
        node: Its first node.
        count: Channels of its input.
        ndim: Spatial axes.

    Returns:
        The nodes, and the channels of the input by channel of the result and phase, (C, *r).
    """
    if node.domain not in DEFAULT_DOMAINS:
        return None
    if node.op_type == "DepthToSpace" and ndim == 2:
        block = int(attribute(node, "blocksize", 1))
        if block < 2 or count % block**2:
            return None
        numbers = np.arange(count)
        if attribute(node, "mode", "DCR") == "CRD":
            return (node,), numbers.reshape(-1, block, block)
        return (node,), numbers.reshape(block, block, -1).transpose(2, 0, 1)
    if node.op_type != "Reshape":
        return None
    return _reshaped(known, node, count, ndim)


def _reshaped(
    known: Known, first: ir.Node, count: int, ndim: int
) -> tuple[tuple[ir.Node, ...], NDArray[np.int64]] | None:
    """Reshape to (N, channels and factors, *L), Transpose to (N, C, L, r, L, r, ..), Reshape."""
    transpose = _only_reader(first)
    last = None if transpose is None else _only_reader(transpose)
    if transpose is None or last is None:
        return None
    if (transpose.op_type, last.op_type) != ("Transpose", "Reshape"):
        return None
    split = known.shape(first.outputs[0], None)
    before, after = known.shape(first.inputs[0], None), known.shape(last.outputs[0], None)
    order = [int(axis) for axis in attribute(transpose, "perm", [])]
    if split is None or after is None or before is None or len(order) != 2 + 2 * ndim:
        return None
    sizes = split[1 : 2 + ndim]
    spatial = [order[2 + 2 * i] for i in range(ndim)]
    if order[0] != 0 or spatial != list(range(2 + ndim, 2 + 2 * ndim)) or None in sizes:
        return None
    if len(split) != 2 + 2 * ndim or len(after) != 2 + ndim or math.prod(sizes) != count:
        return None
    channels = (
        np.arange(count)
        .reshape(sizes)
        .transpose([axis - 1 for axis in (order[1], *(order[3 + 2 * i] for i in range(ndim)))])
    )
    # The second Reshape joins the pairs, and nothing else: known by the channels, and sizes as far as
    # they are known.
    joined = [r * n for r, n in zip(channels.shape[1:], before[2:], strict=True) if n is not None]
    given = [m for m, n in zip(after[2:], before[2:], strict=True) if n is not None]
    if after[1] != len(channels) or joined != given:
        return None
    return (first, transpose, last), channels
