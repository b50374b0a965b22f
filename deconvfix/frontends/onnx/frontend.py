"""Front end for ONNX models, as onnx_ir.Model, and the pass behind it.

Every ConvTranspose of the default domain is found: in the graph, in the branches and bodies of If, Loop
and Scan, and in model-local functions. What is not replaced stays as it is: names, order, documentation,
metadata, functions, operator sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from deconvfix.errors import ModelError, Refusal
from deconvfix.fit.regression import MEMORY
from deconvfix.forms import DECONV
from deconvfix.forms.base import Init, Need
from deconvfix.forms.unfit import not_finite
from deconvfix.frontends.base import CalibrationData, Findings, Probe
from deconvfix.frontends.calibrate import calibrate, check_without_data, refuse_flat_inputs
from deconvfix.frontends.folded import find_with_folds
from deconvfix.frontends.onnx import parity as onnx_parity
from deconvfix.frontends.onnx.accepts import check_accepted
from deconvfix.frontends.onnx.calibrate import FittableModel
from deconvfix.frontends.onnx.deconv import deconv_plan, write_deconvs
from deconvfix.frontends.onnx.diagnose import probe_model, runner
from deconvfix.frontends.onnx.exposed import (
    SHUFFLED,
    as_in,
    shows_shuffles,
    with_shuffled,
    with_transposed,
)
from deconvfix.frontends.onnx.find import Layer, find_layers
from deconvfix.frontends.onnx.folded import ORIGIN, names_of, with_folded
from deconvfix.frontends.onnx.for_target import (
    for_target,
    stays,
    tails_told,
    with_fold,
    with_phases,
)
from deconvfix.frontends.onnx.inputs import as_feed
from deconvfix.frontends.onnx.nodes import make_plain, plain
from deconvfix.frontends.onnx.requantised import as_stored, lost_by_rounding
from deconvfix.frontends.onnx.reshuffle import rewrite_shuffles
from deconvfix.frontends.onnx.restore import Refitter
from deconvfix.frontends.onnx.samples import OnnxSamples
from deconvfix.frontends.onnx.structures import resolved
from deconvfix.frontends.onnx.surgery import Surgeon
from deconvfix.frontends.onnx.upsampled import upsampled_convolutions
from deconvfix.frontends.onnx.values import bodies, check_model, constant, is_quantizer
from deconvfix.frontends.onnx.weights import scales_of
from deconvfix.frontends.samples import calibration_inputs, count_samples
from deconvfix.frontends.shuffled import SHUFFLED_LAYER
from deconvfix.parity.bounds import ParityReport
from deconvfix.plan import Decision, Match, Options, Plan, Replaced, lacking
from deconvfix.planning import make_plan, not_folded

__all__ = ["FRONTEND", "OnnxFrontend", "ReplaceTransposedConvs"]

# Upsample, Resize (linear with half-pixel centres) and AveragePool as ONNX Runtime runs them.
_OLDEST_OPSET = {
    Need.NEAREST_UPSAMPLING: ("nearest upsampling", 7),
    Need.LINEAR_UPSAMPLING: ("linear upsampling", 11),
    Need.LOCAL_MEANS: ("local means", 7),
}


class OnnxFrontend:
    """For onnx_ir.Model; see the module's text."""

    fits: tuple[Init, ...] = ("calibrated",)

    def prepare(self, model: ir.Model, example_inputs: Any | None, *, inplace: bool) -> ir.Model:
        """A copy (tensors are shared, they are never written to), unless `inplace`.

        Raises:
            ModelError: If the model is malformed.
        """
        check_model(model)
        return model if inplace else model.clone()

    def find(self, model: ir.Model, example_inputs: Any | None) -> Findings:
        """Transposed convolutions by the names of their nodes; nothing is run."""
        model = plain(model)
        layers = find_layers(model)
        floats = [layer.name for layer in layers if _becomes_floats(layer, model.ir_version)]
        notes = [] if not floats else [_FLOATS.format(names=", ".join(floats))]
        matches = tuple(_match(layer, model.ir_version) for layer in layers)
        return Findings(matches, tuple(notes))

    def find_upsampled(self, model: ir.Model, inputs: Any | None) -> Findings:
        """Nothing is run; see `upsampled`."""
        model = plain(model).clone()
        names = names_of(model)
        notes = [
            found.sentence(names[conv])
            for conv, found in upsampled_convolutions(model)
            if isinstance(found, Refusal)
        ]
        layers = find_layers(with_folded(model))
        pairs = [(layer, layer.node.meta.get(ORIGIN)) for layer in layers]
        matches = [
            replace(
                _match(layer, model.ir_version),
                op="Resize + Conv",
                upsampling=origin.upsampling,
                macs=origin.folded.macs_per_position(),
            )
            for layer, origin in pairs
            if origin is not None
        ]
        return Findings(tuple(matches), tuple(notes))

    def same_function(self, shown: ir.Model, model: ir.Model, inputs: Any) -> ParityReport:
        """See `parity.compare_models`."""
        return onnx_parity.compare_models(shown, model, [] if inputs is None else [inputs], None)

    with_transposed = staticmethod(with_transposed)
    as_in = staticmethod(as_in)
    with_shuffled = staticmethod(with_shuffled)
    shows_shuffles = staticmethod(shows_shuffles)

    def probe(self, model: ir.Model, example_inputs: Any | None, matches: Sequence[Match]) -> Probe:
        """See `diagnose.probe_model`."""
        if example_inputs is None or not matches:
            return Probe()
        return probe_model(model, example_inputs)

    def apply(self, model: ir.Model, plan: Plan) -> ir.Model:
        """Rewrites the model in place."""
        make_plain(model)
        if plan.to == DECONV:
            write_deconvs(model, plan.decisions)
        elif plan.folded:
            with_folded(model, plan.folded)
        # Found once: surgery on one layer leaves the other nodes as they are.
        layers = {layer.name: layer for layer in find_layers(model)}
        profile = plan.profile
        surgeon = Surgeon(model, profile)
        for decision in plan.replaced:
            layer = layers.get(decision.name)
            if layer is None or layer.spec is None or layer.spec != decision.spec:
                found = "the model has no such layer" if layer is None else "its geometry differs"
                raise ModelError(
                    decision.name,
                    found,
                    "the plan must belong to this model",
                    "Use the recipe that was made for this model",
                )
            if decision.upsampling is not None:
                decision = with_phases(layer, decision)
            elif decision.settings.structure is None and decision.target.shuffles:
                decision = resolved(layer, decision)
            surgeon.replace(layer, decision)
        if plan.target is not None:
            rewrite_shuffles(model, plan.decisions, profile)
            check_accepted(model, profile)
        return model

    deconv_plan = staticmethod(deconv_plan)

    def with_writings(self, model: ir.Model, plan: Plan) -> Plan:
        """See `for_target.for_target`, and `structured.resolved` where nothing is asked for."""
        plan = _with_integers(model, plan)
        asked = any(layer.settings.convolution or layer.settings.shuffle for layer in plan.replaced)
        if plan.target is not None or asked:
            return for_target(model, plan, plan.profile)
        model = plain(model)
        if plan.folded:
            model = with_folded(model.clone(), plan.folded)
        layers = {layer.name: layer for layer in find_layers(model)}
        decisions: list[Decision] = []
        for decision in plan.decisions:
            if isinstance(decision, Replaced) and decision.name in layers:
                if decision.target.shuffles:
                    decision = resolved(layers[decision.name], decision)
                if decision.target.folds:
                    decision = with_fold(layers[decision.name], decision)
            decisions.append(decision)
        plan = replace(plan, decisions=tuple(decisions))
        if not any(decision.target.is_exact for decision in plan.replaced):
            return plan
        return tails_told(Surgeon(model), layers, plan)

    def fit_to_data(
        self, before: ir.Model, after: ir.Model, plan: Plan, data: CalibrationData
    ) -> tuple[ir.Model, Plan, Sequence[str]]:
        """Calibrated fits: what they found is in the plan, which is carried out again."""
        refuse_flat_inputs(data.flat)
        samples = OnnxSamples(before, data.example_inputs, data.tuning.seed)
        feeds, _ = calibration_inputs(samples, data.inputs)
        plan, notes = calibrate(
            FittableModel(plain(before), plan, feeds, self.apply),
            plan,
            choose_padding=data.choose_padding,
            memory=data.memory,
        )
        fitted = self.apply(before.clone(), plan)
        # Into the object that the caller has, as other parts refer to it.
        after.graph = fitted.graph
        after.functions.clear()
        after.functions.update(fitted.functions)
        return after, plan, notes

    def runner(self, model: ir.Model) -> Callable[[Any], Probe]:
        """See `diagnose.runner`."""
        return runner(model)

    def refitter(self, model: ir.Model, batches: Sequence[Any], most: int, seed: int) -> Refitter:
        """Layers without a grid on constants stay as they are."""
        model = plain(model)
        options = Options(to="equalized", init="calibrated")
        plan = make_plan(self.find(model, None).matches, options)
        feeds = [as_feed(model, batch) for batch in batches]
        return Refitter(model, plan, feeds, self.apply, most=most, seed=seed, memory=MEMORY)

    def count_samples(
        self, model: ir.Model, inputs: Iterable[Any] | str, example_inputs: Any | None
    ) -> int:
        """See `frontends.samples.count_samples`."""
        return count_samples(OnnxSamples(model, example_inputs), inputs)

    def drawn_inputs(self, model: ir.Model, distribution: str, seed: int) -> Any | None:
        """The first batch, in the shapes that the model declares."""
        return calibration_inputs(OnnxSamples(model, None, seed), distribution)[0][0]

    def left(self, model: ir.Model, plan: Plan, example_inputs: Any) -> Sequence[str]:
        """Names of the ConvTranspose nodes beyond those that the plan keeps."""
        if plan.to == DECONV:
            return []
        return [layer.name for layer in find_layers(model) if layer.name not in plan.stays]

    def verify(
        self, before: ir.Model, after: ir.Model, inputs: Sequence[Any], plan: Plan | None
    ) -> ParityReport:
        """See `parity.compare_models`."""
        return onnx_parity.compare_models(before, after, inputs, plan)

    def psnr_db(self, before: ir.Model, after: ir.Model, example_inputs: Any) -> float | None:
        """See `parity.psnr_db`."""
        return onnx_parity.psnr_db(before, after, example_inputs)


FRONTEND = OnnxFrontend()


class ReplaceTransposedConvs(ir.passes.InPlacePass):
    """onnx_ir pass that replaces every transposed convolution; layers that cannot be stay.

    Args:
        options: As for `deconvfix.convert`: `to`, `interpolation`, `padding_mode`, `init`, `seed`,
            `include` and `exclude` (tuples of glob patterns on the names of nodes).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = Options(**options)
        check_without_data(self.options)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Returns the model, and whether anything was replaced."""
        plan = self.plan(model)
        return ir.passes.PassResult(FRONTEND.apply(model, plan), bool(plan.replaced))

    def plan(self, model: ir.Model) -> Plan:
        """What `call` would do: decisions and refusals."""
        find = find_with_folds if self.options.fold else OnnxFrontend.find
        plan = make_plan(find(FRONTEND, model, None).matches, self.options)
        return FRONTEND.with_writings(model, plan)


def _match(layer: Layer, ir_version: int) -> Match:
    stands_for = SHUFFLED in layer.node.metadata_props
    return Match(
        name=layer.name,
        op="Conv + shuffle" if stands_for else "ConvTranspose",
        spec=layer.spec,
        dtype=layer.dtype,
        input_sizes=(tuple(n or 0 for n in layer.input_size),) if all(layer.input_size) else (),
        obstacle=layer.obstacle or _not_finite(layer, ir_version),
        lacks=lacking(
            {
                Need.OWN_PLACE: SHUFFLED_LAYER if stands_for else None,
                Need.STORED_WEIGHT: _not_own(layer),
            }
        )
        | {
            need: _needs_opset(what, layer.opset, oldest)
            for need, (what, oldest) in _OLDEST_OPSET.items()
            if layer.opset < oldest
        },
        read_weight=layer.read_weight if layer.has_weight else None,
    )


def _with_integers(model: ir.Model, plan: Plan) -> Plan:
    """The plan with the kernels that quantised layers store."""
    if all(decision.target.is_exact for decision in plan.replaced):
        return plan
    nodes = (node for body in bodies(model) for node in body.all_nodes())
    if not any(is_quantizer(node, "DequantizeLinear") for node in nodes):
        return plan
    layers = {layer.name: layer for layer in find_layers(plain(model))}
    decisions = [
        _in_integers(layers[decision.name], decision)
        if isinstance(decision, Replaced) and decision.name in layers
        else decision
        for decision in plan.decisions
    ]
    return replace(plan, decisions=tuple(decisions))


def _in_integers(layer: Layer, decision: Replaced) -> Decision:
    """One decision; where rounding would change a function that is to stay the same, a refusal."""
    if layer.quantised is not None and decision.target.folds:
        # Sums of taps would be rounded to coarser integers.
        decision = not_folded(decision)
    stored = as_stored(layer, decision)
    lost = lost_by_rounding(layer, stored) if decision.exact and stored is not decision else 0
    if not lost:
        return stored
    if decision.settings.init == "exact":
        return stays(decision, "refused", _NO_INTEGERS.sentence(decision.name))
    reason = f"{stored.reason}, which moves its kernel by {lost:.3g} of its size"
    return replace(stored, exact=False, relative_residual=lost, reason=reason)


_NO_INTEGERS = Refusal(
    "its weight is quantised, and the kernel of the same function is none of integers with its scales",
    "init 'exact' needs one",
    "Use init 'fit', convert the float file and quantise what comes out, or make this layer 'subpixel'",
)
_FLOATS = (
    "{names}: once it is converted, its weight is computed as floats in each run. The stored integers "
    "have scales in blocks, or for input channels in groups, which the weight of a convolution cannot have."
)


def _becomes_floats(layer: Layer, ir_version: int) -> bool:
    """Whether a quantised weight cannot stay stored as integers."""
    value = layer.node.inputs[1] if layer.spec is not None else None
    node = None if value is None else value.producer()
    if node is None or layer.spec is None or not is_quantizer(node, "DequantizeLinear"):
        return False
    scale = constant(node.inputs[1], ir_version)
    if scale is None:
        return False
    array = np.asarray(scale.numpy())
    return scales_of(node, array, layer.spec.weight_shape, layer.spec) is None


def _not_finite(layer: Layer, ir_version: int) -> Refusal | None:
    """Read here, where layers are decided on, and not each time that they are looked for."""
    for what, operand in zip(("weight", "bias"), layer.node.inputs[1:], strict=False):
        tensor = constant(operand, ir_version)
        if tensor is not None and not np.isfinite(tensor.numpy()).all():
            return not_finite(what)
    return None


def _not_own(layer: Layer) -> Refusal | None:
    found, todo = None, "Convert this layer to 'subpixel', or exclude it"
    if not layer.has_weight:
        found = layer.weight_note
        if "quantised" in found:
            todo = (
                "Convert the float file, and quantise what comes out; or make this layer 'subpixel'"
            )
    elif layer.dynamic_size is not None:
        found = "its crop depends on the size of the input (output_shape with dynamic axes)"
    if found is None:
        return None
    return Refusal(
        found,
        "another form needs a stored weight (floats, or int8 or uint8 with a scale for all or for each "
        "channel) and a fixed geometry",
        todo,
    )


def _needs_opset(what: str, opset: int, oldest: int) -> Refusal:
    return Refusal(
        f"the file has opset {opset}",
        f"ONNX Runtime has {what} from opset {oldest} on",
        "Convert the file first (onnx.version_converter), or convert this layer to 'subpixel'",
    )
