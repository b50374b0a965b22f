"""Parity of two torch modules: layer by layer and end to end, in float64 where the model allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from deconvfix.errors import DeconvfixError
from deconvfix.forms import form
from deconvfix.frontends import torch_steps
from deconvfix.frontends.torch_calls import Call, Observed, observe, parse
from deconvfix.frontends.torch_compare import (
    compare_tensors,
    equal,
    input_variants,
    rounding_scale,
    varies,
)
from deconvfix.frontends.torch_find import current_weight, makes_weight
from deconvfix.frontends.torch_inputs import (
    Inputs,
    as_inputs,
    copy_model,
    dtype_name,
    flat_tensors,
    innermost_name,
    map_tensors,
    names_of,
    run_model,
)
from deconvfix.frontends.torch_layers import (
    ConvertedConvTranspose,
    ConvTransposeModule,
    read_weight,
    spec_of,
)
from deconvfix.frontends.torch_reroute import is_rerouted
from deconvfix.parity import LIMIT, Comparison, ParityReport, rounding_unit, summarize
from deconvfix.plan import Plan
from deconvfix.rearrange import rearrange
from deconvfix.steps import run

__all__ = ["compare_modules"]

# Variants of the inputs beyond the user's own are left out when one run takes longer than this.
_PATIENCE_SECONDS = 2.0


def compare_modules(
    before: nn.Module, after: nn.Module, inputs: Sequence[Any], plan: Plan | None
) -> ParityReport:
    """Holds a converted model against the original.

    Args:
        before: The original.
        after: The converted model.
        inputs: Example inputs; may be empty, then the layers alone are compared.
        plan: What was converted. Without one, layers of the same name are compared.
    """
    if any(parameter.is_meta for parameter in before.parameters()):
        return summarize([], [], "meta", ["The model is on the meta device: there are no values."])
    exact = plan is None or all(each.exact for each in plan.decisions)
    examples = [as_inputs(each) for each in inputs]
    before, after, examples, dtype = _in_float64(before, after, examples)
    layers = _compare_layers(before, after, examples, plan)
    outputs: list[Comparison] = []
    problems: list[str] = []
    notes: list[str] = []
    if examples and exact:
        outputs, problems, notes = _compare_outputs(before, after, examples)
    elif not examples:
        notes.append("No example inputs: the layers were compared, the model was not run.")
        if plan is None:
            problems += _changed_parameters(before, after, layers)
    if not layers and not outputs and plan is not None and not plan.replaced:
        return ParityReport(True, 0.0, 0.0, dtype, notes=("Nothing was converted.",))
    return summarize(layers, outputs, dtype, problems, notes)


def _in_float64(
    before: nn.Module, after: nn.Module, examples: list[Inputs]
) -> tuple[nn.Module, nn.Module, list[Inputs], str]:
    def double(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    own = next((dtype_name(p) for p in before.parameters() if p.is_floating_point()), "float32")
    try:
        wide_before, wide_after = copy_model(before).double(), copy_model(after).double()
        wide = [map_tensors(double, each) for each in examples]
        for model in (wide_before, wide_after):
            for each in wide[:1]:
                # On a copy: a run may change buffers.
                run_model(copy_model(model), each)
    except (DeconvfixError, RuntimeError, NotImplementedError, TypeError):
        # Some models hold constants or casts that double() does not reach.
        return before, after, examples, own
    return wide_before, wide_after, wide, "float64"


def _changed_parameters(
    before: nn.Module, after: nn.Module, layers: Sequence[Comparison]
) -> list[str]:
    """Without a run, whatever lies outside the compared layers must be the same to the bit."""
    compared = tuple(f"{each.what}." for each in layers)
    new = after.state_dict()
    changed = [
        name
        for name, value in before.state_dict().items()
        if not name.startswith(compared)
        and (name not in new or value.shape != new[name].shape or not equal(value, new[name]))
    ]
    return [f"{len(changed)} other entries of the state differ: {', '.join(changed[:3])}."][
        : len(changed)
    ]


# --- layers -------------------------------------------------------------------------------------


def _compare_layers(
    before: nn.Module, after: nn.Module, examples: list[Inputs], plan: Plan | None
) -> list[Comparison]:
    """Every converted layer, on what it sees in the original and on inputs made up."""
    seen: dict[str, list[Call]] = {}
    if examples:
        probe = copy_model(before)
        names = names_of(probe)

        def record(observed: Observed) -> None:
            # The values of a vmap cannot be used outside it.
            if not torch._C._functorch.is_functorch_wrapped_tensor(observed.call.input):
                seen.setdefault(innermost_name(observed.stack, names), []).append(observed.call)

        with observe(record):
            run_model(probe, examples[0])
    wanted = None if plan is None else {each.name: each for each in plan.replaced}
    order = [*seen, *(name for name, _ in before.named_modules() if name not in seen)]
    comparisons = []
    for name in dict.fromkeys(order):
        old = before.get_submodule(name)
        new = _submodule(after, name)
        if isinstance(old, ConvTransposeModule) and new is not None:
            if wanted is not None and name not in wanted:
                continue
            calls = seen.get(name, [])[:2]
            comparisons += _compare_layer(name, old, new, calls, by_definition=plan is not None)
        elif name in seen and (isinstance(old, GraphModule) or (new and is_rerouted(new))):
            comparisons += [_compare_call(name, call) for call in seen[name][:4]]
    return comparisons


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _bound(call: Call) -> Tensor:
    """The rounding unit of each output: eps * (|W| (*) |x| + |b|), more for very long sums."""
    terms = math.prod(call.weight.shape) // call.weight.shape[1] // int(call.groups)
    eps = rounding_unit(torch.finfo(call.weight.dtype).eps, terms)
    magnitude = replace(
        call,
        input=call.input.detach().abs(),
        weight=call.weight.detach().abs(),
        bias=None if call.bias is None else call.bias.detach().abs(),
    )
    return _run_call(magnitude) * eps


def _run_call(call: Call) -> Tensor:
    function = getattr(torch, f"conv_transpose{call.weight.dim() - 2}d")
    result: Tensor = function(**call.arguments)
    return result


@torch.no_grad()
def _compare_call(name: str, call: Call) -> Comparison:
    """A rerouted call on the arguments that it got in the original."""
    got = torch_steps.conv_transpose(**call.arguments)
    where = f"{name}.{call.function}".removeprefix(".")
    return compare_tensors(where, "example inputs", got, _run_call(call), _bound(call))


@torch.no_grad()
def _compare_layer(
    name: str, old: nn.Module, new: nn.Module, calls: list[Call], *, by_definition: bool
) -> list[Comparison]:
    """One layer; `by_definition` holds fitted forms against their steps, not against `old`."""
    assert isinstance(old, ConvTransposeModule)
    spec = spec_of(old)
    new = copy_model(new)  # spectral norms change when they run
    # What a hook computes is brought up to date by a run; double() does not reach it.
    own_dtype = next(old.parameters()).dtype
    weight = calls[0].weight if calls else current_weight(old).to(own_dtype)
    inputs = [("example inputs", call.input) for call in calls]
    shape = tuple(calls[0].input.shape) if calls else (2, spec.in_channels, *_small_sizes(spec))
    _, *made_up = input_variants(as_inputs(weight.new_zeros(shape)))
    inputs += [(kind, each.args[0]) for kind, each in made_up]
    comparisons = []
    for kind, x in inputs:
        call = Call(
            "layer",
            x,
            weight,
            calls[0].bias if calls else (None if old.bias is None else old.bias.to(own_dtype)),
            spec.stride,
            tuple(begin for begin, _ in spec.padding),
            spec.output_padding,
            spec.groups,
            spec.dilation,
        )
        want, bound = _run_call(call), _bound(call)
        rerouted = is_rerouted(new)
        # Without the user's hooks, which are not part of the layer; some hooks make its weight.
        for hook in new._forward_pre_hooks.values():
            if makes_weight(hook):
                hook(new, (x,))
        got = torch_steps.conv_transpose(**call.arguments) if rerouted else new.forward(x)
        fitted = isinstance(new, ConvertedConvTranspose) and new.form_name != "subpixel"
        if by_definition and isinstance(new, ConvertedConvTranspose) and fitted:
            want, bound = _by_definition(new, x)
        elif by_definition and isinstance(new, ConvTransposeModule) and not is_rerouted(new):
            # A corrected weight in the same layer: only the layer itself can be wrong.
            # It may have grown, with its padding.
            padding = tuple(begin for begin, _ in spec_of(new).padding)
            want = _run_call(
                replace(call, weight=current_weight(new).to(weight), bias=new.bias, padding=padding)
            )
        comparisons.append(compare_tensors(name or "(model)", kind, got, want, bound))
    return comparisons


def _by_definition(layer: ConvertedConvTranspose, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the layer's steps mean, in NumPy, and their rounding."""
    compiled = form(layer.form_name).compile(layer.spec, layer.settings)
    weight = read_weight(layer.convolution.weight)
    bias = None if layer.bias is None else rearrange(compiled.bias, read_weight(layer.bias))
    batched = x if x.dim() == layer.spec.ndim + 2 else x[None]
    value = run(compiled.steps, read_weight(batched), weight, bias)
    magnitude = run(
        compiled.steps,
        np.abs(read_weight(batched)),
        np.abs(weight),
        None if bias is None else np.abs(bias),
    )
    shape = value.shape if batched is x else value.shape[1:]
    unit = rounding_unit(torch.finfo(x.dtype).eps, math.prod(weight.shape[1:]))
    return (
        torch.from_numpy(value).reshape(shape).to(x),
        torch.from_numpy(magnitude).reshape(shape) * unit,
    )


def _small_sizes(spec: Any) -> tuple[int, ...]:
    """A small input size, different on each axis, for which the layer has an output."""
    sizes = []
    for axis, (s, big_k, (b, e)) in enumerate(
        zip(spec.stride, spec.effective_kernel_size, spec.padding, strict=True)
    ):
        sizes.append(max(1, math.ceil((b + e - big_k + 1) / s) + 1) + 3 + axis)
    return tuple(sizes)


# --- end to end ---------------------------------------------------------------------------------


def _compare_outputs(
    before: nn.Module, after: nn.Module, examples: list[Inputs]
) -> tuple[list[Comparison], list[str], list[str]]:
    def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
        results = flat_tensors(run_model(copy_model(model), inputs))
        return [torch.view_as_real(each) if each.is_complex() else each for each in results]

    comparisons: list[Comparison] = []
    problems: list[str] = []
    notes: list[str] = []
    started = time.monotonic()
    outputs(before, examples[0])
    slow = time.monotonic() - started > _PATIENCE_SECONDS
    if slow:
        notes.append("One run takes long: the end-to-end comparison used the example inputs only.")
    cases = [("example inputs", each) for each in examples]
    if not slow:
        cases += input_variants(examples[0])[1:]
    varied = False
    seen: list[Tensor] | None = None
    for kind, inputs in cases:
        try:
            want = outputs(before, inputs)
        except DeconvfixError:
            notes.append(f"The original does not run on {kind} of the example inputs' shapes.")
            continue
        again = outputs(before, inputs)
        if not all(map(equal, want, again)):
            notes.append(
                "The original gives other outputs when it is run again with the same seed."
            )
            break
        got = outputs(after, inputs)
        if len(got) != len(want):
            problems.append(f"The model returns {len(got)} tensors instead of {len(want)}.")
            break
        noisy = []
        for seed in (0, 1, 2):
            with _LayerNoise(seed, torch.finfo(torch.float64).eps):
                noisy.append(outputs(before, inputs))
        for number, (mine, theirs) in enumerate(zip(got, want, strict=True)):
            varied = varied or varies(theirs, None if seen is None else seen[number])
            moved = [each[number] for each in noisy]
            if not theirs.is_floating_point():
                # An index or a decision: rounding may flip it, where noise on the layers does so too.
                if all(equal(theirs, each) for each in moved):
                    comparisons.append(compare_tensors(f"output {number}", kind, mine, theirs, 0.0))
                continue
            rounding = rounding_scale(theirs, moved)
            comparisons.append(compare_tensors(f"output {number}", kind, mine, theirs, rounding))
        seen = seen or want
    if any(each.numel() for each in seen or ()) and comparisons and not varied:
        problems.append(
            "All outputs are constant on all inputs, which is no evidence: give other inputs."
        )
    if comparisons and not problems:
        notes += _dependence(before, examples[0], outputs)
    return comparisons, problems, notes


def _dependence(
    before: nn.Module, inputs: Inputs, outputs: Callable[[nn.Module, Inputs], list[Tensor]]
) -> list[str]:
    """Whether an error of one in a thousand in the layers would be seen at the outputs at all."""
    want = outputs(before, inputs)
    with _LayerNoise(3, 1e-3):
        moved = outputs(before, inputs)
    with _LayerNoise(3, torch.finfo(torch.float64).eps):
        rounded = outputs(before, inputs)
    for value, far, near in zip(want, moved, rounded, strict=True):
        comparable = value.is_floating_point() and value.shape == far.shape
        if comparable and rounding_scale(value, [far]) > 100 * LIMIT * rounding_scale(
            value, [near]
        ):
            return []
    return [
        "The outputs hardly depend on the converted layers with these weights and inputs: the "
        "end-to-end comparison proves little, the comparison of the layers stands."
    ]


class _LayerNoise(TorchFunctionMode):
    """Adds noise of `scale * (|W| (*) |x| + |b|)` to the output of each transposed convolution."""

    def __init__(self, seed: int, scale: float) -> None:
        super().__init__()
        self.seed = seed
        self.scale = scale

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = parse(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        if call is None or not result.is_floating_point():
            return result
        eps = torch.finfo(call.weight.dtype).eps
        scale = max(self.scale, eps) / eps
        # Unit variance from a hash of the position: inside vmap there is no random generator.
        position = torch.arange(result.numel(), dtype=torch.float64, device=result.device)
        uniform = (torch.sin(position * (12.9898 + self.seed) + 1) * 43758.5453) % 1
        noise = math.sqrt(12) * (uniform - 0.5)
        return result + _bound(call) * scale * noise.reshape(result.shape).to(result.dtype)
