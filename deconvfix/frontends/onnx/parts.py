"""Parts of a model, cut out and run on their own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from deconvfix.frontends.onnx.values import DEFAULT_DOMAINS, RANDOM, is_quantizer, stored_tensor

__all__ = ["WIDE", "cut_out", "is_stored", "serialized"]

# What ONNX Runtime does not run in every operator on a CPU.
WIDE = (ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


def is_stored(value: ir.Value, ir_version: int) -> bool:
    """Whether a value is a constant, or computed from constants alone."""
    if stored_tensor(value, ir_version) is not None:
        return True
    node = value.producer()
    if node is None or node.op_type in RANDOM or not _is_understood(node):
        return False
    # Constant nodes were answered above: a node without inputs is something else here.
    return bool(node.inputs) and all(
        operand is None or is_stored(operand, ir_version) for operand in node.inputs
    )


def _is_understood(node: ir.Node) -> bool:
    return node.domain in DEFAULT_DOMAINS or is_quantizer(
        node, "DequantizeLinear", "QuantizeLinear"
    )


def cut_out(
    stops: Mapping[ir.Value, ir.Value], result: ir.Value, *, narrow: bool = True
) -> ir.Graph:
    """A graph of copies of the nodes that compute `result` from the stops and from constants.

    Args:
        stops: Values at which the part begins, with the inputs that stand for them.
        result: Its only output.
        narrow: Whether float64 and bfloat16 become float32, which ONNX Runtime runs.

    Raises:
        ValueError: If it depends on anything else.
    """
    own = _narrow if narrow else _as_it_is
    # Recursion ends at the stops, whatever computes them.
    copies = dict(stops)
    nodes: list[ir.Node] = []
    constants: list[ir.Value] = []

    def copied(value: ir.Value) -> ir.Value:
        if value in copies:
            return copies[value]
        # A stop ends the walk; a constant is copied; anything else is the result of a node.
        node = value.producer()
        if node is None:
            if value.const_value is None:
                raise ValueError(f"it depends on {value.name!r}")
            new = ir.val(value.name, const_value=own(value.const_value))
            constants.append(new)
            copies[value] = new
            return new
        # Nodes with graphs inside read values by name, and references have no function here.
        if not _is_understood(node) or any(
            attribute.is_ref()
            or attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        ):
            raise ValueError(f"it depends on the node {node.name!r} ({node.op_type})")
        # Operands come first, so the list of nodes is in an order that runs.
        inputs = [None if operand is None else copied(operand) for operand in node.inputs]
        outputs = [ir.Value(name=output.name) for output in node.outputs]
        attributes = [
            ir.AttrTensor(attribute.name, own(attribute.as_tensor()))
            if attribute.type == ir.AttributeType.TENSOR
            else attribute
            for attribute in node.attributes.values()
        ]
        nodes.append(ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs))
        # All outputs at once, as nodes such as Split have several.
        copies.update(zip(node.outputs, outputs, strict=True))
        return copies[value]

    output = copied(result)
    if result.dtype is not None:  # else ONNX Runtime infers it
        output.dtype = ir.DataType.FLOAT if narrow and result.dtype in WIDE else result.dtype
    return ir.Graph(
        list(stops.values()), [output], nodes=nodes, initializers=constants, name="part"
    )


def _as_it_is(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return tensor


def _narrow(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype not in WIDE:
        return tensor
    return ir.tensor(np.asarray(tensor.numpy()).astype(np.float32), name=tensor.name)


def serialized(graph: ir.Graph, model: ir.Model, function: ir.Function | None, opset: int) -> bytes:
    """A part as a model of its own, with the operator sets of the place that it was cut out of."""
    for imports in (model.opset_imports, {} if function is None else function.opset_imports):
        graph.opset_imports.update(imports)
    graph.opset_imports[""] = opset
    # From IR version 4 on initializers need not be inputs.
    part = ir.Model(graph, ir_version=max(model.ir_version, 4))
    ir.external_data.load_to_model(part)
    return bytes(ir.to_proto(part).SerializeToString())
