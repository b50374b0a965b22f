"""Where the transposed convolutions of a model are, under whatever name an operator has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from deconvfix.errors import Refusal
from deconvfix.frontends.onnx.fold import fold
from deconvfix.frontends.onnx.pixel_shuffle import is_pixel_shuffle
from deconvfix.frontends.onnx.values import DEFAULT_DOMAINS, bodies, constant

__all__ = [
    "Scope",
    "foreign",
    "make_plain",
    "opset_of",
    "plain",
    "transposed_convolutions",
]

# ONNX Runtime's own, whose inputs are (X, W, Pads, B).
_DYNAMIC_PADS = ("com.microsoft", "ConvTransposeWithDynamicPads")
_CALLED = re.compile(r"conv(olution)?\d?d?_?transpose|transposed?_?conv|deconv", re.IGNORECASE)


@dataclass(frozen=True)
class Scope:
    """Where a node stands.

    Attributes:
        graph: The graph or function body.
        function: The model-local function; None outside of one.
        opset: Version of the default domain there.
    """

    graph: ir.Graph
    function: ir.Function | None
    opset: int


def transposed_convolutions(model: ir.Model) -> Iterator[tuple[Scope, ir.Node, str]]:
    """Every node that is one, or is called like one, with a name for it; in the model's order."""
    main = Scope(model.graph, None, opset_of(model.opset_imports))
    for scope, node, name in _walk(main, model.graph, ""):
        if _is_transposed(model, node):
            yield scope, node, name
    for function in model.functions.values():
        inside = Scope(function.graph, function, opset_of(function.opset_imports))
        for scope, node, name in _walk(inside, function.graph, f"{function.name}."):
            if _is_transposed(model, node):
                yield scope, node, name


def _walk(scope: Scope, graph: ir.Graph, prefix: str) -> Iterator[tuple[Scope, ir.Node, str]]:
    for node in graph:
        name = prefix + (node.name or next((v.name for v in node.outputs if v.name), node.op_type))
        yield replace(scope, graph=graph), node, name
        for attribute in node.attributes.values():
            # A reference to an attribute of the function around, which holds no graph here.
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _walk(scope, attribute.as_graph(), f"{name}.{attribute.name}.")
            elif attribute.type == ir.AttributeType.GRAPHS:
                for number, inner in enumerate(attribute.as_graphs()):
                    yield from _walk(scope, inner, f"{name}.{attribute.name}[{number}].")


def _is_transposed(model: ir.Model, node: ir.Node) -> bool:
    if node.domain in DEFAULT_DOMAINS:
        return node.op_type == "ConvTranspose" and not is_pixel_shuffle(node, model.ir_version)
    if node.op_identifier() in model.functions:
        return False  # what is in it is searched
    operator = node.attributes.get("operator")  # of an ATen node
    words = [node.op_type]
    if operator is not None and operator.type == ir.AttributeType.STRING:
        words.append(str(operator.value))
    if "convolution" in words or "_convolution" in words:
        # torch's general one: (input, weight, bias, stride, padding, dilation, transposed, ...).
        flag = constant(node.inputs[6] if len(node.inputs) > 6 else None, model.ir_version)
        return flag is None or bool(flag.numpy().any())
    return any(map(_CALLED.search, words))


def foreign(node: ir.Node) -> Refusal | None:
    """Why an operator that is called like a transposed convolution is not understood."""
    if node.domain in DEFAULT_DOMAINS:
        return None
    if (node.domain, node.op_type) == _DYNAMIC_PADS:
        return Refusal(
            "its padding is computed while the model runs",
            "a geometry that is fixed is needed",
            "Store the padding in the file, for example with onnxruntime's basic optimisations",
        )
    return Refusal(
        f"it is the operator {node.op_type!r} of the domain {node.domain!r}",
        "ConvTranspose of ONNX is understood",
        "Export the model without this operator, or convert the model that the file was made from",
    )


def opset_of(imports: Any) -> int:
    """Version of the default domain; 1 without it."""
    return int(next((imports[domain] for domain in DEFAULT_DOMAINS if domain in imports), 1))


def plain(model: ir.Model) -> ir.Model:
    """The model itself, or a copy in which `make_plain` had something to do."""
    dynamic = (
        (node.domain, node.op_type) == _DYNAMIC_PADS
        for body in bodies(model)
        for node in body.all_nodes()
    )
    if any(dynamic):
        model = model.clone()
        make_plain(model)
    return model


def make_plain(model: ir.Model) -> None:
    """Writes each ConvTransposeWithDynamicPads of constant padding as a ConvTranspose, in place."""
    for scope, node, _ in list(transposed_convolutions(model)):
        if (node.domain, node.op_type) != _DYNAMIC_PADS:
            continue
        x, w, pads, b = [*node.inputs, None, None, None, None][:4]
        fold(model, scope, pads)
        stored = constant(pads, model.ir_version)
        if x is None or w is None or stored is None:
            continue
        # In place: consumers and names of the node's outputs stay.
        node.domain, node.op_type = "", "ConvTranspose"
        # ONNX Runtime ignores the pads for SAME_*, and goes by them for VALID.
        auto_pad = node.attributes.get("auto_pad")
        if auto_pad is None or not str(auto_pad.value).startswith("SAME"):
            node.attributes.pop("auto_pad", None)
            amounts = [int(n) for n in stored.numpy().reshape(-1)]
            node.attributes["pads"] = ir.AttrInt64s("pads", amounts)
        # The names of the operands stay: (X, W, Pads, B) becomes (X, W, B).
        node.resize_inputs(3 if b is not None else 2)
        if b is not None:
            node.replace_input_with(2, b)
