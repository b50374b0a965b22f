"""An ONNX model run in ONNX Runtime for its diagnosis: what its layers see, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.errors import DeconvfixError
from deconvfix.frontends.base import LayerAnswer, Probe
from deconvfix.frontends.onnx import inputs as onnx_inputs
from deconvfix.frontends.onnx.find import Layer, find_layers
from deconvfix.frontends.onnx.nodes import make_plain
from deconvfix.frontends.onnx.parity import session_of
from deconvfix.frontends.onnx.values import constant
from deconvfix.parity.runtime import run_named

__all__ = ["probe_model", "runner"]


def probe_model(model: ir.Model, example_inputs: Any) -> Probe:
    """Runs a copy whose layers' inputs are outputs too.

    Layers in branches, bodies and functions, and those whose weight is computed, are not looked at
    alone: a graph's outputs are what ONNX Runtime gives.

    Args:
        model: The model; it is not changed.
        example_inputs: As for `deconvfix.inspect`.
    """
    feed = onnx_inputs.as_feed(model, example_inputs)
    names = tuple(feed)
    count = len(model.graph.outputs)
    watched = model.clone()
    make_plain(watched)
    found = find_layers(watched)
    layers = [
        layer
        for layer in found
        if layer.graph is watched.graph and layer.spec is not None and layer.has_weight
    ]
    # ONNX Runtime gives outputs alone, so what the layers read becomes an output too.
    own = {value.name for value in watched.graph.outputs}
    for layer in layers:
        value = layer.node.inputs[0]
        assert value is not None
        # An input of the model is in the feed already, and an output may be listed once.
        if value.name not in own and value.producer() is not None:
            own.add(value.name)
            watched.graph.outputs.append(value)
    try:
        session = session_of(watched)
        results = run_named(session, feed)
    except DeconvfixError as error:
        return Probe(notes=(f"No diagnosis by running the model: {error.found}.",))
    outputs = [str(value.name) for value in watched.graph.outputs]
    values = feed | dict(zip(outputs, results, strict=True))

    def run(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        # The model's own outputs come first.
        return _arrays(run_named(session, dict(zip(names, arrays, strict=True)))[:count])

    looked_at = {layer.name for layer in layers}
    answers = [
        _answer(layer, values.get(str(_name_of_input(layer))), watched.ir_version)
        for layer in layers
    ]
    return Probe(
        layers=tuple(answer for answer in answers if answer is not None),
        inputs=tuple(feed.values()),
        outputs=tuple(_arrays(results[:count])),
        run=run,
        unseen=tuple(layer.name for layer in found if layer.name not in looked_at),
    )


def runner(model: ir.Model) -> Callable[[Any], Probe]:
    """Runs a model on one input after the other, in one session.

    Returns:
        Gives inputs, outputs and `run` of a `Probe`; without `run`, but with a note, where it does not run.
    """
    try:
        session = session_of(model)
    except DeconvfixError as error:
        note = f"{error.found}"
        return lambda example: Probe(notes=(note,))

    def probe(example: Any) -> Probe:
        feed = onnx_inputs.as_feed(model, example)

        def run(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
            return _arrays(run_named(session, dict(zip(feed, arrays, strict=True))))

        try:
            outputs = run(tuple(feed.values()))
        except DeconvfixError as error:
            return Probe(notes=(f"{error.found}",))
        return Probe(inputs=tuple(feed.values()), outputs=tuple(outputs), run=run)

    return probe


def _name_of_input(layer: Layer) -> str | None:
    value = layer.node.inputs[0]
    return None if value is None else value.name


def _answer(layer: Layer, x: NDArray[Any] | None, ir_version: int) -> LayerAnswer | None:
    """What a run shows of a layer; None without floating-point values or with a computed bias."""
    spec = layer.spec
    assert spec is not None
    if x is None or x.dtype.kind != "f" or x.size == 0:
        return None
    bias = None
    if spec.bias and layer.quantised is not None and layer.quantised.bias is not None:
        bias = layer.quantised.bias.real()
    elif spec.bias:
        stored = constant(layer.node.inputs[2], ir_version)
        if stored is None:
            return None
        bias = np.asarray(stored.numpy()).astype(np.float64)
    size = layer.dynamic_size.output_size if layer.dynamic_size else spec.output_size(x.shape[2:])
    return LayerAnswer.of(layer.name, spec, layer.read_weight(), bias, x, size)


def _arrays(results: Sequence[Any]) -> list[NDArray[Any]]:
    """An empty array for what is none (a sequence, an absent optional value)."""
    return [result if isinstance(result, np.ndarray) else np.empty(0) for result in results]
