"""Parity of two ONNX models in ONNX Runtime: layer by layer and end to end.

*Layers.* The nodes that took a layer's place are cut out of the converted model, as they are in it, and
run against a ConvTranspose node on the same operands; the bound is that of `deconvfix.parity.bounds`. What
ONNX Runtime does not run on a CPU (float64, bfloat16) is compared in float32: the nodes are the same.

*End to end.* Original and converted model run on the same inputs, with the graph optimised and as it
stands, over a grid of shapes where axes are open. How far rounding may move an output is measured on
the original: its weights and inputs are moved by one eps at random. The outputs of quantised layers are
moved by half a step of the quantisation, which is what one runtime may round differently from another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from deconvfix.errors import DeconvfixError, ExportError, ModelError, RuntimeCrashError
from deconvfix.files import scratch_folder
from deconvfix.frontends.onnx import inputs as onnx_inputs
from deconvfix.frontends.onnx.disturbance import disturbed, one_eps_off
from deconvfix.frontends.onnx.inputs import Feed
from deconvfix.frontends.onnx.layer_parity import compare_layers
from deconvfix.frontends.onnx.values import (
    OLDEST_IR_WITH_FREE_INITIALIZERS,
    bodies,
    is_quantizer,
)
from deconvfix.parity.bounds import Comparison, ParityReport, psnr, summarize
from deconvfix.parity.definition import rounds_positions
from deconvfix.parity.outputs import (
    Case,
    Output,
    OutputParity,
    Pair,
    Patience,
    Rules,
    compare_outputs,
)
from deconvfix.parity.runtime import open_session, run_named
from deconvfix.plan import Plan

__all__ = [
    "compare_models",
    "first_that_runs",
    "psnr_db",
    "reference_of",
    "session_of",
    "weight_bytes",
]

# Models with more weights than this are compared layer by layer, unless inputs are given: a whole
# run would need several times as much memory.
_WHOLE_MODEL_BYTES = 2**30
# protobuf's limit is 2 GiB; larger models reach ONNX Runtime as files.
_SERIALIZED_BYTES = 2**31 - 2**27
_DISTURBANCES = 2
_AS_IT_STANDS = "as it stands"
# How a model is run, in the report's words, and whether ONNX Runtime optimises its graph then.
_MODES = {_AS_IT_STANDS: False, "optimised": True}
_RULES = Rules(
    constant="All outputs are constant, which is no evidence: give other inputs.",
    other_number="The model has {actual} outputs instead of {expected}.",
    not_repeatable="The original gives other outputs when it is run again.",
    quantised=True,
    patience=Patience(
        per_case=2.0, note="{count} further input shapes were left out: runs are slow."
    ),
)


def compare_models(
    before: ir.Model,
    after: ir.Model,
    inputs: Sequence[Any],
    plan: Plan | None,
    paths: tuple[Path, Path] | None = None,
) -> ParityReport:
    """Compares a converted model with the original.

    Args:
        before: The original.
        after: The converted model.
        inputs: Example inputs; made up from the model's own types if there are none.
        plan: What was converted; without one the models are compared end to end only.
        paths: Files that hold the two, if there are such.
    """
    # Names first: a run goes by the names of inputs and outputs.
    problems = _changed_interface(before, after)
    layers, notes = ([], []) if plan is None else compare_layers(before, after, plan)
    outputs = OutputParity()
    # End to end, only models of the same function compare.
    exact = plan is None or all(decision.exact for decision in plan.decisions)
    changed = plan is None or bool(plan.changed)
    rounded = []
    if plan is not None:
        rounded = [d.name for d in plan.replaced if rounds_positions(d.compiled().steps)]
    if not problems and exact and changed:
        if rounded:
            notes.append(
                f"The model was compared layer by layer: {', '.join(rounded)} got an interpolation whose "
                "positions are rounded, and that moves the outputs the more the larger the map is."
            )
        elif not inputs and weight_bytes(before) > _WHOLE_MODEL_BYTES:
            notes.append(
                "The model was not run as a whole, because of its size: each converted layer was "
                "compared on its own. Give inputs to run it."
            )
        else:
            outputs = _compare_outputs(before, after, inputs, plan, paths)
    problems += outputs.problems
    notes += outputs.notes
    remedy = ""
    if (
        _is_quantised(before)
        and _departs_only_optimised([*layers, *outputs.comparisons])
        and integers_saturate()
    ):
        problems.append(_SATURATES)
        remedy = _REDUCE_RANGE
    compared = layers or outputs.comparisons
    if not compared and plan is not None and not plan.changed and not problems:
        return ParityReport(True, 0.0, 0.0, "float32", notes=("Nothing was converted.",))
    report = summarize(layers, outputs.comparisons, "float32", problems, notes)
    return replace(report, remedy=remedy)


# Of integer kernels that add two products of bytes in 16 bits, as those for CPUs without VNNI do.
_SATURATES = (
    "The function is the same: run as it stands, the converted model agrees. ONNX Runtime's optimised run of "
    "integers departs on this CPU, whose integer kernels saturate."
)
_REDUCE_RANGE = "Quantise with reduce_range=True, or verify where the model will run"


def integers_saturate() -> bool:
    """Whether ONNX Runtime's sums of products of bytes saturate on this CPU."""
    return sum_of_products(255, 127) != 4 * 255 * 127


def sum_of_products(unsigned: int, signed: int) -> int:
    """Four times the product of two bytes, as ONNX Runtime's integer kernels compute it."""
    a, b = ir.val("a", ir.DataType.UINT8, [1, 4]), ir.val("b", ir.DataType.INT8, [4, 1])
    node = ir.node("MatMulInteger", [a, b])
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.INT32
    graph = ir.Graph([a, b], node.outputs, nodes=[node], opset_imports={"": 13}, name="bytes")
    session = open_session(ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString())
    feed = {"a": np.full((1, 4), unsigned, np.uint8), "b": np.full((4, 1), signed, np.int8)}
    return int(run_named(session, feed)[0].item())


def _is_quantised(model: ir.Model) -> bool:
    return any(
        is_quantizer(node, "QuantizeLinear", "DequantizeLinear")
        for body in bodies(model)
        for node in body.all_nodes()
    )


def _departs_only_optimised(comparisons: Sequence[Comparison]) -> bool:
    """Whether something departs, and only where ONNX Runtime has optimised the graph."""
    departed = [comparison for comparison in comparisons if not comparison.ok]
    optimised = next(mode for mode, optimizes in _MODES.items() if optimizes)
    return bool(departed) and all(found.inputs.endswith(f", {optimised}") for found in departed)


def psnr_db(before: ir.Model, after: ir.Model, example_inputs: Any) -> float | None:
    """`parity.bounds.psnr` of two models' outputs in ONNX Runtime."""
    feed = onnx_inputs.as_feed(before, example_inputs)
    results = []
    for model in (before, after):
        with _loadable(model, None) as file:
            results.append(run_named(open_session(file), feed))
    return psnr(*results)


def session_of(model: ir.Model) -> Any:
    """The model in ONNX Runtime."""
    with _loadable(model, None) as file:
        return open_session(file)


def weight_bytes(model: ir.Model) -> int:
    """Size of all stored tensors, without reading them."""
    tensors = (
        value.const_value for graph in model.graphs() for value in graph.initializers.values()
    )
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _changed_interface(before: ir.Model, after: ir.Model) -> list[str]:
    problems = []
    for what in ("inputs", "outputs"):
        old, new = (_names(m, what) for m in (before, after))
        if old != new:
            problems.append(f"The {what} are called {new} instead of {old}.")
    return problems


def _names(model: ir.Model, what: str) -> list[str]:
    """Before IR version 4 each initializer is an input too, which no caller gives."""
    values: Sequence[ir.Value] = getattr(model.graph, what)
    free = what == "outputs" or model.ir_version >= OLDEST_IR_WITH_FREE_INITIALIZERS
    return [str(value.name) for value in values if free or not value.is_initializer()]


# --- end to end ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Models:
    """`parity.outputs.Pair` for two ONNX models, as sessions.

    Attributes:
        before: The original, for each mode.
        after: The converted model, for each mode.
        noisy: The original with its numbers moved by one rounding, a few times.
        names: Of the outputs.
        cases: What to compare on.
    """

    before: Mapping[str, Any]
    after: Mapping[str, Any]
    noisy: Sequence[Any]
    names: tuple[str, ...]
    cases: tuple[Case, ...] = ()
    rules: Rules = _RULES
    modes: tuple[str, ...] = tuple(_MODES)

    def original(self, inputs: Feed, mode: str) -> list[Output]:
        try:
            return _outputs(self.before[mode], inputs)
        except ExportError as error:
            raise ModelError(
                "model",
                error.found,
                "example inputs must be what the model takes",
                "Correct the example inputs",
            ) from error

    def converted(self, inputs: Feed, mode: str) -> list[Output]:
        return _outputs(self.after[mode], inputs)

    def disturbed(self, inputs: Feed) -> list[list[Output]]:
        results = []
        for seed, session in enumerate(self.noisy):
            rng = np.random.default_rng(seed)
            moved = {
                name: one_eps_off(array, rng) if array.dtype.kind == "f" else array
                for name, array in inputs.items()
            }
            results.append(_outputs(session, moved))
        return results

    def name(self, index: int) -> str:
        return self.names[index]

    def does_not_run_on(self, cases: Sequence[str]) -> list[str]:
        return [f"The original itself does not run on: {'; '.join(cases)}."]


def _outputs(session: Any, feed: Feed) -> list[Output]:
    return [Output.of(array) for array in run_named(session, feed)]


def _compare_outputs(
    before: ir.Model,
    after: ir.Model,
    inputs: Sequence[Any],
    plan: Plan | None,
    paths: tuple[Path, Path] | None,
) -> OutputParity:
    """The models end to end.

    What keeps them from running is a note where there is a plan, as the layers were compared then; without
    one it is an error or a problem.
    """
    old, new = paths or (None, None)
    try:
        # The original first: what it does not do either is no fault of the conversion.
        original = _sessions(before, old)
    except ExportError as error:
        if plan is None:
            raise
        note = (
            f"The original does not run in ONNX Runtime, so the layers alone were compared "
            f"({error.found})."
        )
        return OutputParity(notes=(note,))
    try:
        converted = _sessions(after, new)
    except ExportError as error:
        problem = (
            f"The original runs in ONNX Runtime, and the converted model does not: {error.found}."
        )
        return OutputParity(problems=(problem,))
    # Sessions of the disturbed original measure how far rounding moves the outputs.
    models = _Models(original, converted, _noisy(before, plan), _names_of_outputs(before))
    reasons: list[str] = []
    cases = _cases(before, models.before[_AS_IT_STANDS], inputs, reasons)
    if cases:
        return compare_outputs(replace(models, cases=cases))
    if plan is None:
        return OutputParity(problems=tuple(reasons))
    return OutputParity(notes=tuple(reasons))


def reference_of(before: ir.Model, inputs: Sequence[Any], path: Path) -> Pair:
    """An original in ONNX Runtime, ready for what another runtime gives to be compared with.

    Args:
        before: The original.
        inputs: Example inputs; made up from the model's own types if there are none.
        path: Its file.

    Raises:
        DeconvfixError: If ONNX Runtime does not run it, or no inputs can be made up.
    """
    sessions = _sessions(before, path)
    reasons: list[str] = []
    cases = _cases(before, sessions[_AS_IT_STANDS], inputs, reasons)
    if not cases:
        raise ModelError(
            "inputs",
            " ".join(reasons).rstrip("."),
            "the original must run to be compared with",
            "Give inputs (--inputs FILE.npz)",
        )
    return _Models(sessions, {}, _noisy(before, None), _names_of_outputs(before), cases)


def _cases(
    before: ir.Model, session: Any, inputs: Sequence[Any], reasons: list[str]
) -> tuple[Case, ...]:
    """Given inputs, or made-up ones, and variants of each; none, and a reason, if none can be made up."""
    feeds = [onnx_inputs.as_feed(before, example) for example in inputs]
    if not feeds:
        made_up = first_that_runs(before, session, reasons)
        if made_up is None:
            return ()
        feeds = [made_up]
    # Other values and other open sizes for each of them.
    return tuple(
        Case(words, feed, given=bool(inputs) and words == "the inputs")
        for base in feeds
        for words, feed in onnx_inputs.variants(before, base)
    )


def first_that_runs(model: ir.Model, session: Any, notes: list[str]) -> Feed | None:
    """Made-up inputs that a model runs on; None, and a note that says why, if there are none."""
    reason = ""
    try:
        for feed in onnx_inputs.make_feeds(model):
            try:
                run_named(session, feed)
            except ExportError as error:
                reason = reason or error.found
                continue
            return feed
    except RuntimeCrashError:
        raise  # nothing more can be run
    except DeconvfixError as error:
        reason = str(error).rstrip(".")
    notes.append(
        "The model was not run as a whole, because no inputs could be made up for it: give some "
        f"(--inputs FILE.npz). ({reason})"
    )
    return None


def _sessions(model: ir.Model, path: Path | None) -> dict[str, Any]:
    """A model in ONNX Runtime, in each mode."""
    with _loadable(model, path) as file:
        return {mode: open_session(file, optimize=optimize) for mode, optimize in _MODES.items()}


def _noisy(model: ir.Model, plan: Plan | None) -> list[Any]:
    """The original with its numbers moved by one rounding, a few times."""
    noisy = []
    for seed in range(_DISTURBANCES):
        with _loadable(disturbed(model, plan, seed), None) as file:
            noisy.append(open_session(file, optimize=False))
    return noisy


def _names_of_outputs(model: ir.Model) -> tuple[str, ...]:
    return tuple(str(output.name) for output in model.graph.outputs)


@contextmanager
def _loadable(model: ir.Model, path: Path | None) -> Iterator[bytes | str]:
    """What ONNX Runtime opens: the file if there is one, the bytes if they are few enough."""
    if path is not None:
        yield str(path)
        return
    if weight_bytes(model) < _SERIALIZED_BYTES:
        # ONNX Runtime cannot find external files of a model that it gets as bytes.
        loaded = model.clone()
        ir.external_data.load_to_model(loaded)
        yield ir.to_proto(loaded).SerializeToString()
        return
    with scratch_folder() as folder:
        file = folder / "model.onnx"
        ir.save(model.clone(), file, external_data="model.data")
        yield str(file)
