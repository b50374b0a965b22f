"""Nearest upsampling and a convolution of a torch module, as one converted layer; and its proof.

The layer takes the place of the convolution and gets the small map. `nn.Upsample` becomes `nn.Identity`.
Where other code upsamples, its module becomes a subclass of the same name, as `reroute` does it, whose
forward leaves out this upsampling; a call with other factors is an error there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from deconvfix.core.folded import Folded
from deconvfix.core.steps import Pad
from deconvfix.errors import ModelError
from deconvfix.frontends.torch import steps as torch_steps
from deconvfix.frontends.torch.inputs import compare_tensors, copy_model
from deconvfix.frontends.torch.layers import ConvertedConvTranspose, kernel_of, read_weight
from deconvfix.frontends.torch.surgery import exchange, take_over
from deconvfix.frontends.torch.upsampled import folded_of, whole_factors
from deconvfix.parity.bounds import Comparison
from deconvfix.parity.definition import sum_unit
from deconvfix.plan import Plan, Replaced

__all__ = [
    "compare_folded",
    "fold_layer",
    "folded_layer",
    "magnitude_of",
    "with_own_folds",
    "with_sums",
]

_FACTORS = "_deconvfix_factors"


class _Border:
    """A hook that extends the small map."""

    def __init__(self, pad: Pad) -> None:
        self.amounts = [n for pair in reversed(pad.amounts) for n in pair]
        self.mode = "constant" if pad.mode == "zeros" else pad.mode

    def __call__(self, module: nn.Module, args: Any) -> Any:
        return (functional.pad(args[0], self.amounts, mode=self.mode), *args[1:])


class _Skip(TorchFunctionMode):
    """Leaves out nearest upsampling by these factors."""

    def __init__(self, factors: tuple[int, ...]) -> None:
        super().__init__()
        self.factors = factors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not functional.interpolate:
            return func(*args, **kwargs)
        found = whole_factors(func, args, kwargs)
        if found != self.factors:
            raise ModelError(
                "interpolate",
                f"it upsamples by {found or 'other factors'}, or otherwise than by nearest neighbours",
                f"upsampling by {self.factors} was folded into the convolution behind it",
                "Call the model with sizes that double alike, or convert it without `fold`",
            )
        return args[0] if args else kwargs["input"]


def fold_layer(model: nn.Module, decision: Replaced) -> nn.Module:
    """Folds the upsampling that a decision names into its layer; the model is changed and returned.

    Raises:
        ModelError: If the plan was made for another model.
    """
    layer = model.get_submodule(decision.name)
    place = model.get_submodule(str(decision.upsampling))
    folded = _folded(layer, decision)
    model = exchange(model, layer, folded_layer(layer, decision))
    if type(place) in (nn.Upsample, nn.UpsamplingNearest2d):
        return exchange(model, place, nn.Identity().train(place.training))
    cls: Any = type(place)
    place.__class__ = _skipping_class(cls)
    vars(place)[_FACTORS] = folded.factors
    return model


def folded_layer(layer: Any, decision: Replaced) -> nn.Module:
    """A convolution and the upsampling in front of it as one layer, which gets the small map.

    Raises:
        ModelError: If the plan was made for another layer.
    """
    folded = _folded(layer, decision)
    weight, bias = layer.weight, layer.bias
    new = ConvertedConvTranspose(
        decision.spec,
        decision.form,
        decision.settings,
        torch.from_numpy(folded.transposed(read_weight(weight))).to(weight),
        None if bias is None else bias.detach(),
    )
    for name, parameter in new.named_parameters():
        source = bias if name.endswith("bias") and bias is not None else weight
        parameter.requires_grad_(source.requires_grad)
    if folded.border is not None:
        new.register_forward_pre_hook(_Border(folded.border))
    return new.train(layer.training)


def _folded(layer: nn.Module, decision: Replaced) -> Folded:
    folded = folded_of(layer, decision.spec.stride)
    if not isinstance(folded, Folded) or folded.spec != decision.spec:
        raise ModelError(
            decision.name,
            "the layer is another one, or cannot be folded",
            f"the plan was made for {decision.spec}",
            "Use the recipe that was made for this model",
        )
    return folded


# One subclass per class: modules of one class stay instances of one class.
@functools.cache
def _skipping_class(cls: Any) -> type[nn.Module]:
    namespace = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": _reduce,
        "forward": _skipping(cls.forward),
    }
    return type(cls.__name__, (cls,), namespace)


def _skipping(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _Skip(vars(self)[_FACTORS]):
            return forward(self, *args, **kwargs)

    return run


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    """Pickles by the original class: the subclass is made again when it is loaded."""
    return _new, (type(self).__bases__[0],), self.__getstate__()


def _new(cls: Any) -> Any:
    made = _skipping_class(cls)
    return made.__new__(made)


def with_own_folds(model: Any) -> Any:
    """A copy whose resize-convolutions are folded where that saves multiply-accumulates, or the model itself.

    What was said about a layer when it was converted holds. Programs have no such layers.
    """
    if not isinstance(model, nn.Module):
        return model
    layers = {
        name: replace(layer.settings, fold=True)
        for name, layer in model.named_modules()
        if isinstance(layer, ConvertedConvTranspose)
        and layer.settings.fold is None
        and not layer.form.shuffles
    }
    copied = copy_model(model) if layers else model
    for name, settings in layers.items():
        layer: Any = copied.get_submodule(name)
        if layer.form.folding(layer.spec, settings) is not None:
            kernel = layer.form.joined(layer.spec, settings, kernel_of(layer))
            weight = torch.from_numpy(kernel).to(layer.convolution.weight)
            new = ConvertedConvTranspose(layer.spec, layer.form_name, settings, weight, layer.bias)
            copied = exchange(copied, layer, take_over(new, layer))
    return copied


# --- proof --------------------------------------------------------------------------------------


@torch.no_grad()
def compare_folded(
    before: nn.Module, after: nn.Module, plan: Plan, rounded: float
) -> list[Comparison]:
    """Each folded layer against upsampling and its convolution, on made-up maps.

    Args:
        before: The original.
        after: The converted model.
        plan: What was converted.
        rounded: The eps that the sums of taps were rounded with when they were stored.
    """
    comparisons = []
    for decision in plan.replaced:
        if decision.upsampling is None:
            continue
        old: Any = before.get_submodule(decision.name)
        new = copy_model(after.get_submodule(decision.name)).eval()
        folded = _folded(old, decision)
        sizes = range(3, 3 + len(folded.factors))
        shape = (2, folded.in_channels, *(size + 2 for size in sizes))
        generator = torch.Generator().manual_seed(5)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        constant = torch.full(shape, 0.5, dtype=torch.float64)
        for kind, small in (("seeded noise", noise), ("a constant", constant)):
            x = functional.interpolate(small.to(old.weight), scale_factor=folded.factors)
            eps = max(rounded, torch.finfo(x.dtype).eps)
            bound = magnitude_of(old, x) * sum_unit(folded.steps, eps)
            actual = new(small.to(old.weight))
            comparisons.append(compare_tensors(decision.name, kind, actual, old(x), bound))
    return comparisons


def magnitude_of(layer: nn.Module, x: Tensor) -> Tensor:
    """|w| (*) |x| + |b| for a convolution of torch's own."""
    wide: Any = copy_model(layer)
    for hooks in (wide._forward_hooks, wide._forward_pre_hooks):
        hooks.clear()
    for parameter in wide.parameters():
        parameter.data = parameter.data.abs()
    result: Tensor = wide(x.abs())
    return result


@torch.no_grad()
def with_sums(before: nn.Module, after: nn.Module, plan: Plan) -> nn.Module:
    """A converted model in float64 whose folded weights are the sums, where they were rounded from them.

    The rounding is compared by `compare_folded`; end to end it would hide all that float64 shows.
    """
    after = copy_model(after)
    for decision in plan.replaced:
        if decision.upsampling is None:
            continue
        old: Any = before.get_submodule(decision.name)
        new: Any = after.get_submodule(decision.name)
        folded = _folded(old, decision)
        taps = read_weight(old.weight)
        compiled = decision.compiled()
        sums, sizes = (
            torch_steps.rearrange_tensor(
                compiled.weight, torch.from_numpy(folded.transposed(values)), folded.groups
            )
            for values in (taps, abs(taps))
        )
        stored = new.convolution.weight
        if ((stored - sums).abs() <= torch.finfo(torch.float32).eps * sizes).all():
            stored.copy_(sums)
    return after
