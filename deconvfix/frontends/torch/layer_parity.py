"""The layers of two torch modules, one by one: against the original, or against what their form means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from deconvfix.core.rearrange import rearrange
from deconvfix.forms import form
from deconvfix.frontends.torch import steps as torch_steps
from deconvfix.frontends.torch.calls import Call
from deconvfix.frontends.torch.find import (
    call_path,
    current_weight,
    has_own_forward,
    is_rerouted,
    makes_weight,
)
from deconvfix.frontends.torch.first_run import first_run, small_sizes
from deconvfix.frontends.torch.inputs import (
    Inputs,
    as_inputs,
    compare_tensors,
    copy_model,
    equal,
    input_variants,
)
from deconvfix.frontends.torch.layers import (
    ConvertedConvTranspose,
    ConvTransposeModule,
    kernel_of,
    layer_part,
    read_weight,
    spec_of,
)
from deconvfix.frontends.torch.shuffles import CONVOLUTIONS
from deconvfix.parity.bounds import Comparison, rounding_unit
from deconvfix.parity.definition import by_definition
from deconvfix.parity.progress import step_by_step
from deconvfix.plan import Plan, Replaced

__all__ = ["bound_of", "compare_layers"]


def compare_layers(
    before: nn.Module,
    after: nn.Module,
    examples: list[Inputs],
    plan: Plan | None,
    rounded: float,
    calls: Mapping[str, list[Call]] | None = None,
) -> list[Comparison]:
    """Every converted layer, on what it gets in the original and on inputs made up.

    Args:
        before: The original.
        after: The converted model.
        examples: Example inputs; the first one is run. There may be none.
        plan: What was converted. Without one, layers of the same name are compared.
        rounded: The eps that the weights were rounded with when they were stored.
        calls: Crops of what each layer gets in the original, from a run in its own dtype: each layer is made
            float64 on its own. None: both models are in float64 as far as they can be, and the original is
            run on the first example.
    """
    widen = calls is not None
    # What each layer gets in the original, where the original can be run.
    if calls is None:
        calls = first_run(before, examples[0]).calls if examples else {}
    decisions = None if plan is None else {decision.name: decision for decision in plan.replaced}
    # In the order in which the layers run, so that the first departure is where the error begins.
    not_run = (name for name, _ in before.named_modules() if name not in calls)
    comparisons = []
    inside = [] if plan is None else _corrected_inside_code(before, plan)
    if inside and examples:
        comparisons += _compare_weights(before, after, inside, examples[0], rounded)
    for name in step_by_step("Comparing layers", [*dict.fromkeys((*calls, *not_run))]):
        old, new = before.get_submodule(name), _submodule(after, name)
        # What stands for a convolution and a pixel shuffle has another output: it is compared end to end.
        if name in map(_caller, inside) or isinstance(new, CONVOLUTIONS):
            continue
        if isinstance(old, ConvTransposeModule) and new is not None:
            if decisions is not None and name not in decisions:
                continue
            same = decisions is not None and decisions[name].exact
            # Further calls run the same code on other values.
            own_calls = calls.get(name, [])[:2]
            if widen and own_calls and _is_large(new, own_calls[0]):
                found = _compare_large(name, old, new, own_calls)
            else:
                # A copy, as spectral norms change when they run.
                new = copy_model(new)
                pair = _widened(old, new, own_calls) if widen else (old, new, own_calls)
                found = _compare_layer(
                    name, *pair,
                    planned=decisions is not None, same=same, rounded=rounded, brief=widen,
                )  # fmt: skip
            if widen and own_calls:
                size = "x".join(map(str, own_calls[0].input.shape))
                found = [replace(one, inputs=f"{one.inputs}, cropped to {size}") for one in found]
            comparisons += found
        # Functional calls have no module to compare, so the exact form runs on their arguments.
        elif name in calls and (isinstance(old, GraphModule) or (new and is_rerouted(new))):
            comparisons += [_compare_call(name, call) for call in calls[name][:4]]
    return comparisons


def _corrected_inside_code(model: nn.Module, plan: Plan) -> list[Replaced]:
    """Layers with a corrected weight that code of the model's own calls: no forward of theirs can be run."""
    found = []
    for decision in plan.replaced:
        layer = _submodule(model, _caller(decision))
        is_own = not isinstance(layer, ConvTransposeModule) or has_own_forward(layer)
        if decision.target.keeps_layer and is_own and layer is not None:
            found.append(decision)
    return found


def _caller(decision: Replaced) -> str:
    """The layer, or the module whose code calls the function."""
    path = call_path(decision.name, decision.op)
    return decision.name if path is None else path


def _compare_weights(
    before: nn.Module, after: nn.Module, inside: list[Replaced], example: Inputs, rounded: float
) -> list[Comparison]:
    """The weights that calls get when the converted model runs, with those that the plan makes of the old."""
    old_calls, new_calls = first_run(before, example).calls, first_run(after, example).calls
    comparisons = []
    for decision in inside:
        name = _caller(decision)
        pairs = zip(old_calls.get(name, ()), new_calls.get(name, ()), strict=True)
        for old, new in pairs:
            if old.spec() != decision.spec or new.spec() != decision.spec:
                continue
            weight = decision.target.equivalent(
                decision.spec, decision.settings, read_weight(old.weight)
            )[1]
            expected = torch.from_numpy(weight).to(old.weight)
            bound = torch.full_like(expected, rounded * float(expected.abs().max()))
            comparisons.append(
                compare_tensors(name, "the weight of its call", new.weight, expected, bound)
            )
    return comparisons


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


@torch.no_grad()
def _widened(
    old: ConvTransposeModule, new: nn.Module, calls: list[Call]
) -> tuple[nn.Module, nn.Module, list[Call]]:
    """A layer before and after, which is changed itself, and its calls, in float64.

    They stay as they are where the weight of a call is not the one that the layer tells: it was computed in
    its own dtype, and float64 would see that it was rounded.
    """
    if not old.weight.is_floating_point():
        return old, new, calls
    if not all(equal(call.weight, current_weight(old)) for call in calls):
        return old, new, calls
    wide, new = copy_model(old).double(), new.double()
    weight = current_weight(wide)
    calls = [
        replace(
            call,
            input=call.input.double(),
            weight=weight,
            bias=None if call.bias is None else call.bias.double(),
        )
        for call in calls
    ]
    return wide, new, calls


def _is_large(new: nn.Module, call: Call) -> bool:
    """Whether a layer in the exact form is compared in float64 in parts."""
    if not (call.weight.is_floating_point() and call.is_large):
        return False
    exchanged = isinstance(new, ConvertedConvTranspose) and new.form.is_exact
    return exchanged or (is_rerouted(new) and not new.training)


@torch.no_grad()
def _compare_large(
    name: str, old: nn.Module, new: nn.Module, calls: list[Call]
) -> list[Comparison]:
    """`_compare_layer` for a layer in the exact form, in float64, some output channels at a time."""
    assert isinstance(old, ConvTransposeModule)
    if is_rerouted(new):
        new = copy_model(new)  # spectral norms change when they run
    comparisons = []
    for kind, call in _cases(old, calls, brief=True):
        if isinstance(new, ConvertedConvTranspose):
            x = call.input.double()
            actual = [layer_part(new, channels).forward(x) for _, channels in call.parts()]
        else:
            now = _as_called(old, new, call)
            parts = (part.wide().arguments for part, _ in now.parts())
            actual = [torch_steps.conv_transpose(**arguments) for arguments in parts]
        expected = [_run_call(part.wide()) for part, _ in call.parts()]
        bounds = [bound_of(part.wide()) for part, _ in call.parts()]
        axis = 1 - call.weight.dim()  # that of the channels, with and without a batch
        three = (torch.cat(parts, axis) for parts in (actual, expected, bounds))
        comparisons.append(compare_tensors(name or "(model)", kind, *three))
    return comparisons


def bound_of(call: Call) -> Tensor:
    """The rounding unit of each output: eps * (|W| (*) |x| + |b|), more for very long sums."""
    if not call.weight.is_floating_point():
        return torch.zeros(())  # integers must be equal
    # Terms of an output's sum: (C_in/g) * taps, an upper bound as a phase uses a part of them.
    terms = math.prod(call.weight.shape) // call.weight.shape[1] // int(call.groups)
    eps = rounding_unit(torch.finfo(call.weight.dtype).eps, terms)
    x = call.input.detach().abs()
    parts = []
    for part, _ in call.parts():
        weight = part.weight.detach().abs()
        bias = None if part.bias is None else part.bias.detach().abs()
        parts.append(_run_call(replace(part, input=x, weight=weight, bias=bias)))
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1 - call.weight.dim())) * eps


def _stored_bound(call: Call, rounded: float) -> Tensor:
    """The same for weights that are rounded when they are stored: each tap by that of the largest one."""
    if not call.weight.is_floating_point():
        return torch.zeros(())
    weight = call.weight.detach().abs()
    # Stored in one dtype, the taps of a pair of channels move by up to an eps of the largest.
    largest = weight.amax(tuple(range(2, weight.dim())), keepdim=True).expand_as(weight)
    bound = bound_of(replace(call, weight=largest.contiguous()))
    return bound * (rounded / torch.finfo(call.weight.dtype).eps)


def _run_call(call: Call) -> Tensor:
    function = getattr(torch, f"conv_transpose{call.weight.dim() - 2}d")
    result: Tensor = function(**call.arguments)
    return result


@torch.no_grad()
def _compare_call(name: str, call: Call) -> Comparison:
    """A rerouted call on the arguments that it got in the original."""
    actual = torch_steps.conv_transpose(**call.arguments)
    where = f"{name}.{call.function}".removeprefix(".")
    return compare_tensors(where, "example inputs", actual, _run_call(call), bound_of(call))


@torch.no_grad()
def _compare_layer(
    name: str,
    old: nn.Module,
    new: nn.Module,
    calls: list[Call],
    *,
    planned: bool,
    same: bool,
    rounded: float,
    brief: bool,
) -> list[Comparison]:
    """One layer, on what it got in the original's calls and on inputs made up.

    Args:
        name: The layer's.
        old: The layer in the original.
        new: The layer in the converted model.
        calls: What it was called with in the original; may be empty.
        planned: Whether it is known to be converted: then a fitted form is compared with its steps, and a
            corrected weight with the layer of that weight. Otherwise both are compared with `old`.
        same: Whether a planned layer computes the same function: it is compared with `old` as well.
        rounded: The eps of the stored weights.
        brief: Whether noise is the only input that is made up: in float64 it shows all that the others do.
    """
    assert isinstance(old, ConvTransposeModule)
    comparisons = []
    # Per case: run the new layer, choose what it must equal, compare.
    for kind, call in _cases(old, calls, brief):
        x = call.input
        rerouted = is_rerouted(new)
        # Without the user's hooks, which are not part of the layer; some hooks make its weight.
        for hook in new._forward_pre_hooks.values():
            if makes_weight(hook):
                hook(new, (x,))
        if rerouted:
            now = _as_called(old, new, call)
            actual = torch_steps.conv_transpose(**now.arguments)
        else:
            actual = new.forward(x)
        expected, bound = _run_call(call), bound_of(call)
        fitted = isinstance(new, ConvertedConvTranspose) and not form(new.form_name).is_exact
        if planned and isinstance(new, ConvertedConvTranspose) and fitted:
            if same:
                words = f"{kind}, as the same function"
                margin = _stored_bound(call, rounded)
                comparisons.append(
                    compare_tensors(name or "(model)", words, actual, expected, margin)
                )
            # A fitted kernel has no other truth than its own steps, computed in NumPy.
            expected, bound = _by_definition(new, x, rounded)
        elif planned and isinstance(new, ConvTransposeModule) and not rerouted:
            # A corrected weight in the same layer: only the layer itself can be wrong.
            # It may have grown, with its padding.
            padding = tuple(begin for begin, _ in spec_of(new).padding)
            weight = current_weight(new).to(call.weight)
            expected = _run_call(replace(call, weight=weight, bias=new.bias, padding=padding))
        comparisons.append(compare_tensors(name or "(model)", kind, actual, expected, bound))
    return comparisons


def _as_called(old: nn.Module, new: nn.Module, call: Call) -> Call:
    """The call of a layer whose call is converted where it runs, with the weights that it has now."""
    assert isinstance(new, ConvTransposeModule)
    theirs, own = dict(old.named_parameters()), dict(new.named_parameters())
    same = theirs.keys() == own.keys() and all(equal(own[name], theirs[name]) for name in own)
    # In training a spectral norm makes another weight each time that it is asked for one.
    if not (new.training and same):
        bias = None if new.bias is None else new.bias.to(call.weight)
        call = replace(call, weight=current_weight(new).to(call.weight), bias=bias)
    return call


def _cases(
    layer: ConvTransposeModule, calls: list[Call], brief: bool
) -> Iterator[tuple[str, Call]]:
    """Calls of the layer as it is in the original: those that were seen, and some on made-up inputs."""
    spec = spec_of(layer)
    # What a hook computes is brought up to date by a run; double() does not reach it.
    dtype = next(layer.parameters()).dtype
    bias: Tensor | None
    if calls:
        weight, bias, shape = calls[0].weight, calls[0].bias, tuple(calls[0].input.shape)
    else:
        weight = current_weight(layer).to(dtype)
        bias = None if layer.bias is None else layer.bias.to(dtype)
        shape = (2, spec.in_channels, *small_sizes(spec))
    inputs = [("example inputs", call.input) for call in calls]
    # Noise shows wrong phases, a constant wrong sums, zeros a wrong bias.
    _, *made_up = input_variants(as_inputs(weight.new_zeros(shape)))
    inputs += [(kind, variant.args[0]) for kind, variant in made_up[: 1 if brief else None]]
    padding = tuple(begin for begin, _ in spec.padding)
    for kind, x in inputs:
        yield (
            kind,
            Call(
                "layer",
                x,
                weight,
                bias,
                spec.stride,
                padding,
                spec.output_padding,
                spec.groups,
                spec.dilation,
            ),
        )


def _by_definition(
    layer: ConvertedConvTranspose, x: Tensor, rounded: float
) -> tuple[Tensor, Tensor]:
    """What the layer's steps mean on (N, C_in, *L) or (C_in, *L), and their rounding.

    What is folded means upsampling and then a convolution, of the kernel that is closest to the one it has,
    which was `rounded` when it was stored.
    """
    settings, weight = layer.settings, read_weight(layer.convolution.weight)
    eps = torch.finfo(x.dtype).eps
    if layer.form.folding(layer.spec, settings) is not None:
        kernel = layer.form.parted(layer.spec, settings, kernel_of(layer))
        settings, eps = replace(settings, fold=False), max(eps, rounded)
        weight = rearrange(layer.form.compile(layer.spec, settings).weight, kernel, layer.groups)
    compiled = layer.form.compile(layer.spec, settings)
    batched = x if x.dim() == layer.spec.ndim + 2 else x[None]
    definition = by_definition(
        compiled,
        read_weight(batched),
        weight,
        None if layer.bias is None else read_weight(layer.bias),
        eps,
    )
    shape = definition.value.shape if batched is x else definition.value.shape[1:]
    return (
        torch.from_numpy(definition.value).reshape(shape).to(x),
        torch.from_numpy(definition.rounding).reshape(shape),
    )
