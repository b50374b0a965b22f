"""Parity of two torch modules: layer by layer and end to end, in float64 where the model allows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deconvfix.errors import DeconvfixError
from deconvfix.frontends.torch.calls import parse
from deconvfix.frontends.torch.first_run import FirstRun, first_run, is_long
from deconvfix.frontends.torch.folded import compare_folded, magnitude_of, with_sums
from deconvfix.frontends.torch.inputs import (
    Inputs,
    as_inputs,
    as_outputs,
    copy_model,
    copy_to_run,
    dtype_name,
    equal,
    flat_tensors,
    input_variants,
    map_tensors,
    run_model,
)
from deconvfix.frontends.torch.layer_parity import bound_of, compare_layers
from deconvfix.parity.bounds import (
    LIMIT,
    Comparison,
    ParityReport,
    equal_arrays,
    is_inexact,
    rounding_of,
    summarize,
)
from deconvfix.parity.outputs import Case, Output, OutputParity, Patience, Rules, compare_outputs
from deconvfix.plan import Plan

__all__ = ["compare_modules", "disturbed"]

_EPS = torch.finfo(torch.float64).eps
_RULES = Rules(
    constant="All outputs are constant on all inputs, which is no evidence: give other inputs.",
    other_number="The model returns {actual} tensors instead of {expected}.",
    not_repeatable="The original gives other outputs when it is run again with the same seed.",
    patience=Patience(
        first_run=2.0,
        note="One run takes long: the end-to-end comparison used the example inputs only.",
    ),
)
# Of so many departures the largest is not small by chance.
_MANY = 1000
_FRUGAL_RULES = replace(_RULES, patience=Patience(frugal=True))
_CROPPED = (
    "Each run is long: end to end the models were compared once, on the example inputs at their size and in "
    "the dtype of the weights; the layers in float64, on crops of what they get there."
)


def compare_modules(
    before: nn.Module, after: nn.Module, inputs: Sequence[Any], plan: Plan | None
) -> ParityReport:
    """Compares a converted model with the original.

    Args:
        before: The original.
        after: The converted model.
        inputs: Example inputs; may be empty, then the layers alone are compared.
        plan: What was converted. Without one, layers of the same name are compared.
    """
    if any(parameter.is_meta for parameter in before.parameters()):
        return summarize([], [], "meta", ["The model is on the meta device: there are no values."])
    if plan is not None and not plan.changed:
        return ParityReport(True, 0.0, 0.0, "float32", notes=("Nothing was converted.",))
    # End to end, only models that compute the same function can be compared.
    exact = plan is None or all(decision.exact for decision in plan.decisions)
    examples = [as_inputs(example) for example in inputs]
    floats = [p.dtype for p in before.parameters() if p.is_floating_point()]
    rounded = max((torch.finfo(dtype).eps for dtype in floats), default=0.0)
    # Sums of taps are compared in float64, of which a frugal run has none.
    folds = plan is not None and bool(plan.folded)
    run = None if folds else _dear_run(before, examples)
    if run is None:
        before, after, examples, dtype = _in_float64(before, after, examples)
    else:
        dtype = _own_dtype(before)
    # Layers first: their bounds are derived, and a departure there has a name.
    calls = None if run is None else run.calls
    layers = compare_layers(before, after, examples, plan, rounded, calls)
    if plan is not None and plan.folded:
        layers += compare_folded(before, after, plan, rounded)
        after = with_sums(before, after, plan) if dtype == "float64" else after
        before = _with_noise_in(before, plan)
    # A kernel that divides does so up to the rounding of its dtype, which float64 sees.
    stored = []
    if plan is not None:
        stored = [d.name for d in plan.replaced if d.exact and not d.target.is_exact]
    outputs = OutputParity()
    if stored:
        names = ", ".join(name or "(model)" for name in stored)
        note = (
            f"The model was compared layer by layer: {names} got a kernel that is the same function "
            "up to the rounding of the weights."
        )
        outputs = OutputParity(notes=(note,))
    elif examples and exact:
        outputs = _compare_outputs(before, after, examples, run)
    elif not examples:
        note = "No example inputs: the layers were compared, the model was not run."
        problems = _changed_parameters(before, after, layers) if plan is None else ()
        outputs = OutputParity(problems=problems, notes=(note,))
    return summarize(layers, outputs.comparisons, dtype, outputs.problems, outputs.notes)


def _dear_run(before: nn.Module, examples: list[Inputs]) -> FirstRun | None:
    """A run of an original in its own dtype, if runs in float64 would take long, or much memory."""
    if not examples:
        return None
    try:
        run = first_run(before, examples[0])
    except DeconvfixError:
        return None  # float64 may run where half precision does not; else the error comes there
    return run if is_long(run, before) else None


def _own_dtype(model: nn.Module) -> str:
    return next((dtype_name(p) for p in model.parameters() if p.is_floating_point()), "float32")


def _in_float64(
    before: nn.Module, after: nn.Module, examples: list[Inputs]
) -> tuple[nn.Module, nn.Module, list[Inputs], str]:
    def double(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    try:
        # In float64 the rounding is so small that no wrong form can hide in it.
        wide_before, wide_after = copy_model(before).double(), copy_model(after).double()
        wide = [map_tensors(double, example) for example in examples]
        for model in (wide_before, wide_after):
            if wide:
                # On a copy: a run may change buffers.
                run_model(copy_to_run(model), wide[0])
    except (DeconvfixError, RuntimeError, NotImplementedError, TypeError):
        # Some models hold constants or casts that double() does not reach.
        return before, after, examples, _own_dtype(before)
    return wide_before, wide_after, wide, "float64"


def _changed_parameters(
    before: nn.Module, after: nn.Module, layers: Sequence[Comparison]
) -> tuple[str, ...]:
    """Without a run, whatever lies outside the compared layers must be the same to the bit."""
    # Names that a converted layer adds or drops stand below its own.
    # A model that is a layer itself has no names but its own.
    compared = tuple("" if layer.what == "(model)" else f"{layer.what}." for layer in layers)
    new = after.state_dict()
    changed = [
        name
        for name, value in before.state_dict().items()
        if not name.startswith(compared)
        and (name not in new or value.shape != new[name].shape or not equal(value, new[name]))
    ]
    if not changed:
        return ()
    return (f"{len(changed)} other entries of the state differ: {', '.join(changed[:3])}.",)


# --- end to end ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Modules:
    """`parity.outputs.Pair` for two modules."""

    before: nn.Module
    after: nn.Module
    cases: tuple[Case, ...]
    rules: Rules = _RULES
    modes: tuple[str, ...] = ("",)

    def original(self, inputs: Inputs, mode: str) -> list[Output]:
        return _outputs(self.before, inputs)

    def converted(self, inputs: Inputs, mode: str) -> list[Output]:
        return _outputs(self.after, inputs)

    def disturbed(self, inputs: Inputs) -> list[list[Output]]:
        if self.rules.patience.frugal and inputs is self.cases[0].inputs:
            first = self.first_noise
            if all(output.value.size > _MANY for output in first):
                return [first]
        # Three draws, as a single one may happen to be small at some output.
        return [self.with_noise(inputs, seed, _EPS) for seed in (0, 1, 2)]

    @functools.cached_property
    def first_noise(self) -> list[Output]:
        """The original's outputs on the first case with noise of one rounding on the layers' outputs."""
        return self.with_noise(self.cases[0].inputs, 0, _EPS)

    def with_noise(self, inputs: Inputs, seed: int, scale: float) -> list[Output]:
        """The original's outputs with noise of that scale on the layers' outputs."""
        with _LayerNoise(seed, scale):
            return self.original(inputs, "")

    def name(self, index: int) -> str:
        return f"output {index}"

    def does_not_run_on(self, cases: Sequence[str]) -> list[str]:
        return [
            f"The original does not run on {case} of the example inputs' shapes." for case in cases
        ]


def _outputs(model: nn.Module, inputs: Inputs) -> list[Output]:
    # On a copy: a run may change buffers.
    return as_outputs(flat_tensors(run_model(copy_to_run(model), inputs)))


def _compare_outputs(
    before: nn.Module, after: nn.Module, examples: list[Inputs], run: FirstRun | None
) -> OutputParity:
    # The user's inputs, then noise, a constant and zeros: a wrong border shows on a constant at once.
    own = None if run is None else as_outputs(run.outputs)
    cases = [Case("example inputs", examples[0], given=True, expected=own)]
    cases += [Case("example inputs", example, given=True) for example in examples[1:]]
    if run is None:
        _, *variants = input_variants(examples[0])
        cases += [Case(words, inputs) for words, inputs in variants]
    pair = _Modules(before, after, tuple(cases), rules=_RULES if run is None else _FRUGAL_RULES)
    found = compare_outputs(pair)
    if run is not None:
        found = replace(found, notes=(_CROPPED, *found.notes))
    if not found.comparisons or found.problems:
        return found
    # Where runs are dear, the draw of one rounding is made in any case, and often answers this as well.
    if own is not None and _moves(own, pair.first_noise):
        return found
    if _depend_on_layers(pair, examples[0]):
        return found
    note = (
        "The outputs hardly depend on the converted layers with these weights and inputs: the "
        "end-to-end comparison proves little, the comparison of the layers stands."
    )
    return replace(found, notes=(*found.notes, note))


def _moves(own: list[Output], noisy: list[Output]) -> bool:
    """Whether an error of one rounding in the layers is more than one at some output."""
    return any(
        is_inexact(one.value)
        and one.value.shape == other.value.shape
        and rounding_of(one.value, [other.value], one.eps, one.tiny)
        > rounding_of(one.value, [], one.eps, one.tiny)
        for one, other in zip(own, noisy, strict=True)
    )


def _depend_on_layers(pair: _Modules, inputs: Inputs) -> bool:
    """Whether an error of one in a thousand in the layers would be seen at the outputs."""
    # Noise of 1e-3 must move some output far more than noise of one rounding does.
    own = pair.original(inputs, "")
    moved = pair.with_noise(inputs, 3, 1e-3)
    rounded = pair.with_noise(inputs, 3, _EPS)
    for output, far, near in zip(own, moved, rounded, strict=True):
        if output.value.shape != far.value.shape:
            continue
        # Integers and booleans, such as labels, either change or do not.
        if not is_inexact(output.value):
            if not equal_arrays(output.value, far.value):
                return True
            continue
        error = rounding_of(output.value, [far.value], output.eps, output.tiny)
        rounding = rounding_of(output.value, [near.value], output.eps, output.tiny)
        if error > 100 * LIMIT * rounding:
            return True
    return False


def disturbed(result: Tensor, magnitude: Callable[[], Tensor]) -> Tensor:
    """The output of a layer that is no transposed convolution any more, with noise while it is asked for.

    Args:
        result: The output.
        magnitude: Gives the sum of the magnitudes of its terms, of the same shape.
    """
    for noise in _LayerNoise.running:
        result = noise.added(result, magnitude() * torch.finfo(result.dtype).eps)
    return result


def _with_noise_in(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy whose convolutions behind upsampling get noise as transposed convolutions do."""

    def disturb(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return disturbed(output, lambda: magnitude_of(module, args[0]))

    model = copy_model(model)
    for name in plan.folded:
        model.get_submodule(name).register_forward_hook(disturb)
    return model


class _LayerNoise(TorchFunctionMode):
    """Adds noise of `scale * (|W| (*) |x| + |b|)` to the output of each transposed convolution.

    Attributes:
        running: The modes that are entered, for layers that are something else already.
    """

    running: ClassVar[list[_LayerNoise]] = []

    def __init__(self, seed: int, scale: float) -> None:
        super().__init__()
        self.seed = seed
        self.scale = scale

    def __enter__(self) -> _LayerNoise:
        super().__enter__()
        self.running.append(self)
        return self

    def __exit__(self, *exception: Any) -> None:
        self.running.remove(self)
        super().__exit__(*exception)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A function mode is off inside its own handler, so the call below is the plain one.
        call = parse(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        if call is None or not result.is_floating_point():
            return result
        return self.added(result, bound_of(call))

    def added(self, result: Tensor, bound: Tensor) -> Tensor:
        """A layer's output with noise.

        Args:
            result: The output.
            bound: What one rounding explains, for each element.
        """
        eps = torch.finfo(result.dtype).eps
        # `bound` contains eps already, and noise below the rounding of the dtype would vanish.
        scale = max(self.scale, eps) / eps
        # Unit variance from a hash of the position: inside vmap there is no random generator.
        position = torch.arange(result.numel(), dtype=torch.float64, device=result.device)
        # In place, as these maps are the largest of the model.
        uniform = position.mul_(12.9898 + self.seed).add_(1).sin_().mul_(43758.5453).remainder_(1)
        noise = uniform.sub_(0.5).mul_(math.sqrt(12))
        return result + bound * scale * noise.reshape(result.shape).to(result.dtype)
