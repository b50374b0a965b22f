"""Front end for torch.nn.Module.

A plain torch.nn.ConvTranspose1d, 2d or 3d is exchanged for a module of the new form. Everything else
that runs a transposed convolution keeps its module, parameters and names, and has its call rerouted
while it runs: subclasses with their own forward, parametrized, hooked or tied weights, and functional
calls. Neither needs the model to be traceable.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Container, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deconvfix.errors import ModelError
from deconvfix.forms import form
from deconvfix.forms.base import Refusal
from deconvfix.frontends.base import Findings
from deconvfix.frontends.torch_calls import (
    Observed,
    Rerouted,
    Untouched,
    callers_by_code,
    dtype_obstacle,
    is_rerouted,
    observe,
)
from deconvfix.frontends.torch_inputs import as_inputs, run_model
from deconvfix.frontends.torch_layers import (
    ConvertedConvTranspose,
    ConvTransposeModule,
    read_weight,
    spec_of,
)
from deconvfix.parity import ParityReport
from deconvfix.plan import Decision, Match, Plan
from deconvfix.spec import ConvTransposeSpec

__all__ = ["FRONTEND", "TorchModuleFrontend", "call_path", "copy_model"]

_PLAIN = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAZY = (nn.LazyConvTranspose1d, nn.LazyConvTranspose2d, nn.LazyConvTranspose3d)
_FUNCTION_NAME = re.compile(
    r"^(?:(?P<path>.*)\.)?(?P<function>conv_transpose(\dd)?|convolution)(#\d+)?$"
)
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
_RERUN_HINT = "Convert this layer to 'subpixel', or exclude it"


class TorchModuleFrontend:
    """See the module's text."""

    def prepare(self, model: nn.Module, example_inputs: Any | None, *, inplace: bool) -> nn.Module:
        """A copy; lazy layers get their shapes from the example inputs."""
        if not inplace:
            model = copy_model(model)
        if example_inputs is not None and any(map(_is_uninitialized, model.modules())):
            run_model(model, as_inputs(example_inputs))
        return model

    def find(self, model: nn.Module, example_inputs: Any | None) -> Findings:
        """Modules by their class, calls by running a copy (or by reading code, without inputs)."""
        observed: list[tuple[str, Observed]] = []
        notes: list[str] = []
        if example_inputs is not None:
            probe = copy_model(model)
            names = _names(probe)

            def record(each: Observed) -> None:
                known = [names[module] for module in each.stack if module in names]
                observed.append((known[-1] if known else "", each))

            with observe(record):
                run_model(probe, as_inputs(example_inputs))
        owners = _owners(model)
        matches: dict[str, Match] = {}
        for name, module in model.named_modules():
            if is_rerouted(module):
                continue
            calls = [each for path, each in observed if path == name]
            if _is_layer(module):
                sizes = dict.fromkeys(_sizes(each) for each in calls)
                count = None if example_inputs is None else len(calls)
                matches[name] = _match_module(name, module, owners, tuple(sizes), count)
            else:
                for match in _match_calls(name, calls):
                    matches[match.name] = match
        if example_inputs is None:
            for path in callers_by_code(model):
                if is_rerouted(model.get_submodule(path)):
                    continue
                name = f"{path}.conv_transpose".removeprefix(".")
                matches[name] = Match(name, "conv_transpose", None, "unknown", exact_only=_UNSEEN)
            notes.append(
                "No example inputs: calls of torch.nn.functional.conv_transpose* were searched in "
                "the code of the model only; give example inputs to see every one that runs."
            )
        return Findings(tuple(matches.values()), tuple(notes))

    def apply(self, model: nn.Module, plan: Plan) -> nn.Module:
        """Exchanges layers and reroutes calls as the plan says."""
        owners = _owners(model)
        rerouted: dict[nn.Module, set[ConvTransposeSpec]] = {}
        for decision in plan.replaced:
            module = _module_of(model, decision)
            if not _is_layer(module):
                rerouted.setdefault(module, set())
            elif decision.form == "equalized":
                _set_weight(module, decision)
            elif decision.form == "subpixel" and _why_not_exchanged(module, owners):
                rerouted.setdefault(module, set())
            else:
                _check_geometry(module, decision)
                model = _exchange(model, module, _converted(module, decision))
        untouched = set()
        for decision in plan.decisions:
            if decision.decision == "replaced" or not rerouted:
                continue
            module = _module_of(model, decision)
            if module in rerouted and decision.spec:
                rerouted[module].add(decision.spec)
            elif module not in rerouted and _has_ancestor(model, decision, rerouted):
                untouched.add(module)
        for module, excluded in rerouted.items():
            module.forward = Rerouted(module, frozenset(excluded))  # type: ignore[method-assign]
        for module in untouched:
            module.forward = Untouched(module)  # type: ignore[method-assign]
        return model

    def left(self, model: nn.Module, plan: Plan, example_inputs: Any) -> Sequence[str]:
        """Runs a copy under a dispatch mode and names what it still sees."""
        from deconvfix.frontends.torch_watch import executed_transposed_convolutions

        kept = [d for d in plan.decisions if d.decision != "replaced" or d.form == "equalized"]
        paths = [call_path(each.name, each.op) for each in kept]
        allowed = {d.name if path is None else path for d, path in zip(kept, paths, strict=True)}
        ran = executed_transposed_convolutions(copy_model(model), example_inputs)
        return [name for name in ran if name not in allowed]

    def verify(
        self, before: nn.Module, after: nn.Module, inputs: Sequence[Any], plan: Plan | None
    ) -> ParityReport:
        """See `torch_parity.compare_modules`."""
        from deconvfix.frontends.torch_parity import compare_modules

        return compare_modules(before, after, inputs, plan)

    def psnr_db(self, before: nn.Module, after: nn.Module, example_inputs: Any) -> float | None:
        """See `torch_parity.psnr_db`."""
        from deconvfix.frontends.torch_parity import psnr_db

        return psnr_db(before, after, example_inputs)


FRONTEND = TorchModuleFrontend()

_UNSEEN = Refusal(
    "it is called in this module's code, with a geometry unknown before it runs",
    "example inputs show its geometry",
    "Give example inputs",
)


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy.

    Old-style weight_norm leaves its computed weight behind as a tensor with a gradient history, for
    which torch has no deep copy; it is computed again at the next call, so its values are enough.
    """
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            type(model).__name__,
            f"the model cannot be copied ({type(error).__name__}: {error})",
            "deconvfix works on a copy",
            "Pass inplace=True to convert the model itself, or make it support copy.deepcopy",
        ) from error


def _names(model: nn.Module) -> dict[nn.Module, str]:
    return {module: name for name, module in model.named_modules()}


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (*_PLAIN, *_LAZY)) or _is_quantized(module) or _is_script(module)


def _is_quantized(module: nn.Module) -> bool:
    return "quantized" in type(module).__module__ and "ConvTranspose" in type(module).__name__


def _is_script(module: nn.Module) -> bool:
    return (
        isinstance(module, torch.jit.ScriptModule)
        and "ConvTranspose" in getattr(module, "original_name", "")
    )


def _is_uninitialized(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params()


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """For each parameter the names under which different modules own it."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{name}.{key}".removeprefix("."))
    return owners


def _sizes(observed: Observed) -> tuple[int, ...]:
    call = observed.call
    return tuple(int(n) for n in call.input.shape[2 - call.weight.dim() :])


def _match_module(
    name: str,
    module: nn.Module,
    owners: dict[int, list[str]],
    sizes: tuple[tuple[int, ...], ...],
    calls: int | None,
) -> Match:
    op = re.sub(r"^(Parametrized|Lazy)", "", type(module).__name__)
    if _is_quantized(module) or _is_script(module):
        kind = "quantised" if _is_quantized(module) else "a compiled TorchScript module"
        obstacle = Refusal(
            f"it is {kind} ({type(module).__module__}.{type(module).__name__})",
            "an ordinary torch.nn layer is needed",
            "Convert the model before quantising or scripting it",
        )
        return Match(name, op, None, "unknown", sizes, calls, obstacle)
    if _is_uninitialized(module):
        obstacle = Refusal(
            "it is lazy and has no weight yet",
            "its shape is known after the first run",
            "Give example inputs, or run the model once before",
        )
        return Match(name, op, None, "unknown", sizes, calls, obstacle)
    assert isinstance(module, ConvTransposeModule)
    weight = module.weight
    exact_only: Refusal | None = None
    if _has_own_forward(module):
        exact_only = Refusal(
            f"{type(module).__name__} has its own forward",
            "another form replaces torch's forward of the layer",
            _RERUN_HINT,
        )
    elif weight.is_meta:
        exact_only = Refusal(
            "its weight is on the meta device", "values are needed for a fit", _RERUN_HINT
        )
    else:
        shared = [other for other in owners.get(id(weight), []) if other != f"{name}.weight"]
        if shared and name:
            exact_only = Refusal(
                f"its weight is shared with {', '.join(shared)}",
                "a fitted weight fits one place only",
                _RERUN_HINT,
            )
    return Match(
        name=name,
        op=op,
        spec=spec_of(module),
        dtype=str(weight.dtype).removeprefix("torch."),
        input_sizes=sizes,
        calls=calls,
        obstacle=dtype_obstacle(weight),
        exact_only=exact_only,
        read_weight=lambda: read_weight(module.weight),
    )


def _match_calls(path: str, observed: list[Observed]) -> Iterator[Match]:
    found: dict[tuple[str, ConvTransposeSpec], list[Observed]] = {}
    for each in observed:
        found.setdefault((each.call.function, each.call.spec()), []).append(each)
    totals: dict[str, int] = {}
    for function, _ in found:
        totals[function] = totals.get(function, 0) + 1
    numbers = dict.fromkeys(totals, 0)
    for (function, spec), calls in found.items():
        numbers[function] += 1
        suffix = f"#{numbers[function]}" if totals[function] > 1 else ""
        weight = calls[0].call.weight
        yield Match(
            name=f"{path}.{function}{suffix}".removeprefix("."),
            op=function,
            spec=spec,
            dtype=str(weight.dtype).removeprefix("torch."),
            input_sizes=tuple(dict.fromkeys(map(_sizes, calls))),
            calls=len(calls),
            obstacle=dtype_obstacle(weight),
            exact_only=Refusal(
                "it is a function call in the code of a module",
                "another form replaces a layer that has its own module",
                _RERUN_HINT,
            ),
        )


def call_path(name: str, op: str) -> str | None:
    """The module in whose code a function is called, from the match's name; None for layers."""
    call = _FUNCTION_NAME.match(name)
    return (call["path"] or "") if call and call["function"] == op else None


def _module_of(model: nn.Module, decision: Decision) -> nn.Module:
    """The layer, or the module whose code calls the function."""
    path = call_path(decision.name, decision.op)
    if path is None:
        path = decision.name
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(
            decision.name or "(model)",
            "the model has no such layer",
            "the plan must belong to this architecture",
            "Use the recipe that was made for this model",
        ) from error


def _has_ancestor(model: nn.Module, decision: Decision, ancestors: Container[nn.Module]) -> bool:
    """Whether one of the modules around a layer is among `ancestors`."""
    parts = decision.name.split(".")
    return any(
        model.get_submodule(".".join(parts[:depth])) in ancestors
        for depth in range(len(parts))
    )


def _has_own_forward(module: nn.Module) -> bool:
    plain = next((each for each in _PLAIN if isinstance(module, each)), None)
    return plain is not None and (
        type(module).forward is not plain.forward or "forward" in vars(module)
    )


def _why_not_exchanged(module: nn.Module, owners: dict[int, list[str]]) -> str | None:
    """Why a layer keeps its module and has its call rerouted instead."""
    if type(module) not in _PLAIN or _has_own_forward(module):
        return "its class is not torch's own"
    if "weight" not in module._parameters:
        return "its weight is computed by a hook"
    if any(len(owners[id(parameter)]) > 1 for parameter in module.parameters()):
        return "its parameters are shared"
    return None


def _check_geometry(module: nn.Module, decision: Decision) -> None:
    found = spec_of(module)
    if found != decision.spec:
        raise ModelError(
            decision.name or "(model)",
            f"the layer is {found}",
            f"the plan was made for {decision.spec}",
            "Use the recipe that was made for this model",
        )


def _converted(module: nn.Module, decision: Decision) -> ConvertedConvTranspose:
    assert isinstance(module, ConvTransposeModule)
    assert decision.spec and decision.form and decision.settings
    weight, bias = module.weight, module.bias
    kernel = weight.detach()
    if decision.form != "subpixel":
        fitted = form(decision.form).fit(decision.spec, decision.settings, read_weight(weight))
        kernel = torch.from_numpy(fitted).to(weight)
    new = ConvertedConvTranspose(
        decision.spec,
        decision.form,
        decision.settings,
        kernel,
        None if bias is None else bias.detach(),
    )
    for name, parameter in new.named_parameters():
        source = bias if name.endswith("bias") else weight
        parameter.requires_grad_(source is not None and source.requires_grad)
    for name in _HOOKS:
        setattr(new, name, getattr(module, name))
    for name, value in vars(module).items():
        if name not in vars(new) and not isinstance(value, Tensor):
            object.__setattr__(new, name, value)
    return new.train(module.training)


def _exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Puts `new` wherever `old` is registered."""
    if model is old:
        return new
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
    return model


@torch.no_grad()
def _set_weight(module: nn.Module, decision: Decision) -> None:
    """Gives the layer a corrected weight, through its parametrization or hook if it has one."""
    assert isinstance(module, ConvTransposeModule)
    assert decision.spec and decision.form and decision.settings
    fitted = form(decision.form).fit(decision.spec, decision.settings, read_weight(module.weight))
    new = torch.from_numpy(fitted).to(module.weight)
    if parametrize.is_parametrized(module, "weight"):
        module.weight = new
    elif "weight_v" in module._parameters:
        norm = next(
            hook for hook in module._forward_pre_hooks.values() if type(hook).__name__ == "WeightNorm"
        )
        module.weight_v.copy_(new)
        module.weight_g.copy_(torch.norm_except_dim(new, 2, norm.dim))
        module.weight = norm.compute_weight(module)
    elif "weight" in module._parameters:
        module.weight.copy_(new)
    error = float((module.weight - new).abs().max())
    bound = 16 * torch.finfo(new.dtype).eps * float(new.abs().max())
    if "weight" in module._buffers or not error <= bound:
        raise ModelError(
            decision.name or "(model)",
            f"its weight is computed from other parameters, and differs by {error:.3g} when set",
            "the equalized form needs a weight that can be set",
            "Remove the parametrization first, or use the form 'subpixel' or 'resize'",
        )
