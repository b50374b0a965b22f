"""Calibrated fits of ONNX models: each converted layer regressed on what the original layer computes.

Layer by layer, in the order in which they run. ONNX Runtime gives the inputs of a layer in the model so
far, whose earlier layers are fitted already, and the outputs that it should give in the original: the
part of each model that computes them, with that value as its only output. Only second moments are kept
(`fit.moments`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.errors import DeconvfixError, ModelError, sentence
from deconvfix.fit.moments import Moments
from deconvfix.fit.solve import MEMORY, solve
from deconvfix.forms import form
from deconvfix.frontends.calibrate import (
    best_fit,
    calibrated,
    candidates,
    check_held,
    fitted_decisions,
    too_large,
)
from deconvfix.frontends.onnx.find import Layer, find_layers
from deconvfix.frontends.onnx.inputs import Feed
from deconvfix.frontends.onnx.parity import session_of
from deconvfix.frontends.onnx.values import RANDOM, bodies, constant, visible
from deconvfix.parity.runtime import run_named
from deconvfix.plan import Decision, Fitted, Plan

__all__ = ["calibrate"]

Array = NDArray[np.float64]


def calibrate(
    before: ir.Model,
    plan: Plan,
    feeds: Sequence[Feed],
    apply: Callable[[ir.Model, Plan], ir.Model],
    *,
    choose_padding: bool,
    memory: float = MEMORY,
) -> tuple[Plan, list[str]]:
    """Fits the layers of a plan.

    Args:
        before: The original; it is not changed.
        plan: What is converted.
        feeds: Calibration inputs.
        apply: Carries out a plan, with the kernels in it, on a model.
        choose_padding: Choose the border of resize-convolutions by the measured error.
        memory: For the regression of a layer, in GiB.

    Returns:
        The plan with what was chosen, fitted and measured, and notes on layers that are not fitted.
    """
    pending = {each.name: each for each in fitted_decisions(plan)}
    decided = {each.name: each for each in plan.decisions if each.name not in pending}
    notes = []
    for layer in find_layers(before):
        decision = pending.get(layer.name)
        if decision is None:
            continue
        so_far = replace(plan, decisions=tuple(decided.values()))
        decided[layer.name] = decision
        large = too_large(decision, choose_padding, memory)
        if large is not None:
            notes.append(large)
            continue
        try:
            _check(before, layer)
            parts = (
                _part(apply(before.clone(), so_far), layer.node.inputs[0]),
                _part(before, layer.node.outputs[0]),
            )
            for part in parts:
                _check_repeatable(part)
            decided[layer.name] = _fit(before, layer, decision, parts, feeds, choose_padding)
        except _UnseenError as error:
            notes.append(
                sentence(
                    layer.name,
                    f"it keeps its fit to the weights, because {error}",
                    "only a layer whose inputs and outputs can be seen is fitted to them",
                    error.todo,
                )
            )
    decisions = tuple(decided[each.name] for each in plan.decisions)
    return replace(plan, decisions=decisions), notes


class _UnseenError(Exception):
    """Why a layer cannot be fitted to data, and what to do about it."""

    def __init__(self, found: str, todo: str) -> None:
        super().__init__(found)
        self.todo = todo


def _check(model: ir.Model, layer: Layer) -> None:
    """A layer must be one of the main graph's nodes, which run once, with a bias that can be set."""
    if layer.function is not None:
        raise _UnseenError(
            "it is in a function of the model",
            "Inline the model's functions first (onnx_ir.passes.common.InlinePass)",
        )
    if layer.graph is not model.graph:
        raise _UnseenError(
            "it is in a branch or a loop, which may run several times or not at all",
            "Convert the model before it gets control flow, or exclude the layer",
        )
    if layer.spec is not None and layer.spec.bias and _bias(model, layer) is None:
        raise _UnseenError(
            "its bias is computed while the model runs, or may be set by the caller",
            "Store the bias as an initializer that is no input",
        )


def _check_repeatable(part: ir.Model) -> None:
    """Random numbers would differ between the two models."""
    for body in bodies(part):
        for node in body.all_nodes():
            training = node.op_type == "Dropout" and len(node.inputs) > 2
            if node.op_type in RANDOM or training:
                raise _UnseenError(
                    f"the node {node.name!r} ({node.op_type}) before it is random",
                    "Make the random values an input of the model",
                )


def _bias(model: ir.Model, layer: Layer) -> NDArray[Any] | None:
    stored = constant(layer.node.inputs[2], model.ir_version)
    return None if stored is None else np.asarray(stored.numpy())


def _fit(
    before: ir.Model,
    layer: Layer,
    decision: Decision,
    parts: tuple[ir.Model, ir.Model],
    feeds: Sequence[Feed],
    choose_padding: bool,
) -> Decision:
    """Fits one layer."""
    spec, settings = decision.spec, decision.settings
    assert spec is not None
    assert settings is not None
    assert decision.form is not None
    assert layer.weight is not None
    target = form(decision.form)
    chosen = candidates(decision, choose_padding)
    moments = []
    for each in chosen:
        design = target.design(spec, each)
        assert design is not None, "only forms that are fitted have moments"
        moments.append(Moments(spec, design))
    for x, y in zip(*(_values(part, feeds) for part in parts), strict=True):
        for sums in moments:
            try:
                sums.add(x, y)
            except ValueError as error:
                todo = "Report this as a bug with the layer's attributes"
                raise _UnseenError(str(error), todo) from error
    start = target.fit(spec, settings, layer.read_weight())
    stored_bias = _bias(before, layer) if spec.bias else None
    bias = None if stored_bias is None else stored_bias.astype(np.float64)
    fits = [(s, solve(m, start, bias)) for s, m in zip(chosen, moments, strict=True)]
    best, solved = best_fit(decision, fits)
    kernel = _rounded(solved.kernel, layer.weight.dtype.numpy(), decision)
    if solved.bias is not None:
        assert stored_bias is not None
        bias = _rounded(solved.bias, stored_bias.dtype, decision)
    return replace(calibrated(decision, best, solved), fitted=Fitted(kernel, bias))


def _rounded(values: Array, dtype: np.dtype[Any], decision: Decision) -> Array:
    """In the values that the file can hold."""
    with np.errstate(over="ignore"):
        rounded = values.astype(dtype).astype(np.float64)
    check_held(decision, rounded, str(dtype))
    return rounded


# --- running parts of models --------------------------------------------------------------------


def _part(model: ir.Model, value: ir.Value | None) -> ir.Model:
    """A copy of a model, with a value of its main graph as its only output, and what computes it."""
    assert value is not None
    part = model.clone()
    graph = part.graph
    output = visible((graph,))[str(value.name)]
    graph.outputs.clear()
    graph.outputs.append(output)
    for node in reversed(list(graph)):
        if not any(each.uses() or each.is_graph_output() for each in node.outputs):
            graph.remove(node, safe=True)
    for name, each in list(graph.initializers.items()):
        if not (each.uses() or each.is_graph_output() or each.is_graph_input()):
            graph.initializers.pop(name)
    return part


def _values(part: ir.Model, feeds: Sequence[Feed]) -> Iterator[NDArray[Any]]:
    """The only output of a part, for one input after the other.

    Raises:
        ModelError: If ONNX Runtime does not run it.
    """
    (output,) = part.graph.outputs
    name = str(output.name)
    if output.producer() is None and all(name in feed for feed in feeds):
        yield from (feed[name] for feed in feeds)
        return
    try:
        session = session_of(part)
    except DeconvfixError as error:
        raise ModelError(
            "model",
            f"ONNX Runtime does not load it ({error.found})",
            "init 'calibrated' runs the model",
            "Use init 'fit', which looks at the weights alone",
        ) from error
    wanted = {each.name for each in session.get_inputs()}
    for number, feed in enumerate(feeds, start=1):
        try:
            (value,) = run_named(session, {n: x for n, x in feed.items() if n in wanted})
        except DeconvfixError as error:
            raise ModelError(
                f"calibration input {number}",
                error.found,
                "the model must run on each of them",
                "Correct it, or leave it out",
            ) from error
        yield value
