"""The layers of two torch modules, one by one: against the original, or against what their form means."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from deconvfix.core.rearrange import rearrange
from deconvfix.core.steps import Resize, run
from deconvfix.forms import form
from deconvfix.frontends.torch import steps as torch_steps
from deconvfix.frontends.torch.calls import Call, Observed, observe
from deconvfix.frontends.torch.compare import compare_tensors, input_variants
from deconvfix.frontends.torch.find import current_weight, is_rerouted, makes_weight
from deconvfix.frontends.torch.inputs import (
    Inputs,
    as_inputs,
    copy_model,
    innermost_name,
    names_of,
    run_model,
)
from deconvfix.frontends.torch.layers import (
    ConvertedConvTranspose,
    ConvTransposeModule,
    read_weight,
    spec_of,
)
from deconvfix.parity.bounds import LIMIT, Comparison, rounding_unit
from deconvfix.plan import Plan

__all__ = ["bound_of", "compare_layers"]


def compare_layers(
    before: nn.Module,
    after: nn.Module,
    examples: list[Inputs],
    plan: Plan | None,
    rounded: float,
) -> list[Comparison]:
    """Every converted layer, on what it sees in the original and on inputs made up.

    `rounded` is the rounding of the weights as they are stored.
    """
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
            same = wanted is not None and wanted[name].exact
            comparisons += _compare_layer(
                name, old, new, calls, wanted is not None, rounded if same else None
            )
        elif name in seen and (isinstance(old, GraphModule) or (new and is_rerouted(new))):
            comparisons += [_compare_call(name, call) for call in seen[name][:4]]
    return comparisons


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def bound_of(call: Call) -> Tensor:
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


def _stored_bound(call: Call, rounded: float) -> Tensor:
    """The same for weights that are rounded when they are stored: each tap by that of the largest one."""
    weight = call.weight.detach().abs()
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
    got = torch_steps.conv_transpose(**call.arguments)
    where = f"{name}.{call.function}".removeprefix(".")
    return compare_tensors(where, "example inputs", got, _run_call(call), bound_of(call))


@torch.no_grad()
def _compare_layer(
    name: str,
    old: nn.Module,
    new: nn.Module,
    calls: list[Call],
    by_definition: bool,
    rounded: float | None,
) -> list[Comparison]:
    """One layer.

    With `by_definition` fitted forms are held against their steps, and against `old` only where they
    are the same function up to `rounded`, the rounding of the stored weights.
    """
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
        want, bound = _run_call(call), bound_of(call)
        rerouted = is_rerouted(new)
        # Without the user's hooks, which are not part of the layer; some hooks make its weight.
        for hook in new._forward_pre_hooks.values():
            if makes_weight(hook):
                hook(new, (x,))
        got = torch_steps.conv_transpose(**call.arguments) if rerouted else new.forward(x)
        fitted = isinstance(new, ConvertedConvTranspose) and new.form_name != "subpixel"
        if by_definition and isinstance(new, ConvertedConvTranspose) and fitted:
            if rounded is not None:
                same = f"{kind}, as the same function"
                margin = _stored_bound(call, rounded)
                comparisons.append(compare_tensors(name or "(model)", same, got, want, margin))
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
    eps = torch.finfo(x.dtype).eps
    terms = math.prod(weight.shape[1:])
    unit = rounding_unit(eps, terms)
    for step in compiled.steps:
        if isinstance(step, Resize):
            # Repeated pixels round alike: sums err by up to eps for each term, not for its root.
            unit = max(unit, eps * terms / LIMIT)
            if step.interpolation == "linear":
                # A position up to L is rounded by eps * L, and so are its two weights on each axis.
                unit += 2 * eps * sum(batched.shape[2:])
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
