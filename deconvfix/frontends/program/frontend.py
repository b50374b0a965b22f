"""Front end for torch.export.ExportedProgram: signature, state and dynamic shapes stay as they are.

The graph of aten operators is rewritten by the pass of `torch.graph`, on a copy. What comes out saves and
loads like any exported program, without deconvfix. A layer that was a module goes by the module's path,
"decoder.up", other calls by the names of their nodes.

Fitted forms need a weight that the program stores and nothing else uses: its entry in the state gets the
corrected weight, or the kernel of the fitted convolution. What is fitted to data comes with the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.nn import functional

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import ConvTranspose
from deconvfix.errors import ModelError, Refusal
from deconvfix.forms.base import Init, Need
from deconvfix.forms.unfit import not_finite
from deconvfix.frontends.base import CalibrationData, Findings, Probe
from deconvfix.frontends.calibrate import calibrate, refuse_flat_inputs
from deconvfix.frontends.program.calibrate import FittableProgram
from deconvfix.frontends.program.exposed import (
    as_in,
    shows_shuffles,
    stands_for,
    with_shuffled,
    with_transposed,
    without_phases,
)
from deconvfix.frontends.program.folded import find_upsampled, fold_call, summing, with_disturbances
from deconvfix.frontends.program.restore import Trainable, copy_program
from deconvfix.frontends.program.weights import HINT, check_shared, dequantises, stored, why_fixed
from deconvfix.frontends.samples import calibration_inputs, count_samples
from deconvfix.frontends.shuffled import SHUFFLED_LAYER
from deconvfix.frontends.torch import steps as torch_steps
from deconvfix.frontends.torch.calls import PADDING_ARGUMENT, is_transposed
from deconvfix.frontends.torch.diagnose import probe_module
from deconvfix.frontends.torch.graph import (
    GraphCall,
    find_calls,
    finish,
    inline,
    match_call,
    rewrite,
)
from deconvfix.frontends.torch.inputs import as_inputs, psnr_db
from deconvfix.frontends.torch.layers import read_weight
from deconvfix.frontends.torch.parity import compare_modules, disturbed
from deconvfix.frontends.torch.samples import TorchSamples
from deconvfix.parity.bounds import ParityReport
from deconvfix.plan import Decision, Match, Plan, Replaced, lacking

__all__ = ["FRONTEND", "ExportedProgramFrontend"]

_QUANTISED = (
    "{names}: its weight is stored as integers. Once it is converted, the weight is rearranged as floats in "
    "each run, and no integer kernel takes the layer. Convert the model before it is quantised."
)


class ExportedProgramFrontend(Trainable):
    """See the module's text."""

    fits: tuple[Init, ...] = ("calibrated",)

    def prepare(
        self, model: ExportedProgram, example_inputs: Any | None, *, inplace: bool
    ) -> ExportedProgram:
        """A copy, unless `inplace`."""
        if inplace:
            return model
        return copy_program(model)

    def find(self, model: ExportedProgram, example_inputs: Any | None) -> Findings:
        """Transposed convolutions in the program and the graphs inside it; nothing is run."""
        calls = list(_named_calls(model))
        quantised = [name for name, found in calls if dequantises(found.call.weight)]
        notes = (_QUANTISED.format(names=", ".join(quantised)),) if quantised else ()
        return Findings(tuple(_match(model, name, call, calls) for name, call in calls), notes)

    def same_function(
        self, shown: ExportedProgram, model: ExportedProgram, inputs: Any
    ) -> ParityReport:
        """See `verify`."""
        return self.verify(shown, model, [] if inputs is None else [inputs], None)

    find_upsampled = staticmethod(find_upsampled)
    with_transposed = staticmethod(with_transposed)
    as_in = staticmethod(as_in)
    with_shuffled = staticmethod(with_shuffled)
    shows_shuffles = staticmethod(shows_shuffles)

    def probe(
        self, model: ExportedProgram, example_inputs: Any | None, matches: Sequence[Match]
    ) -> Probe:
        """Runs the program as a module, on inputs of the caller's."""
        if example_inputs is None or not matches:
            return Probe()
        return probe_module(model.module(), example_inputs, matches)

    def apply(self, model: ExportedProgram, plan: Plan) -> ExportedProgram:
        """Rewrites graph and state in place; torch then checks the program."""
        calls = dict(_named_calls(model))
        # Before anything changes, as a plan may ask for what one weight cannot be.
        check_shared(calls, plan)
        stored_already: set[str] = set()
        for decision in plan.changed:
            if decision.upsampling is not None:
                fold_call(model, decision)
                continue
            found = _call_of(calls, decision)
            if isinstance(decision, Replaced) and not decision.target.is_exact:
                _fit(model, found, decision, stored_already)
            else:
                rewrite(found)
        # Once for all layers: lint and code generation look at whole graphs.
        finish(model.graph_module)
        model.validate()
        return model

    def fit_to_data(
        self, before: ExportedProgram, after: ExportedProgram, plan: Plan, data: CalibrationData
    ) -> tuple[ExportedProgram, Plan, Sequence[str]]:
        """Calibrated fits: what they found is in the plan, which is carried out again."""
        refuse_flat_inputs(data.flat)
        example = before.example_inputs if data.example_inputs is None else data.example_inputs
        # Only tuning draws further batches, and programs are not tuned.
        batches, _ = calibration_inputs(TorchSamples(example, data.tuning.seed), data.inputs)
        with torch.no_grad():
            plan, notes = calibrate(
                FittableProgram(before, plan, batches, self._copied, self.apply),
                plan,
                choose_padding=data.choose_padding,
                memory=data.memory,
            )
        # The program itself changes: other borders are other operators.
        vars(after).update(vars(self.apply(self._copied(before)[0], plan)))
        return after, plan, notes

    def count_samples(
        self, model: ExportedProgram, inputs: Iterable[Any] | str, example_inputs: Any | None
    ) -> int:
        """See `frontends.samples.count_samples`."""
        example = model.example_inputs if example_inputs is None else example_inputs
        return count_samples(TorchSamples(example), inputs)

    def drawn_inputs(self, model: ExportedProgram, distribution: str, seed: int) -> None:
        """A program has inputs of its own, or its shapes were not kept."""

    def _copied(self, model: ExportedProgram) -> tuple[ExportedProgram, dict[str, GraphCall]]:
        """A copy, and its calls by name."""
        copied = self.prepare(model, None, inplace=False)
        return copied, dict(_named_calls(copied))

    def left(self, model: ExportedProgram, plan: Plan, example_inputs: Any) -> Sequence[str]:
        """What is still in the graphs, by the operators' schemas, if nothing was to be kept.

        A graph holds all that the program runs, on whichever branch.
        """
        if plan.stays:
            return []
        return [
            f"{path}.{node.name}".removeprefix(".")
            for path, owner in model.graph_module.named_modules()
            if isinstance(owner, fx.GraphModule)
            for node in owner.graph.nodes
            if is_transposed(node.target, node.args, node.kwargs)
        ]

    def own_inputs(self, model: ExportedProgram) -> Any | None:
        """The inputs that it was exported with, if they were kept."""
        return model.example_inputs

    def verify(
        self,
        before: ExportedProgram,
        after: ExportedProgram,
        inputs: Sequence[Any],
        plan: Plan | None,
    ) -> ParityReport:
        """Compares the programs as modules, on their own example inputs if there are no others.

        Layers in other forms than the sub-pixel one are compared with the original program with the same
        layers fitted by torch's own functions instead of operators in the graph. Exact ones too: their
        kernels are the same function up to the rounding of their dtype, which float64 sees.
        """
        if not inputs and before.example_inputs is not None:
            inputs = [before.example_inputs]
        folded = frozenset() if plan is None else plan.folded
        # With the fitted kernels in the original, too, both compute the same function.
        if plan is not None and any(not layer.target.is_exact for layer in plan.replaced):
            before = self.prepare(before, None, inplace=False)
            calls = dict(_named_calls(before))
            stored_already: set[str] = set()
            for decision in plan.replaced:
                if not decision.target.is_exact:
                    _fit_call(before, _call_of(calls, decision), decision, stored_already)
            finish(before.graph_module)
            plan = None
        original: Any = with_disturbances(before, folded, disturbed)
        if plan is not None and folded:
            plan = replace(plan, decisions=tuple(d for d in plan.decisions if d.upsampling is None))
            plan = plan if plan.changed else None
        return compare_modules(original, after.module(), inputs, plan)

    def psnr_db(
        self, before: ExportedProgram, after: ExportedProgram, example_inputs: Any
    ) -> float | None:
        """See `frontends.torch.inputs.psnr_db`."""
        return psnr_db(before.module(), after.module(), as_inputs(example_inputs))


FRONTEND = ExportedProgramFrontend()

_OTHER_SHAPE = Refusal(
    "what is stored has another shape than the graph says",
    "the two must agree",
    "Export the program again",
)


def _named_calls(program: ExportedProgram) -> Iterator[tuple[str, GraphCall]]:
    """Calls by their modules' paths, where that is unique, and otherwise by their nodes."""
    # Names of nodes are unique. Paths are not, where a layer runs several times.
    calls = list(find_calls(program.graph_module))
    paths = [_module_path(call.node) for _, call in calls]
    nodes = {name for name, _ in calls}
    for (name, call), path in zip(calls, paths, strict=True):
        unique = path is not None and paths.count(path) == 1 and path not in nodes
        yield (path if unique and path else name), call


def _module_path(node: fx.Node) -> str | None:
    """The path of the torch.nn.ConvTranspose that the node was; None for calls in other code."""
    # Entries go from the model to the innermost module: path and class of each.
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = next(reversed(stack.values()), ("", ""))
    # Strict exports of branches put the model below a module of their own.
    own = str(path).removeprefix("_export_root.")
    return own if "ConvTranspose" in str(kind) else None


def _call_of(calls: dict[str, GraphCall], decision: Decision) -> GraphCall:
    if decision.name not in calls:
        raise ModelError(
            decision.name,
            "the program has no such call",
            "the plan must belong to this program",
            "Use the recipe that was made for this program",
        )
    return calls[decision.name]


# --- weights ------------------------------------------------------------------------------------


def _match(
    program: ExportedProgram, name: str, found: GraphCall, calls: Sequence[tuple[str, GraphCall]]
) -> Match:
    match = match_call(name, found)
    words = stands_for(found.node)
    # Needs and obstacles of the call first, then those of what the program stores.
    weight = stored(program, found, found.call.weight)
    for what, argument in (("weight", found.call.weight), ("bias", found.call.bias)):
        held = stored(program, found, argument)
        if held is None or match.obstacle is not None:
            continue
        if held.tensor.shape != held.node.meta["val"].shape:
            return replace(match, obstacle=_OTHER_SHAPE)
        if not held.tensor.is_meta and not held.tensor.isfinite().all():
            match = replace(match, obstacle=not_finite(what))
    if weight is None or match.spec is None:
        computed = Refusal(
            "its weight is computed while the program runs, or belongs to a graph inside it",
            "another form needs a weight of its own that the program stores",
            HINT,
        )
        return replace(match, lacks={Need.STORED_WEIGHT: computed})
    # A layer that runs several times is one weight and several calls, which are all converted alike.
    same = [
        call.node
        for _, call in calls
        if call.call.weight is weight.node and match_call("", call).spec == match.spec
    ]
    return replace(
        match,
        op=words or match.op,
        lacks=lacking(
            {
                Need.OWN_PLACE: SHUFFLED_LAYER if words else None,
                Need.STORED_WEIGHT: why_fixed(program, weight, name, "weight", same),
            }
        ),
        read_weight=None if weight.tensor.is_meta else lambda: read_weight(weight.tensor),
    )


def _set_weights(
    program: ExportedProgram, found: GraphCall, decision: Replaced, stored_already: set[str]
) -> None:
    """Stores the kernel of a fitted form, in the layout of its convolution, and a bias that was fitted.

    Args:
        program: Where it is stored.
        found: The call.
        decision: What it becomes.
        stored_already: Kernels that were stored for another call of the same layer; this one is added.
    """
    place = stored(program, found, found.call.weight)
    # Another call of the same layer has stored it.
    if place is not None and place.key in stored_already:
        return
    if place is None or decision.spec != match_call("", found).spec:
        raise ModelError(
            decision.name,
            f"the call is {match_call('', found).spec}",
            f"the plan was made for {decision.spec} with a stored weight",
            "Use the recipe that was made for this program",
        )
    # What is folded is summed in the graph, of the taps that upsampling and a convolution have.
    decision = decision.apart()
    # Forms that keep the layer have no verbs, and keep its layout.
    verbs = decision.compiled().weight
    new = torch.from_numpy(decision.kernel(read_weight(place.tensor))).to(place.tensor.detach())
    if verbs:
        new = torch_steps.rearrange_tensor(verbs, new, decision.spec.groups)
    place.set(new.contiguous())
    without_phases(program, found.node)
    stored_already.add(place.key)
    if decision.fitted is not None and decision.fitted.bias is not None:
        place = stored(program, found, found.call.bias)
        assert place is not None, "only what is stored is fitted"
        place.set(torch.from_numpy(decision.fitted.bias).to(place.tensor.detach()))


def _steps_function(decision: Replaced) -> Any:
    """The steps of a fitted form as a function of input, weight and bias."""
    spec, compiled = decision.spec, decision.compiled()
    if decision.target.folding(spec, decision.settings) is not None:
        return summing(compiled, spec.stride, spec.groups)

    # make_fx takes no argument with a default.
    def function(x: Tensor, weight: Tensor, *biases: Tensor) -> Tensor:
        if isinstance(compiled.steps[0], ConvTranspose):
            return _conv_transpose(compiled.steps[0].spec, x, weight, *biases)
        bias = torch_steps.rearrange_tensor(compiled.bias, biases[0]) if biases else None
        return torch_steps.apply_steps(compiled.steps, x, weight, bias, spec.groups)

    return function


def _reference(decision: Replaced) -> Any:
    """The same as a function that noise reaches where a comparison asks for it."""
    function = _steps_function(decision)
    if decision.target.keeps_layer:
        return function

    def reference(*operands: Tensor) -> Tensor:
        return disturbed(function(*operands), lambda: function(*map(torch.abs, operands)))

    return reference


def _conv_transpose(spec: ConvTransposeSpec, x: Tensor, weight: Tensor, *biases: Tensor) -> Tensor:
    """The layer itself, by its spec."""
    function = getattr(functional, f"conv_transpose{spec.ndim}d")
    padding = [begin for begin, _ in spec.padding]
    bias = biases[0] if biases else None
    result: Tensor = function(
        x, weight, bias, spec.stride, padding, spec.output_padding, spec.groups, spec.dilation
    )
    return result


def _grow(found: GraphCall, decision: Replaced) -> None:
    """The padding that belongs to a kernel that has grown: its operators take it as an argument."""
    (step,) = decision.compiled().steps
    assert isinstance(step, ConvTranspose)
    node, padding = found.node, [begin for begin, _ in step.spec.padding]
    if step.spec.kernel_size == decision.spec.kernel_size:
        return
    if len(node.args) > PADDING_ARGUMENT:
        node.args = (*node.args[:PADDING_ARGUMENT], padding, *node.args[PADDING_ARGUMENT + 1 :])
    else:
        node.kwargs = {**node.kwargs, "padding": padding}


def _operands(found: GraphCall) -> list[Any]:
    call = found.call
    return [operand for operand in (call.input, call.weight, call.bias) if operand is not None]


def _fit(
    program: ExportedProgram, found: GraphCall, decision: Replaced, stored_already: set[str]
) -> None:
    """Replaces a layer by a fitted form."""
    _set_weights(program, found, decision, stored_already)
    if decision.target.keeps_layer:
        _grow(found, decision)
    else:
        # Composite operators even in decomposed programs: aten.upsample_* is one, and in every backend.
        inline(found.node, _steps_function(decision), _operands(found))


def _fit_call(
    program: ExportedProgram, found: GraphCall, decision: Replaced, stored_already: set[str]
) -> None:
    """The same by a function call, as the reference that the graph's operators are compared with."""
    _set_weights(program, found, decision, stored_already)
    found.node.args, found.node.kwargs = tuple(_operands(found)), {}
    found.node.target = _reference(decision.apart())
