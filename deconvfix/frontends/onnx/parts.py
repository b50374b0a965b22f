"""Parts of a model, cut out and run on their own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from deconvfix.frontends.onnx.values import DEFAULT_DOMAINS, RANDOM, is_quantizer, stored_tensor

__all__ = ["WIDE", "cut_out", "expression", "is_stored", "serialized"]

# What ONNX Runtime does not run in every operator on a CPU.
WIDE = (ir.DataType.DOUBLE, ir.DataType.BFLOAT16)
# Weight norms take ten.
_MOST_NODES = 200


def is_stored(value: ir.Value, ir_version: int) -> bool:
    """Whether a value is a constant, or computed from constants alone."""
    return expression(value, ir_version) is not None


def expression(value: ir.Value, ir_version: int) -> list[ir.Node] | None:
    """The nodes that compute a value from constants alone, each behind those that it needs.

    Returns:
        An empty list for a constant; None if anything else takes part, or more nodes than an expression of
        weights has. (A file may share parts so that a walk without a memory would never end.)
    """
    nodes: dict[ir.Node, None] = {}
    # A value is looked at twice: first its operands are put before it, then its node is noted.
    stack = [(value, False)]
    while stack:
        current, has_operands = stack.pop()
        if stored_tensor(current, ir_version) is not None:
            continue
        node = current.producer()
        if node is None or node.op_type in RANDOM or not _is_understood(node):
            return None
        # Constant nodes were answered above: a node without inputs is something else here.
        if not node.inputs or len(nodes) > _MOST_NODES or len(stack) > 10 * _MOST_NODES:
            return None
        if node in nodes:
            continue
        if has_operands:
            nodes[node] = None
            continue
        stack.append((current, True))
        stack += [(operand, False) for operand in node.inputs if operand is not None]
    return list(nodes)


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

    try:
        output = copied(result)
    except RecursionError as error:
        raise ValueError("it depends on too long a chain of nodes") from error
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
