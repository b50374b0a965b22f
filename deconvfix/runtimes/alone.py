"""One layer of an ONNX model as a model of its own, to be run and timed without the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix import __version__
from deconvfix.errors import DeconvfixError, ModelError
from deconvfix.frontends.onnx.find import Layer
from deconvfix.frontends.onnx.frontend import FRONTEND
from deconvfix.frontends.onnx.inputs import Feed, as_feed, make_feeds, shapes_of
from deconvfix.frontends.onnx.parity import session_of, weight_bytes
from deconvfix.frontends.onnx.tail import Tail, tail_of
from deconvfix.frontends.onnx.values import OLDEST_IR_WITH_FREE_INITIALIZERS, Known, constant
from deconvfix.parity.runtime import run_named
from deconvfix.plan import Plan, Replaced

__all__ = ["Alone", "feed_of", "layer_alone", "layer_shapes", "save"]

_NAME = "layer"
# protobuf's limit is 2 GiB.
_LARGEST = 2**31 - 2**27


@dataclass(frozen=True)
class Alone:
    """A model of one ConvTranspose, and of its tail, with which runtimes may fuse it.

    Attributes:
        model: With the layer's stored weight and bias, and what the tail has stored; what the layer gets
            from other nodes is an input.
        feed: Inputs of the sizes that the layer has in its model: seeded noise.
        geometry: All that the time of the layer depends on, as text.
    """

    model: ir.Model
    feed: Feed
    geometry: str

    def converted(self, decision: Replaced, target: str | None) -> ir.Model:
        """The same with its layer replaced, as it is in the whole model."""
        plan = Plan(decision.form, (replace(decision, name=_NAME),), target)
        return FRONTEND.apply(self.model.clone(), plan)


def layer_alone(
    model: ir.Model, layer: Layer, shape: Sequence[int], *, fixed_batch: bool = True
) -> Alone:
    """Cuts a layer out, with its own weights and what follows it element by element.

    Args:
        model: The model that it is from.
        layer: The layer, of known geometry.
        shape: Of its input, (N, C_in, *L). Axes that are open in the model are open here, too.
        fixed_batch: Whether N is fixed in the model.

    Raises:
        ModelError: If NumPy does not have its dtype.
    """
    spec = layer.spec
    assert spec is not None
    try:
        dtype = np.dtype(layer.dtype)
    except TypeError as error:
        raise ModelError(
            layer.name,
            f"its dtype is {layer.dtype}",
            "a layer is run alone in a dtype that NumPy has",
            "Exclude the layer",
        ) from error
    kind, rng = ir.DataType.from_numpy(dtype), np.random.default_rng(0)
    declared = [shape[0] if fixed_batch else None, spec.in_channels, *layer.input_size]
    inputs, feed = [ir.val("x", kind, declared)], {"x": _noise(rng, shape, dtype)}
    operands, stored, running = [inputs[0]], [], []
    shapes = {"weight": spec.weight_shape, "bias": (spec.out_channels,)}
    for role, value in zip(shapes, layer.node.inputs[1:], strict=False):
        if value is None:
            continue
        tensor = constant(value, model.ir_version)
        if tensor is None:
            running.append(role)
            feed[role] = _noise(rng, shapes[role], dtype)
            inputs.append(ir.val(role, kind, list(shapes[role])))
            operands.append(inputs[-1])
        else:
            array = np.asarray(tensor.numpy()).astype(dtype)
            operands.append(ir.val(role, const_value=ir.tensor(array, name=role)))
            stored.append(operands[-1])
    nodes = [ir.node("ConvTranspose", operands, layer.attributes, name=_NAME)]
    tail = tail_of(layer)
    if not tail.quantised:
        nodes += _copies(layer, tail, nodes[0].outputs[0], stored)
    y = nodes[-1].outputs[0]
    y.name, y.dtype, y.shape = "y", kind, ir.Shape([None] * (spec.ndim + 2))
    graph = ir.Graph(
        inputs,
        [y],
        nodes=nodes,
        initializers=stored,
        opset_imports={"": layer.opset},
        name="alone",
    )
    geometry = {
        "spec": spec.to_dict(),
        "attributes": {key: str(value) for key, value in sorted(layer.attributes.items())},
        "input": list(shape),
        "declared": declared,
        "dtype": layer.dtype,
        "opset": layer.opset,
        "running": running,
        "deconvfix": __version__,
    }
    if len(nodes) > 1:
        geometry["tail"] = [_described(node) for node in nodes[1:]]
    # From IR version 4 on initializers need not be inputs.
    whole = ir.Model(graph, ir_version=max(model.ir_version, 4))
    return Alone(whole, feed, json.dumps(geometry, sort_keys=True))


def _copies(layer: Layer, tail: Tail, y: ir.Value, stored: list[ir.Value]) -> list[ir.Node]:
    """The nodes of a tail behind another value; what they have stored is added to `stored`."""
    new: dict[ir.Value | None, ir.Value] = {layer.node.outputs[0]: y}
    copies = []
    for number, node in enumerate(tail.nodes):
        for index, value in enumerate(node.inputs):
            tensor = None if value in new else constant(value, OLDEST_IR_WITH_FREE_INITIALIZERS)
            if value is not None and tensor is not None:
                name = f"tail_{number}_{index}"
                array = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
                stored.append(ir.val(name, const_value=array))
                new[value] = stored[-1]
        inputs = [new.get(value, value) for value in node.inputs]
        copy = ir.Node(node.domain, node.op_type, inputs, node.attributes.values())
        copy.outputs[0].name = f"tail_{number}"
        new[node.outputs[0]] = copy.outputs[0]
        copies.append(copy)
    return copies


def _described(node: ir.Node) -> dict[str, Any]:
    """What the time of a node of a tail depends on."""
    return {
        "operator": node.op_type,
        "attributes": {key: str(attribute.value) for key, attribute in node.attributes.items()},
        "inputs": [
            None
            if value is None
            else str(value.const_value.shape if value.const_value else value.name)
            for value in node.inputs
        ],
    }


def save(model: ir.Model, path: Path) -> Path:
    """Writes a model, with its weights beside it where one file cannot hold them."""
    copy = model.clone()
    if weight_bytes(model) < _LARGEST:
        ir.external_data.load_to_model(copy)
        ir.save(copy, path)
    else:
        ir.save(copy, path, external_data=f"{path.name}.data")
    return path


def feed_of(model: ir.Model, example_inputs: Any | None) -> Feed | None:
    """Inputs that were given, or made-up ones where no size is open."""
    if example_inputs is not None:
        return as_feed(model, example_inputs)
    declared = shapes_of(model)
    fixed = all(
        one.dtype is not None
        and one.shape is not None
        and all(isinstance(n, int) for n in one.shape)
        for one in declared
    )
    return next(make_feeds(model)) if fixed and declared else None


def layer_shapes(
    model: ir.Model, layers: Sequence[Layer], feed: Feed | None
) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
    """The sizes that layers have in a model.

    Args:
        model: The model, without folded parts.
        layers: Of it.
        feed: What it runs on where sizes are open.

    Returns:
        The shapes of the layers' inputs by name, as far as they are known; the names of those whose batch
        is fixed.

    Raises:
        ModelError: If the model does not run on the inputs.
    """
    known, shapes, fixed = Known(model), {}, set()
    for layer in layers:
        said = known.shape(layer.node.inputs[0], layer.function)
        if said and isinstance(said[0], int):
            fixed.add(layer.name)
        if said and all(isinstance(n, int) for n in said):
            shapes[layer.name] = tuple(said)
    open_ones = [
        layer for layer in layers if layer.name not in shapes and layer.graph is model.graph
    ]
    if feed is None or not open_ones:
        return shapes, frozenset(fixed)
    # ONNX Runtime gives outputs alone, so what the layers read becomes an output too.
    watched = model.clone()
    values = {str(value.name): value for node in watched.graph for value in node.outputs}
    own = {str(value.name) for value in watched.graph.outputs}
    for layer in open_ones:
        name = str(layer.node.inputs[0].name)  # type: ignore[union-attr]
        if name in values and name not in own:
            own.add(name)
            watched.graph.outputs.append(values[name])
    try:
        results = run_named(session_of(watched), feed)
    except DeconvfixError as error:
        raise ModelError(
            "model",
            error.found,
            "it runs once, so that the sizes of its layers are known",
            "Correct the inputs",
        ) from error
    names = [str(value.name) for value in watched.graph.outputs]
    seen = feed | dict(zip(names, results, strict=True))
    for layer in open_ones:
        array = seen.get(str(layer.node.inputs[0].name))  # type: ignore[union-attr]
        if isinstance(array, np.ndarray):
            shapes[layer.name] = tuple(array.shape)
    return shapes, frozenset(fixed)


def _noise(rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    return rng.standard_normal(tuple(shape)).astype(dtype)
