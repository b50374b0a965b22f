"""Transposed convolutions of a torch model, described as matches: modules and functional calls."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.errors import Refusal
from deconvfix.forms.base import Need
from deconvfix.forms.unfit import not_finite
from deconvfix.frontends.torch.calls import Observed, dtype_obstacle
from deconvfix.frontends.torch.inputs import dtype_name
from deconvfix.frontends.torch.layers import ConvTransposeModule, read_weight, spec_of
from deconvfix.plan import Match, lacking

__all__ = [
    "EXCLUDED",
    "PLAIN",
    "call_path",
    "current_weight",
    "has_own_forward",
    "is_layer",
    "is_rerouted",
    "is_uninitialized",
    "keeps_some",
    "makes_weight",
    "match_calls",
    "match_module",
    "owners_of_parameters",
    "parameter_of_call",
]

PLAIN = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAZY = (nn.LazyConvTranspose1d, nn.LazyConvTranspose2d, nn.LazyConvTranspose3d)
# "decoder.conv_transpose2d#2" is the second geometry that runs in the code of `decoder`.
_FUNCTION_NAME = re.compile(
    r"^(?:(?P<path>.*)\.)?(?P<function>conv_transpose(\dd)?|convolution)(#\d+)?$"
)
_RERUN_HINT = "Convert this layer to 'subpixel', or exclude it"
_FUNCTION_CALL = Refusal(
    "it is a function call in the code of a module",
    "another form replaces a layer that has its own module",
    _RERUN_HINT,
)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a transposed convolution of torch, in whatever state."""
    return isinstance(module, (*PLAIN, *_LAZY)) or _is_quantized(module) or _is_script(module)


# By name: most of torch.ao's classes are no subclasses of torch.nn's layers.
def _is_quantized(module: nn.Module) -> bool:
    return "quantized" in type(module).__module__ and "ConvTranspose" in type(module).__name__


def _is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) and "ConvTranspose" in getattr(
        module, "original_name", ""
    )


def is_uninitialized(module: nn.Module) -> bool:
    """Whether a lazy module has no shape yet."""
    return isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params()


def owners_of_parameters(model: nn.Module) -> dict[int, list[str]]:
    """For each parameter the names under which different modules own it."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{name}.{key}".removeprefix("."))
    return owners


def _sizes(observed: Observed) -> tuple[int, ...]:
    call = observed.call
    return tuple(int(n) for n in call.input.shape[2 - call.weight.dim() :])


def match_module(
    name: str,
    module: nn.Module,
    owners: dict[int, list[str]],
    observed: list[Observed] | None,
) -> Match:
    """Describes a layer.

    Args:
        name: Its name in the model.
        module: The layer.
        owners: See `owners_of_parameters`.
        observed: What was seen of it; None if the model was not run.
    """
    sizes = tuple(dict.fromkeys(map(_sizes, observed or ())))
    calls = None if observed is None else len(observed)
    op = re.sub(r"^(Parametrized|Lazy)", "", type(module).__name__)
    if _is_quantized(module) or _is_script(module):
        kind = "quantised" if _is_quantized(module) else "a compiled TorchScript module"
        obstacle = Refusal(
            f"it is {kind} ({type(module).__module__}.{type(module).__name__})",
            "an ordinary torch.nn layer is needed",
            "Convert the model before quantising or scripting it",
        )
        return Match(name, op, None, "unknown", sizes, calls, obstacle)
    if is_uninitialized(module):
        obstacle = Refusal(
            "it is lazy and has no weight yet",
            "its shape is determined by the first run",
            "Give example inputs, or run the model once before",
        )
        return Match(name, op, None, "unknown", sizes, calls, obstacle)
    assert isinstance(module, ConvTransposeModule)
    weight = next(module.parameters())
    on_meta = weight.is_meta
    # Code of its own stands in the way of another layer in its place. In place, the weight can be corrected
    # if it is seen to be used as it is stored.
    own_code = None
    if has_own_forward(module):
        own_code = Refusal(
            f"{type(module).__name__} has its own forward",
            "another form replaces torch's forward of the layer",
            _RERUN_HINT,
        )
    as_stored = bool(observed) and all(
        seen.call.weight is seen.stack[-1].weight and seen.call.spec() == spec_of(module)
        for seen in observed or ()
    )
    not_own = own_code if own_code and not as_stored else _why_not_own(name, module, owners)
    return Match(
        name=name,
        op=op,
        spec=spec_of(module),
        dtype=dtype_name(weight),
        input_sizes=sizes,
        calls=calls,
        obstacle=dtype_obstacle(weight) or (None if on_meta else _not_finite(module)),
        lacks=lacking(
            {
                Need.STORED_WEIGHT: not_own,
                Need.SETTABLE_WEIGHT: _why_not_settable(module),
                Need.OWN_MODULE: own_code,
            }
        ),
        read_weight=None if on_meta else lambda: read_weight(current_weight(module)),
    )


def _why_not_own(name: str, module: nn.Module, owners: dict[int, list[str]]) -> Refusal | None:
    """Why a layer has no weight of its own that could be read."""
    if next(module.parameters()).is_meta:
        return Refusal(
            "its weight is on the meta device", "values are needed for a fit", _RERUN_HINT
        )
    shared = [
        other
        for parameter in module.parameters()
        # The layer's own parametrizations stand below its name, and are not another owner.
        for other in owners.get(id(parameter), [])
        if name and not other.startswith(f"{name}.")
    ]
    if not shared:
        return None
    kinds = [
        key
        for key, parameter in module.named_parameters()
        if len(owners.get(id(parameter), [])) > 1
    ]
    return Refusal(
        f"its {' and '.join(kinds)} is shared with {', '.join(shared)}",
        "a fitted weight is specific to one layer",
        _RERUN_HINT,
    )


def _not_finite(module: nn.Module) -> Refusal | None:
    """Norms and parametrizations make the weight of parameters, which are looked at here."""
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            return not_finite("bias" if name.endswith("bias") else "weight")
    return None


def match_calls(
    path: str,
    module: nn.Module,
    observed: list[Observed],
    owners: dict[int, list[str]],
    uses: Mapping[int, int],
) -> Iterator[Match]:
    """Describes the functional calls in the code of a module, one for each geometry.

    Args:
        path: The module's name.
        module: The module.
        observed: The calls that ran in a copy of it.
        owners: See `owners_of_parameters`.
        uses: How many operations each parameter of the copy was given to, by its id.
    """
    found: dict[tuple[str, ConvTransposeSpec], list[Observed]] = {}
    for seen in observed:
        # Calls of one function and geometry are one match, however often they run.
        found.setdefault((seen.call.function, seen.call.spec()), []).append(seen)
    totals: dict[str, int] = {}
    for function, _ in found:
        totals[function] = totals.get(function, 0) + 1
    numbers = dict.fromkeys(totals, 0)
    for (function, spec), calls in found.items():
        numbers[function] += 1
        # A number only where the name alone would not be unique.
        suffix = f"#{numbers[function]}" if totals[function] > 1 else ""
        weight = calls[0].call.weight
        parameter = parameter_of_call(module, spec)
        alone = (
            parameter is not None
            and len(owners.get(id(parameter), [])) == 1
            and uses.get(id(weight)) == len(calls)
            and all(seen.call.weight is parameter_of_call(seen.stack[-1], spec) for seen in calls)
        )
        yield Match(
            name=f"{path}.{function}{suffix}".removeprefix("."),
            op=function,
            spec=spec,
            dtype=dtype_name(weight),
            input_sizes=tuple(dict.fromkeys(map(_sizes, calls))),
            calls=len(calls),
            obstacle=dtype_obstacle(weight),
            lacks={Need.OWN_MODULE if alone else Need.STORED_WEIGHT: _FUNCTION_CALL},
            read_weight=partial(read_weight, parameter)
            if alone and parameter is not None
            else None,
        )


def parameter_of_call(module: nn.Module, spec: ConvTransposeSpec) -> nn.Parameter | None:
    """The only parameter of a module that may be the weight of a call in its code; None if there are more."""
    found = [
        parameter
        for parameter in module.parameters(recurse=False)
        if tuple(parameter.shape) == spec.weight_shape
    ]
    return found[0] if len(found) == 1 else None


def call_path(name: str, op: str) -> str | None:
    """The module in whose code a function is called, from the match's name; None for layers."""
    call = _FUNCTION_NAME.match(name)
    return (call["path"] or "") if call and call["function"] == op else None


def makes_weight(hook: object) -> bool:
    """Whether a forward hook computes a parameter: old weight_norm, old spectral_norm, pruning."""
    return isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod)


@torch.no_grad()
def current_weight(module: nn.Module) -> Tensor:
    """The weight that the next forward in eval mode uses, (C_in, C_out / groups, *kernel_size).

    What a hook computes is out of date until a run, and some parametrizations change their own
    state whenever the weight is read in train mode.
    """
    weight: Tensor
    # Old weight_norm, spectral_norm and pruning set `weight` in a pre-hook, at each call.
    hooks: list[Any] = list(module._forward_pre_hooks.values())
    for hook in hooks:
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            weight = hook.compute_weight(module)
        elif isinstance(hook, SpectralNorm) and hook.name == "weight":
            weight = hook.compute_weight(module, do_power_iteration=False)
        elif isinstance(hook, BasePruningMethod) and hook._tensor_name == "weight":
            weight = hook.apply_mask(module)
        else:
            continue
        return weight
    if parametrize.is_parametrized(module, "weight"):
        computing = _parametrization(module)
        modes = {part: part.training for part in computing.modules()}
        try:
            weight = computing.eval()()
        finally:
            for part, training in modes.items():
                part.training = training
        return weight
    return module.get_parameter("weight")


def _parametrization(module: nn.Module) -> Any:
    return module.get_submodule("parametrizations.weight")


def _why_not_settable(module: nn.Module) -> Refusal | None:
    """Why a corrected weight cannot be stored in the layer as it is."""
    computed = None
    if parametrize.is_parametrized(module, "weight"):
        kinds = [type(kind).__name__ for kind in _parametrization(module)]
        # Weight norm can hold any weight, as a direction and a norm.
        computed = None if kinds == ["_WeightNorm"] else ", ".join(kinds)
    for hook in module._forward_pre_hooks.values():
        if makes_weight(hook) and not isinstance(hook, WeightNorm):
            computed = type(hook).__name__
    if computed is None:
        return None
    return Refusal(
        f"its weight is computed from other parameters ({computed})",
        "the equalized form needs a weight that can be set",
        _RERUN_HINT,
    )


def has_own_forward(module: nn.Module) -> bool:
    """Whether a layer runs other code than torch's own layer does."""
    plain = next((kind for kind in PLAIN if isinstance(module, kind)), None)
    # Some libraries set a forward on the instance, which hides that of the class.
    return plain is not None and (
        type(module).forward is not plain.forward or "forward" in vars(module)
    )


EXCLUDED = "_deconvfix_excluded"


def is_rerouted(module: nn.Module) -> bool:
    """Whether the transposed convolutions of this module run as sub-pixel convolutions already."""
    return vars(module).get(EXCLUDED) is not None


def keeps_some(module: nn.Module) -> bool:
    """Whether transposed convolutions run in this module because they were excluded."""
    # An empty set means that all calls of the module are rerouted, so that none is kept.
    return EXCLUDED in vars(module) and vars(module)[EXCLUDED] != frozenset()
