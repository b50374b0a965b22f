"""What an ONNX model gives for its layers to be fitted to data; `frontends.calibrate` has the algorithm.

ONNX Runtime computes the inputs of a layer in the model so far, and its outputs in the original: the part of
each model that computes them is cut out, with that value as its only output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.errors import DeconvfixError, ModelError
from deconvfix.fit.moments import NUMPY
from deconvfix.fit.regression import Solved
from deconvfix.frontends.calibrate import PlanInProgress, UnseenError, check_stored
from deconvfix.frontends.onnx.find import Layer, find_layers
from deconvfix.frontends.onnx.inputs import Feed
from deconvfix.frontends.onnx.parity import session_of
from deconvfix.frontends.onnx.requantised import as_stored
from deconvfix.frontends.onnx.values import RANDOM, bodies, constant, visible
from deconvfix.parity.runtime import run_named
from deconvfix.plan import Fitted, Plan, Replaced

__all__ = ["FittableModel", "part_of", "values_of"]

Array = NDArray[np.float64]


class FittableModel:
    """An ONNX model whose layers are fitted; see `frontends.calibrate.Fittable`.

    Args:
        before: The original; it is not changed.
        plan: What is converted.
        feeds: Calibration inputs, by name.
        apply: Carries out a plan, with the kernels in it, on a model.
    """

    arrays = NUMPY
    # The geometry of a node is fixed, whatever the size of its input.
    any_size = False

    def __init__(
        self,
        before: ir.Model,
        plan: Plan,
        feeds: Sequence[Feed],
        apply: Callable[[ir.Model, Plan], ir.Model],
    ) -> None:
        self._before = before
        self._feeds = feeds
        self._apply = apply
        self._plan = PlanInProgress(plan)
        self._layers = {layer.name: layer for layer in find_layers(before)}

    def order(self, names: Sequence[str]) -> Mapping[str, int]:
        """The layers in the order of their nodes."""
        ordered = [name for name in self._layers if name in names]
        self._plan.start(ordered)
        return dict.fromkeys(ordered, 1)

    def trained(self, decision: Replaced) -> tuple[Array, Array | None]:
        """Of one of the main graph's nodes, which run once, with a bias that can be set."""
        layer = self._layers[decision.name]
        if layer.function is not None:
            raise UnseenError(
                "it is in a function of the model",
                "Inline the model's functions first (onnx_ir.passes.common.InlinePass)",
            )
        # Values inside a branch or a loop cannot be outputs of the model.
        if layer.graph is not self._before.graph:
            raise UnseenError(
                "it is in a branch or a loop, which may run several times or not at all",
                "Convert the model before it gets control flow, or exclude the layer",
            )
        if not decision.spec.bias:
            return layer.read_weight(), None
        bias = self._bias(layer)
        if bias is None:
            raise UnseenError(
                "its bias is computed while the model runs, or may be set by the caller",
                "Store the bias as an initializer that is not an input",
            )
        return layer.read_weight(), bias.astype(np.float64)

    def seen(self, decision: Replaced) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """One pair for each calibration input."""
        node = self._layers[decision.name].node
        # On a copy: surgery changes the model in place.
        so_far = self._apply(self._before.clone(), self._plan.before(decision.name))
        parts = part_of(so_far, node.inputs[0]), part_of(self._before, node.outputs[0])
        for part in parts:
            _check_repeatable(part)
        yield from zip(*(values_of(part, self._feeds) for part in parts), strict=True)

    def directions(self, decision: Replaced) -> None:
        """There is no grid that may stay on some inputs."""

    def put(self, decision: Replaced, solved: Solved) -> Replaced:
        """In the values that the file can hold; they travel in the plan."""
        layer, bias = self._layers[decision.name], None
        if solved.bias is not None:
            old = self._bias(layer)
            assert old is not None
            bias = _rounded(solved.bias, old.dtype, decision)
        if layer.quantised is not None:
            fitted = replace(decision, fitted=Fitted(solved.kernel, bias))
            return self._put(as_stored(layer, fitted))
        assert layer.weight is not None
        kernel = _rounded(solved.kernel, layer.weight.dtype.numpy(), decision)
        return self._put(replace(decision, fitted=Fitted(kernel, bias)))

    def _put(self, decision: Replaced) -> Replaced:
        self._plan.put(decision)
        return decision

    def _bias(self, layer: Layer) -> NDArray[Any] | None:
        if layer.quantised is not None and layer.quantised.bias is not None:
            return layer.quantised.bias.real()
        # Inputs of the model may be set by the caller, and count as computed.
        stored = constant(layer.node.inputs[2], self._before.ir_version)
        return None if stored is None else np.asarray(stored.numpy())


def _check_repeatable(part: ir.Model) -> None:
    """Random numbers would differ between the two models."""
    for body in bodies(part):
        for node in body.all_nodes():
            # From opset 12 on the third input switches training mode on.
            training = node.op_type == "Dropout" and len(node.inputs) > 2
            if node.op_type in RANDOM or training:
                raise UnseenError(
                    f"the node {node.name!r} ({node.op_type}) before it is random",
                    "Make the random values an input of the model",
                )


def _rounded(values: Array, dtype: np.dtype[Any], decision: Replaced) -> Array:
    """In the values that the file can hold."""
    # What overflows becomes infinite, and `check_stored` says so.
    with np.errstate(over="ignore"):
        stored = values.astype(dtype).astype(np.float64)
    check_stored(decision, stored, str(dtype))
    return stored


# --- running parts of models --------------------------------------------------------------------


def part_of(model: ir.Model, value: ir.Value | None) -> ir.Model:
    """A copy of a model, with a value of its main graph as its only output, and what computes it."""
    assert value is not None
    part = model.clone()
    graph = part.graph
    # By name, as the copy has values of its own.
    output = visible((graph,))[str(value.name)]
    graph.outputs.clear()
    graph.outputs.append(output)
    # From the end: a node is removed after those that read it.
    for node in reversed(list(graph)):
        if not any(result.uses() or result.is_graph_output() for result in node.outputs):
            graph.remove(node, safe=True)
    for name, stored in list(graph.initializers.items()):
        if not (stored.uses() or stored.is_graph_output() or stored.is_graph_input()):
            graph.initializers.pop(name)
    return part


def values_of(part: ir.Model, feeds: Sequence[Feed]) -> Iterator[NDArray[Any]]:
    """The only output of a part, for one input after the other.

    Raises:
        ModelError: If ONNX Runtime does not run it.
    """
    (output,) = part.graph.outputs
    name = str(output.name)
    # The first layer of a model reads an input, and ONNX Runtime is not needed for it.
    if output.producer() is None and all(name in feed for feed in feeds):
        yield from (feed[name] for feed in feeds)
        return
    # The part of the model up to this value, so that nothing behind it is run.
    try:
        session = session_of(part)
    except DeconvfixError as error:
        raise ModelError(
            "model",
            f"ONNX Runtime does not load it ({error.found})",
            "init 'calibrated' runs the model",
            "Use init 'fit', which looks at the weights alone",
        ) from error
    # A part may need fewer inputs than the model.
    needed = {declared.name for declared in session.get_inputs()}
    for number, feed in enumerate(feeds, start=1):
        try:
            (value,) = run_named(
                session, {key: array for key, array in feed.items() if key in needed}
            )
        except DeconvfixError as error:
            raise ModelError(
                f"calibration input {number}",
                error.found,
                "the model must run on each of them",
                "Correct it, or leave it out",
            ) from error
        yield value
