"""Convolutions in front of pixel shuffles, found by a run of a torch model.

Outputs of convolutions are followed through operations that treat each element alike and through those that
only move elements. The latter are done once more with the elements' numbers, which tell a pixel shuffle
however it is written: `nn.PixelShuffle`, views and permutations as of einops, any order of the channels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deconvfix.core.shuffled import channels_of
from deconvfix.frontends.base import Shuffle
from deconvfix.frontends.torch.find import current_weight, makes_weight
from deconvfix.frontends.torch.inputs import as_inputs, names_of, run_model, running_modules

__all__ = ["CONVOLUTIONS", "class_of", "executed_shuffles", "shuffled_layers"]

_CONVOLUTIONS: dict[Any, type[nn.Module]] = {
    torch.conv1d: nn.Conv1d,
    torch.conv2d: nn.Conv2d,
    torch.conv3d: nn.Conv3d,
}
CONVOLUTIONS = tuple(_CONVOLUTIONS.values())
# Each element alike, by name: functions, methods and operators have the same ones.
_ELEMENTWISE = [
    "relu",
    "leaky_relu",
    "silu",
    "gelu",
    "elu",
    "tanh",
    "sigmoid",
    "hardtanh",
    "relu6",
    "clamp",
    "dropout",
    "contiguous",
    "clone",
    "mul",
    "add",
    "sub",
    "div",
    "to",
    "float",
    "half",
    "type_as",
    "__mul__",
    "__add__",
    "__truediv__",
    "__sub__",
]
# Elements at other places.
_MOVES = [
    "reshape",
    "view",
    "permute",
    "transpose",
    "swapaxes",
    "swapdims",
    "movedim",
    "moveaxis",
    "flatten",
    "unflatten",
    "pixel_shuffle",
    "squeeze",
    "unsqueeze",
    "contiguous",
    "clone",
]


@dataclass
class _Followed:
    """A tensor that comes from a convolution.

    Attributes:
        tensor: Itself, so that its identity is not given to another.
        layer: The convolution.
        sizes: Spatial, of its output.
        numbers: Where each element was in the convolution's output, (C, *sizes) counted through, for
            the first sample; None while none has moved.
    """

    tensor: Tensor
    layer: nn.Module
    sizes: tuple[int, ...]
    numbers: Tensor | None = None


class _Follow(TorchFunctionMode):
    """Finds the convolutions whose outputs are shuffled, and all pixel shuffles of torch's own."""

    def __init__(self, stack: list[nn.Module]) -> None:
        super().__init__()
        self.stack = stack
        self.followed: dict[int, _Followed] = {}
        self.found: dict[nn.Module, list[NDArray[np.int64]]] = {}
        self.calls: dict[nn.Module, int] = {}
        self.shuffles: list[Shuffle] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self.followed.get(id(args[0])) if args else None
        result = func(*args, **kwargs)
        # In place or not.
        name = re.sub("(?<=[a-z0-9])_$", "", getattr(func, "__name__", ""))
        if not isinstance(result, Tensor):
            return result
        layer = self.stack[-1] if self.stack else None
        if func in _CONVOLUTIONS:
            if layer is not None and _is_plain(layer, func, args, kwargs):
                sizes = tuple(result.shape[2 - args[1].dim() :])
                self.calls[layer] = self.calls.get(layer, 0) + 1
                self._follow(_Followed(result, layer, sizes))
        elif before is not None and name in (*_MOVES, *_ELEMENTWISE):
            self._step(before, func, name, args, kwargs, result)
        elif name == "pixel_shuffle":  # of something else, which makes a grid as well
            factor = result.shape[-1] // args[0].shape[-1]
            self.shuffles.append(Shuffle((factor,) * 2, tuple(result.shape[-2:])))
        return result

    def _follow(self, followed: _Followed) -> None:
        self.followed[id(followed.tensor)] = followed

    def _step(
        self, before: _Followed, func: Any, name: str, args: Any, kwargs: Any, result: Tensor
    ) -> None:
        layer, sizes, tensor = before.layer, before.sizes, before.tensor
        if name in _ELEMENTWISE and result.shape == tensor.shape:
            others = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, Tensor)]
            if all(other.numel() == 1 for other in others):
                self._follow(_Followed(result, layer, sizes, before.numbers))
            return
        if name not in _MOVES:
            return
        numbers = before.numbers
        if numbers is None:
            # Those of the first sample, in all.
            batched = tensor.dim() == len(sizes) + 2
            elements = tensor[0].numel() if batched else tensor.numel()
            numbers = torch.arange(tensor.numel()).reshape(tensor.shape) % elements
        moved = func(numbers, *args[1:], **kwargs)
        self._follow(_Followed(result, layer, sizes, moved))
        first = moved[0] if moved.dim() == len(sizes) + 2 else moved
        channels = channels_of(first.numpy(), sizes)
        if channels is not None:
            self.found.setdefault(layer, []).append(channels)
            self.shuffles.append(Shuffle(channels.shape[1:], tuple(first.shape[1:])))


def _is_plain(layer: nn.Module, func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call is that of a layer of torch's own, of stride 1, with the weight that it stores."""
    kind = _CONVOLUTIONS[func]
    if not isinstance(layer, kind) or type(layer).forward is not kind.forward:
        return False
    others = [
        hook
        for hooks in (layer._forward_hooks, layer._forward_pre_hooks)
        for hook in hooks.values()
        if not makes_weight(hook)
    ]
    conv: Any = layer
    if others or isinstance(conv.padding, str) or {*conv.stride, *conv.dilation} != {1}:
        return False
    weight = args[1] if len(args) > 1 else kwargs.get("weight")
    return isinstance(weight, Tensor) and torch.equal(weight, current_weight(conv))


def class_of(layer: nn.Module) -> type[nn.Module]:
    """Torch's own class of a convolution, below that of a parametrization."""
    return next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))


def _followed(model: nn.Module, inputs: Any) -> _Follow:
    with running_modules() as stack:
        follow = _Follow(stack)
        with follow:
            run_model(model, as_inputs(inputs))
    follow.followed.clear()
    return follow


def executed_shuffles(model: nn.Module, inputs: Any) -> list[Shuffle]:
    """The pixel shuffles that run.

    The model is run once; pass a copy where that matters (batch statistics).
    """
    return _followed(model, inputs).shuffles


def shuffled_layers(model: nn.Module, inputs: Any) -> dict[str, NDArray[np.int64]]:
    """The convolutions whose outputs are shuffled, by name, with their channels as `Shuffled` has them.

    A layer whose calls are not all shuffled alike, or whose parameters others use, is none of them. The model
    is run once.
    """
    follow = _followed(model, inputs)
    names = names_of(model)
    owners: dict[int, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(name)
    layers = {}
    for layer, seen in follow.found.items():
        name = names.get(layer, "")
        alike = all(np.array_equal(one, seen[0]) for one in seen)
        shared = any(len(owners[id(p)]) > 1 for p in layer.parameters(recurse=False))
        if alike and name and len(seen) == follow.calls[layer] and not shared:
            layers[name] = seen[0]
    return layers
