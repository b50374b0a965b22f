"""Convolutions in front of pixel shuffles, written as the transposed convolutions that they are, and back.

    c = Conv(x), e = Relu(c), s = shuffle(e)    becomes
    t = ConvTranspose(x), c = Conv(x) with weights of zero, e = Relu(t + shuffle(c)) under the name of s

The convolution keeps the phases of the bias alone, which no transposed convolution has; the shuffle stays,
however it is written and whatever computes its sizes.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.shuffled import Shuffled
from deconvfix.frontends.onnx.operators import attributes_of
from deconvfix.frontends.onnx.shuffles import ShuffledConv, count_others, shuffled_convolutions
from deconvfix.frontends.onnx.values import Names, constant
from deconvfix.frontends.shuffled import upsampling_notes

__all__ = ["SHUFFLED", "as_in", "shows_shuffles", "with_shuffled", "with_transposed"]

# Metadata of a ConvTranspose that stands for a Conv and a shuffle, which no file holds: what was there.
SHUFFLED = "deconvfix.shuffled"


def shows_shuffles(model: ir.Model) -> bool:
    """Whether it has transposed convolutions for convolutions in front of pixel shuffles."""
    return any(SHUFFLED in node.metadata_props for node in model.graph)


def with_transposed(model: ir.Model, inputs: Any | None = None) -> tuple[ir.Model, tuple[str, ...]]:
    """The model with its convolutions in front of pixel shuffles written as transposed convolutions.

    Args:
        model: It is not changed.
        inputs: Not needed: nothing is run.

    Returns:
        A copy, or the model itself where there is none; and notes on other upsampling.
    """
    found = _plain_ones(model)
    notes = upsampling_notes(*count_others(model, found))
    if not found:
        return model, notes
    # Of the copy, whose nodes are others.
    model = model.clone()
    names = Names(model)
    for shuffled in _plain_ones(model):
        _expose(model, names, shuffled)
    model.graph.sort()
    return model, notes


def _plain_ones(model: ir.Model) -> list[ShuffledConv]:
    """Those whose nodes between can stand behind the shuffle as they are."""
    return [found for found in shuffled_convolutions(model) if found.is_plain]


def as_in(model: ir.Model, exposed: ir.Model) -> ir.Model:
    """Another model of the same graph, written like `exposed`: they are found again."""
    return with_transposed(model)[0]


def _expose(model: ir.Model, names: Names, found: ShuffledConv) -> None:
    graph, conv, shuffled = model.graph, found.conv, found.shuffled
    dtype = found.weight.dtype
    own = conv.name or str(conv.outputs[0].name)
    operands = [
        conv.inputs[0],
        names.initializer(shuffled.transposed(found.weight), graph, f"{own}.taps"),
    ]
    rest = np.zeros(len(found.weight), dtype)
    if found.bias is not None:
        wide = found.bias.astype(np.float64)
        mean = shuffled.mean_bias(wide).astype(dtype)
        operands.append(names.initializer(mean, graph, f"{own}.mean"))
        rest = (wide - shuffled.spread_bias(mean.astype(np.float64))).astype(dtype)
    transposed = ir.node(
        "ConvTranspose",
        operands,
        attributes_of(shuffled.spec),
        name=own,
    )
    transposed.outputs[0].name = names.fresh(f"{own}.transposed")
    transposed.metadata_props[SHUFFLED] = json.dumps(
        {
            "name": conv.name,
            "operands": [value.name for value in conv.inputs[1:] if value is not None],
            "channels": shuffled.channels.ravel().tolist(),
            "factors": list(shuffled.spec.stride),
            "between": len(found.between),
        }
    )
    conv.name = names.fresh(f"{own}.rest")
    conv.replace_input_with(
        1, names.initializer(np.zeros_like(found.weight), graph, f"{own}.zeros")
    )
    phases = names.initializer(rest, graph, f"{own}.phases")
    conv.resize_inputs(3)
    conv.replace_input_with(2, phases)
    result = found.shuffle[-1].outputs[0]
    total = ir.node("Add", [transposed.outputs[0], result], name=names.fresh(f"{own}.both"))
    total.outputs[0].name = names.fresh(f"{own}.sum")
    graph.insert_after(found.shuffle[-1], [transposed, total])
    # What reads the shuffle reads the sum, or what the nodes between make of it.
    final = total.outputs[0]
    found.shuffle[0].replace_input_with(0, conv.outputs[0])
    for node in found.between:
        node.replace_input_with(0, final)
        final = node.outputs[0]
        _forget(final)
        # What asks for its size means that of the convolution's output.
        for reader, index in list(final.uses()):
            if reader.op_type == "Shape":
                reader.replace_input_with(index, conv.outputs[0])
    _take_place(result, final, apart=total)


def _take_place(old: ir.Value, new: ir.Value, apart: ir.Node) -> None:
    """Lets all that reads `old`, but the node `apart`, read `new`; the names change places."""
    for node, index in list(old.uses()):
        if node is not apart:
            node.replace_input_with(index, new)
    graph = apart.graph
    assert graph is not None
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
    new.type, new.shape = old.type, old.shape
    old_name, new_name = old.name, new.name
    old.name = f"{old_name}.{new_name}"
    new.name, old.name = old_name, new_name


def _forget(value: ir.Value) -> None:
    """Its shape is another one now."""
    value.shape = None


def with_shuffled(model: ir.Model) -> ir.Model:
    """The way back, in place: the convolutions, with the weights that the others have now."""
    for node in list(model.graph):
        if SHUFFLED in node.metadata_props:
            _restore(model, node, json.loads(node.metadata_props[SHUFFLED]))
    model.graph.sort()
    return model


def _restore(model: ir.Model, transposed: ir.Node, told: dict[str, Any]) -> None:
    graph = model.graph
    ((total, _),) = transposed.outputs[0].uses()
    result = total.inputs[1]
    assert result is not None
    # Back from the sum to the convolution, and on from it to what was between.
    shuffle = [_producer(result)]
    while shuffle[-1].op_type != "Conv":
        shuffle.append(_producer(shuffle[-1].inputs[0]))
    conv = shuffle.pop()
    between: list[ir.Node] = []
    final = total.outputs[0]
    for _ in range(told["between"]):
        ((node, _),) = final.uses()
        between.append(node)
        final = node.outputs[0]
    operands = [graph.initializers[name] for name in told["operands"]]
    bias = operands[1] if len(operands) > 1 else None
    new = constant(transposed.inputs[1], model.ir_version)
    old = constant(operands[0], model.ir_version)
    assert new is not None
    assert old is not None
    channels = np.array(told["channels"]).reshape(-1, *told["factors"])
    shuffled = _geometry(old.numpy(), channels, conv, has_bias=bias is not None)
    stored = shuffled.convolution(new.numpy())
    if not np.array_equal(stored, old.numpy()):
        operands[0] = _set(model, operands[0], stored)
        if bias is not None:
            mean = constant(transposed.inputs[2], model.ir_version)
            assert mean is not None
            operands[1] = _set(model, bias, shuffled.spread_bias(mean.numpy()))
    unused = [*transposed.inputs[1:], *conv.inputs[1:]]
    conv.name = told["name"]
    conv.resize_inputs(1 + len(operands))
    for index, value in enumerate(operands, start=1):
        conv.replace_input_with(index, value)
    # The nodes between read the convolution again, and the shuffle what they make of it.
    value = conv.outputs[0]
    for node in between:
        node.replace_input_with(0, value)
        value = node.outputs[0]
        _forget(value)
    _take_place(final, result, apart=total)
    shuffle[-1].replace_input_with(0, value)
    graph.remove([total, transposed], safe=True)
    for operand in unused:
        if operand is None or operand.uses():
            continue
        if operand.is_graph_input():  # as all initializers are before IR version 4
            graph.inputs.remove(operand)
        graph.initializers.pop(str(operand.name))


def _producer(value: ir.Value | None) -> ir.Node:
    assert value is not None
    node = value.producer()
    assert node is not None
    return node


def _geometry(
    weight: NDArray[Any], channels: NDArray[np.int64], conv: ir.Node, *, has_bias: bool
) -> Shuffled:
    """The places of the taps alone count on the way back: any padding will do."""
    group = conv.attributes.get("group")
    groups = 1 if group is None else int(group.value)
    kernel = weight.shape[2:]
    shuffled = Shuffled.of(
        channels, weight.shape[1] * groups, kernel, ((0, 0),) * len(kernel), groups, bias=has_bias
    )
    assert shuffled is not None
    return shuffled


def _set(model: ir.Model, value: ir.Value, array: NDArray[Any]) -> ir.Value:
    """A stored value with other numbers: under its name, unless others read it."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return Names(model).initializer(array, model.graph, str(value.name))
    tensor = ir.tensor(array, name=str(value.name))
    value.const_value = tensor
    return value
