"""Nodes that treat each element of a map alike, or each of its channels, wherever it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.frontends.onnx.values import (
    DEFAULT_DOMAINS,
    OLDEST_IR_WITH_FREE_INITIALIZERS,
    constant,
)

__all__ = ["APPROXIMATED", "ELEMENTWISE", "Chain", "Map", "chain_behind"]

# Functions of one value. None of them jumps, so that rounding in front of them stays small behind them.
APPROXIMATED = frozenset(
    ["Celu", "Elu", "Erf", "Gelu", "Mish", "Selu", "Sigmoid", "Softplus", "Swish", "Tanh"]
)
ELEMENTWISE = APPROXIMATED | frozenset(
    ["Abs", "Clip", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Neg", "Relu", "Softsign"]
)
# Those with a stored operand, and where the map may stand; from this opset on operands broadcast as NumPy's.
_WITH_OPERAND = {"Add": (0, 1), "Div": (0,), "Mul": (0, 1), "PRelu": (0,), "Sub": (0, 1)}
_BROADCAST = 7
# Before, `spatial` and `is_test` may ask for something else than inference by channel.
_PLAIN_NORMALIZATION = 9
# What puts x and f(x) together: x * Sigmoid(x), x * Tanh(Softplus(x)).
_JOINS = ("Add", "Mul")

# Nodes in the order of the model, each with its inputs that hold a number for each channel.
Chain = dict[ir.Node, tuple[int, ...]]


@dataclass(frozen=True)
class Map:
    """A value of shape (N, C, *L), and where it is.

    Attributes:
        value: The value.
        channels: C.
        ndim: Spatial axes.
        graph: That its readers must be in.
        opset: Of that graph.
        sizes_are_free: Whether those that read sizes alone do not count as readers.
    """

    value: ir.Value
    channels: int
    ndim: int
    graph: ir.Graph
    opset: int
    sizes_are_free: bool = False


def chain_behind(where: Map) -> Chain:
    """The longest chain of nodes that treat each element of a map alike, or each of its channels.

    What is read elsewhere, or is an output, ends it.
    """
    chain: Chain = {}
    value = where.value
    while True:
        more = _following(where, value)
        if not more:
            return chain
        chain |= more
        value = [*more][-1].outputs[0]


def _following(where: Map, value: ir.Value) -> Chain:
    """The node that reads a value, or those that make a function of it; empty if there is none."""
    uses = _uses(where, value)
    if len(uses) == 1:
        ((node, index),) = uses
        operands = _channel_operands(where, node, index)
        return {} if operands is None else {node: operands}
    if len(uses) == 2:
        one, two = uses
        return _branched(where, one, two.node) or _branched(where, two, one.node)
    return {}


def _uses(where: Map, value: ir.Value) -> list[Any]:
    """The readers of a value; empty where it must keep its layout."""
    uses = [] if value.is_graph_output() else list(value.uses())
    if where.sizes_are_free:
        uses = [use for use in uses if use.node.op_type != "Shape"]
    return uses if all(use.node.graph is where.graph for use in uses) else []


def _branched(where: Map, first: Any, join: ir.Node) -> Chain:
    """f, of which `first` is the beginning, and the node that puts x and f(x) together."""
    chain: Chain = {}
    node, index = first
    while node is not join:
        operands, uses = _channel_operands(where, node, index), _uses(where, node.outputs[0])
        if operands is None or len(uses) != 1:
            return {}
        chain[node] = operands
        ((node, index),) = uses
    plain = join.domain in DEFAULT_DOMAINS and where.opset >= _BROADCAST
    return {**chain, join: ()} if plain and join.op_type in _JOINS else {}


def _channel_operands(where: Map, node: ir.Node, index: int) -> tuple[int, ...] | None:
    """The inputs that hold a number for each channel; None if that is not all that the node depends on."""
    if node.domain not in DEFAULT_DOMAINS or len(node.outputs) != 1:
        return None
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return None
    others = [i for i, value in enumerate(node.inputs) if i != index and value is not None]
    stored = [_stored(node.inputs[i]) for i in others]
    arrays = [array for array in stored if array is not None]
    if len(arrays) < len(others):
        return None
    if node.op_type in ELEMENTWISE:
        return () if index == 0 and all(array.size == 1 for array in arrays) else None
    if node.op_type == "BatchNormalization":
        training = node.attributes.get("training_mode")
        plain = where.opset >= _PLAIN_NORMALIZATION and not (training and training.value)
        by_channel = [array.shape for array in arrays] == [(where.channels,)] * 4
        return tuple(others) if plain and by_channel else None
    if index not in _WITH_OPERAND.get(node.op_type, ()) or where.opset < _BROADCAST:
        return None
    (array,) = arrays
    # An infinity would become NaN in a shuffle that multiplies by zeros.
    if not np.isfinite(array).all() or (node.op_type == "Div" and not array.all()):
        return None
    more = where.ndim + 2 - array.ndim
    if array.size == 1:
        return () if more >= 0 else None
    by_channel = (*(1,) * more, *array.shape) == (1, where.channels, *(1,) * where.ndim)
    return tuple(others) if by_channel else None


def _stored(value: ir.Value | None) -> NDArray[Any] | None:
    """What is stored, and cannot be set by callers."""
    tensor = constant(value, OLDEST_IR_WITH_FREE_INITIALIZERS)
    return None if tensor is None else np.asarray(tensor.numpy())
