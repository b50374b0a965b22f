"""Changing a torch model: layers exchanged, weights corrected."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from deconvfix.errors import ModelError
from deconvfix.forms.base import Settings
from deconvfix.frontends.torch.find import (
    PLAIN,
    current_weight,
    has_own_forward,
    makes_weight,
    parameter_of_call,
)
from deconvfix.frontends.torch.layers import (
    ConvertedConvTranspose,
    ConvTransposeModule,
    read_weight,
    spec_of,
)
from deconvfix.plan import Decision, Replaced

__all__ = [
    "check_geometry",
    "converted_layer",
    "exchange",
    "put_weight",
    "rebuilt_layer",
    "set_weight",
    "set_weight_of_call",
    "take_over",
    "warn_of_optimizers",
    "why_not_exchanged",
]

Layer = TypeVar("Layer", bound=nn.Module)
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
# Dictionaries of torch.nn.Module's own.
_MODULE_STATE = frozenset(vars(nn.Module()))


def why_not_exchanged(module: nn.Module, owners: dict[int, list[str]]) -> str | None:
    """Why a layer keeps its module and has its call rerouted instead."""
    # Users may test for the class, or call its other methods, so it must stay.
    if type(module) not in PLAIN or has_own_forward(module):
        return "its class is not torch's own"
    # Old-style hooks make the weight from other parameters, whose names must stay.
    if "weight" not in module._parameters or "bias" not in module._parameters:
        return "its parameters are computed by a hook"
    if set(module._parameters) != {"weight", "bias"} or module._buffers or module._modules:
        return "it has more than torch's own layer has"
    # A copy in one place would end the sharing.
    if any(len(owners[id(parameter)]) > 1 for parameter in module.parameters()):
        return "its parameters are shared"
    return None


def check_geometry(module: nn.Module, decision: Decision) -> None:
    """A recipe must have been made for this layer.

    Raises:
        ModelError: If it was made for another geometry.
    """
    found = spec_of(module)
    if found != decision.spec:
        raise ModelError(
            decision.name or "(model)",
            f"the layer is {found}",
            f"the plan was made for {decision.spec}",
            "Use the recipe that was made for this model",
        )


def converted_layer(module: nn.Module, decision: Replaced) -> ConvertedConvTranspose:
    """The layer in its new form, with the mode, hooks and attributes of the old one."""
    assert isinstance(module, ConvTransposeModule)
    weight, bias = current_weight(module), module.bias
    kernel = weight.detach()
    if not decision.target.is_exact:
        # A fit runs in float64, and its result is rounded to the layer's dtype once.
        kernel = torch.from_numpy(decision.kernel(read_weight(weight))).to(weight)
    new = ConvertedConvTranspose(
        decision.spec,
        decision.form,
        decision.settings,
        kernel,
        None if bias is None else bias.detach(),
    )
    for name, parameter in new.named_parameters():
        # Frozen layers stay frozen.
        source = bias if name.endswith("bias") else weight
        parameter.requires_grad_(source is not None and source.requires_grad)
    return take_over(new, module)


def rebuilt_layer(
    module: ConvertedConvTranspose,
    settings: Settings,
    kernel: NDArray[np.float64],
    bias: NDArray[np.float64] | None,
) -> ConvertedConvTranspose:
    """A converted layer with other settings and another kernel and bias; see `Form.fit`."""
    conv = module.convolution
    new = ConvertedConvTranspose(
        module.spec,
        module.form_name,
        settings,
        torch.from_numpy(kernel).to(conv.weight),
        None if bias is None else torch.from_numpy(bias).to(conv.weight),
    )
    for (_, parameter), (_, old) in zip(
        new.named_parameters(), module.named_parameters(), strict=True
    ):
        parameter.requires_grad_(old.requires_grad)
    return take_over(new, module)


def take_over(new: Layer, old: nn.Module) -> Layer:
    """Gives `new` the mode, hooks and attributes of the layer that it stands for."""
    # The dictionaries themselves, as handles that the user holds refer to them.
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))
    for key, hook in list(new._forward_pre_hooks.items()):
        if makes_weight(hook):
            del new._forward_pre_hooks[key]
    for name, value in vars(old).items():
        # Attributes that the user has set on the layer; parameters are converted, not copied.
        if name not in vars(new) and not isinstance(value, Tensor):
            object.__setattr__(new, name, value)
    return new.train(old.training)


def exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Puts `new` wherever `old` is registered."""
    if model is old:
        return new
    # One layer may be registered in several places.
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
        for name, value in vars(parent).items():
            if name not in _MODULE_STATE:
                vars(parent)[name] = _swapped(value, old, new)
    return model


def _swapped(value: Any, old: nn.Module, new: nn.Module) -> Any:
    """Plain lists, tuples and dicts that hold a layer without registering it; others as they are."""
    if type(value) is list and any(item is old for item in value):
        value[:] = [new if item is old else item for item in value]
    elif type(value) is dict and any(item is old for item in value.values()):
        value.update({key: new for key, item in value.items() if item is old})
    elif type(value) is tuple and any(item is old for item in value):
        return tuple(new if item is old else item for item in value)
    return value


def set_weight(module: nn.Module, decision: Replaced) -> None:
    """Gives the layer its corrected weight, and the geometry that goes with it."""
    new_spec, kernel = decision.target.equivalent(
        decision.spec, decision.settings, read_weight(current_weight(module))
    )
    assert isinstance(module, ConvTransposeModule)
    # The kernel may have grown, and its padding with it, so that the output keeps its size.
    module.kernel_size = new_spec.kernel_size
    module.padding = tuple(begin for begin, _ in new_spec.padding)
    put_weight(module, kernel, None, decision.name)


@torch.no_grad()
def set_weight_of_call(module: nn.Module, decision: Replaced) -> None:
    """Gives a functional call its corrected weight: the parameter that the module's code calls it with.

    Raises:
        ModelError: If the module has no such parameter, or several.
    """
    parameter = parameter_of_call(module, decision.spec)
    if parameter is None:
        raise ModelError(
            decision.name,
            f"the module has not exactly one parameter of the shape {decision.spec.weight_shape}",
            "the weight of the call is needed",
            "Use the recipe that was made for this model",
        )
    _, kernel = decision.target.equivalent(decision.spec, decision.settings, read_weight(parameter))
    _assign(parameter, torch.from_numpy(kernel).to(parameter))


@torch.no_grad()
def put_weight(
    module: nn.Module,
    kernel: NDArray[np.float64],
    bias: NDArray[np.float64] | None,
    name: str,
) -> None:
    """Sets a layer's weight, through its parametrization or hook if it has one, and its bias if given.

    Raises:
        ModelError: If the layer's parameters cannot hold the weight.
    """
    assert isinstance(module.weight, Tensor)
    new = torch.from_numpy(kernel).to(module.weight)
    before = [(tensor, tensor.detach().clone()) for tensor in module.parameters()]
    if parametrize.is_parametrized(module, "weight"):
        # torch's setter calls right_inverse of the parametrization.
        module.weight = new
    elif "weight_v" in module._parameters:
        # Old weight_norm: the weight is g * v / |v|, so v may be the new weight itself.
        norm = next(
            hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)
        )
        _assign(module.get_parameter("weight_v"), new)
        _assign(module.get_parameter("weight_g"), torch.norm_except_dim(new, 2, norm.dim))
        module.weight = norm.compute_weight(module)
    elif "weight" in module._parameters:
        _assign(module.weight, new)
    if bias is not None:
        assert isinstance(module.bias, Tensor)
        module.bias.copy_(torch.from_numpy(bias))
    # Read back: a parametrization without an exact inverse gives another weight than was set.
    error = float((current_weight(module) - new).abs().max())
    bound = 16 * torch.finfo(new.dtype).eps * float(new.abs().max())
    if "weight" in module._buffers or not error <= bound:
        for tensor, value in before:
            tensor.data = value
        raise ModelError(
            name or "(model)",
            f"its weight is computed from other parameters, and differs by {error:.3g} when set",
            "the equalized form needs a weight that can be set",
            "Remove the parametrization first, or use the form 'subpixel' or 'resize'",
        )


def _assign(parameter: Tensor, value: Tensor) -> None:
    """Values of the same shape are copied, so that whatever shares the memory sees them."""
    if parameter.shape == value.shape:
        parameter.copy_(value)
    else:
        # A grown kernel has another shape. The parameter stays the same object.
        parameter.data = value.contiguous()


def warn_of_optimizers(lost: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Warns where an optimizer holds parameters that are no longer the model's.

    Args:
        lost: Names and parameters that a conversion in place has taken out of the model.
    """
    names = {id(parameter): name for name, parameter in lost}
    if not names:
        return
    for found in gc.get_objects():
        # By its type: asking an unknown object for its class may run code of its own.
        if not issubclass(type(found), torch.optim.Optimizer):
            continue
        held = [
            names[id(p)] for group in found.param_groups for p in group["params"] if id(p) in names
        ]
        if held:
            warnings.warn(
                f"{type(found).__name__} holds {', '.join(held[:3])}"
                f"{' and others' if len(held) > 3 else ''}, which the conversion has replaced: make the "
                "optimizer anew from model.parameters(), or it trains nothing there.",
                UserWarning,
                stacklevel=2,
            )
