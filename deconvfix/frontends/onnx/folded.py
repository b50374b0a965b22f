"""Nearest upsampling and convolutions, written as the transposed convolutions that they are.

    u = Resize(x), e = Relu(u), p = Pad(e), y = Conv(p, w)    becomes
    e = Relu(x), p = Pad(e), y = ConvTranspose(p, W)

The transposed convolution takes the name of the convolution, and its output. A border that the kernel reaches
needs no Pad.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.folded import Folded
from deconvfix.frontends.onnx.nodes import opset_of
from deconvfix.frontends.onnx.operators import attributes_of
from deconvfix.frontends.onnx.steps import Operands, Writer
from deconvfix.frontends.onnx.upsampled import UpsampledConv, upsampled_convolutions
from deconvfix.frontends.onnx.values import Names

__all__ = [
    "ORIGIN",
    "Origin",
    "as_upsampled",
    "names_of",
    "remove_if_unused",
    "take_place",
    "with_folded",
]

# In `meta` of a ConvTranspose that stands for upsampling and a Conv, which no file holds: an `Origin`.
ORIGIN = "deconvfix.folded"
# Of a model of such a pair alone.
_ALONE = 13


@dataclass(frozen=True, eq=False)
class Origin:
    """What a transposed convolution stands for.

    Attributes:
        folded: The geometry.
        source: Name of the small map.
        upsampling: Name of the node that did it.
        weight: Of the convolution, (C_out, C_in / groups, *k).
    """

    folded: Folded
    source: str
    upsampling: str
    weight: NDArray[Any]


def names_of(model: ir.Model) -> dict[ir.Node, str]:
    """What the nodes of the main graph are called: by their outputs where they have no name of their own."""
    count = Counter(node.name for node in model.graph)
    return {
        node: node.name if node.name and count[node.name] == 1 else str(node.outputs[0].name)
        for node in model.graph
        if node.outputs
    }


def with_folded(model: ir.Model, names: Collection[str] | None = None) -> ir.Model:
    """Writes upsampling and convolutions as transposed convolutions, in place.

    Args:
        model: The model.
        names: Of the convolutions; all by default.
    """
    fresh, called = Names(model), names_of(model)
    for conv, found in list(upsampled_convolutions(model)):
        wanted = names is None or called[conv] in names
        if wanted and isinstance(found, UpsampledConv):
            _fold(model, fresh, found, called[conv])
    return model


def _fold(model: ir.Model, names: Names, found: UpsampledConv, name: str) -> None:
    graph, conv, folded = model.graph, found.conv, found.folded
    spec, border = folded.spec, folded.border
    source = found.resize.inputs[0]
    # What treats each element alike treats the small map alike.
    for node in found.between:
        node.replace_input_with(0, source)
        source = node.outputs[0]
        source.shape = None
    assert source is not None
    writer = Writer(names, name, opset_of(model.opset_imports), like=conv)
    x = source
    if border is not None:
        x = writer.pad(x, [(0, 0), (0, 0), *border.amounts], border.mode)
    weight = folded.transposed(found.weight).astype(found.weight.dtype)
    stored = names.initializer(weight, graph, f"{conv.inputs[1].name}.folded")  # type: ignore[union-attr]
    y = writer.op(
        "ConvTranspose",
        *(x, stored, *conv.inputs[2:3]),
        **attributes_of(spec),
    )
    node = writer.nodes[-1]
    node.name = name
    node.meta[ORIGIN] = Origin(
        folded,
        str(source.name),
        found.resize.name or str(found.resize.outputs[0].name),
        found.weight,
    )
    take_place(graph, found.replaced, y, writer.nodes)


def take_place(
    graph: ir.Graph, old: Sequence[ir.Node], y: ir.Value, new: Sequence[ir.Node]
) -> None:
    """New nodes in the place of others, and their result under the name of the last one's output.

    What only the old ones have read goes with them.
    """
    final = old[-1].outputs[0]
    operands = [value for node in old for value in node.inputs if value is not None]
    graph.insert_after(old[-1], new)
    y.type, y.shape, y.doc_string = final.type, final.shape, final.doc_string
    y.metadata_props.update(final.metadata_props)
    name = final.name
    ir.convenience.replace_all_uses_with(final, y, replace_graph_outputs=True)
    graph.remove(old[::-1], safe=True)
    y.name = name
    for value in operands:
        remove_if_unused(graph, value)


def remove_if_unused(graph: ir.Graph, value: ir.Value) -> None:
    """Removes a constant that only nodes which are gone have read."""
    producer = value.producer()
    if value.uses() or value.is_graph_output():
        return
    if producer is not None:
        if producer.op_type in ("Constant", "Identity", "Pad") and producer.graph is graph:
            operands = [operand for operand in producer.inputs if operand is not None]
            graph.remove(producer, safe=True)
            for operand in operands:
                remove_if_unused(graph, operand)
    elif value.is_initializer() and not value.is_graph_input():
        graph.initializers.pop(str(value.name), None)


def as_upsampled(origin: Origin, dtype: Any) -> bytes:
    """A model of the upsampling and the convolution alone, by definition, with weight and bias as inputs."""
    folded, ndim = origin.folded, len(origin.folded.factors)
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    x = ir.val("x", kind, [None] * (ndim + 2))
    weight = ir.val("weight", kind, list(origin.weight.shape))
    bias = ir.val("bias", kind, [folded.out_channels])
    inputs = [x, weight, *([bias] if folded.bias else [])]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": _ALONE}, name="upsampled")
    writer = Writer(Names(ir.Model(graph, ir_version=8)), "upsampled", _ALONE)
    operands = Operands([weight], bias, np.dtype(dtype))
    maps, _ = writer.steps(folded.steps, x, operands, folded.in_channels, [None] * ndim)
    y = cast(ir.Value, maps)
    y.dtype, y.shape = kind, ir.Shape([None] * (ndim + 2))
    graph.extend(writer.nodes)
    graph.outputs.append(y)
    return bytes(ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString())
