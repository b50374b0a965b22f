"""What follows a layer and may come before its shuffle and crop: runtimes fuse it there with the convolution.

ConvTranspose -> BatchNormalization -> Relu      becomes   Conv -> BatchNormalization -> Relu -> shuffle
DQ -> ConvTranspose -> Relu -> QuantizeLinear    becomes   DQ -> Conv -> Relu -> Q -> DQ -> shuffle -> Q
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from deconvfix.frontends.onnx.elementwise import Map, chain_behind
from deconvfix.frontends.onnx.find import Layer
from deconvfix.frontends.onnx.values import constant, is_quantizer

__all__ = ["NO_TAIL", "Tail", "tail_of"]


@dataclass(frozen=True, eq=False)
class Tail:
    """Nodes behind a layer, each the only reader of what comes before it.

    Attributes:
        nodes: In order; all treat each element alike, or each channel.
        channel_operands: Their inputs that hold a number for each channel.
        quantised: Whether the last node is a QuantizeLinear, and the layer's input a DequantizeLinear's.
    """

    nodes: tuple[ir.Node, ...] = ()
    channel_operands: Mapping[ir.Node, tuple[int, ...]] = field(default_factory=dict)
    quantised: bool = False

    @property
    def output(self) -> ir.Value:
        """The result of the last node."""
        return self.nodes[-1].outputs[0]

    def words(self) -> str:
        """A clause for the report; a quantised one is a pattern of its own."""
        if not self.nodes or self.quantised:
            return ""
        kinds = list(dict.fromkeys(node.op_type for node in self.nodes))
        listed = " and ".join(filter(None, [", ".join(kinds[:-1]), kinds[-1]]))
        return f"{listed} behind it {'come' if len(kinds) > 1 else 'comes'} before the shuffle"


NO_TAIL = Tail()


def tail_of(layer: Layer) -> Tail:
    """The longest tail of a layer; up to the QuantizeLinear where both sides are quantised."""
    if layer.spec is None:
        return NO_TAIL
    value = layer.node.outputs[0]
    where = Map(value, layer.spec.out_channels, layer.spec.ndim, layer.graph, layer.opset)
    chain = chain_behind(where)
    nodes = tuple(chain)
    last = nodes[-1].outputs[0] if nodes else value
    quantize = _quantizer(layer, last)
    if quantize is None:
        return Tail(nodes, chain)
    return Tail((*nodes, quantize), chain, quantised=True)


def _quantizer(layer: Layer, value: ir.Value) -> ir.Node | None:
    """The QuantizeLinear that alone reads a value, of a layer whose input is quantised too."""
    x = layer.node.inputs[0]
    source = None if x is None else x.producer()
    if source is None or not is_quantizer(source, "DequantizeLinear"):
        return None
    if value.is_graph_output() or len(value.uses()) != 1:
        return None
    ((node, index),) = value.uses()
    if index != 0 or node.graph is not layer.graph or not is_quantizer(node, "QuantizeLinear"):
        return None
    scale = node.inputs[1]
    tensor = None if scale is None else constant(scale, 0)
    # A scale for each channel counts channels, which the shuffle moves.
    return node if tensor is not None and tensor.size == 1 else None
