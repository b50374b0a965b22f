"""Convolutions in front of pixel shuffles, found by a run of a torch model.

Outputs of convolutions are followed through operations that treat each element alike and through those that
only move elements. The latter are done once more with the elements' numbers, which tell a pixel shuffle
however it is written: `nn.PixelShuffle`, views and permutations as of einops, any order of the channels.
"""

from __future__ import annotations

import re
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deconvfix.core.shuffled import channels_of
from deconvfix.frontends.base import Shuffle
from deconvfix.frontends.shuffled import upsampling_notes
from deconvfix.frontends.torch.find import current_weight, makes_weight
from deconvfix.frontends.torch.inputs import as_inputs, names_of, run_model, running_modules

__all__ = [
    "CONVOLUTIONS",
    "ELEMENTWISE",
    "class_of",
    "executed_shuffles",
    "shuffled_layers",
    "shuffled_parameters",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_aten = torch.ops.aten
_FUNCTIONS = (
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default),
)
_SIGNATURE = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
# Each element alike, by name: functions, methods and operators have the same ones.
ELEMENTWISE = [
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


@dataclass(frozen=True)
class _Followed:
    """A tensor that comes from a convolution.

    Attributes:
        tensor: Itself, as long as the model keeps it.
        owner: The layer; or the weight, of a function that is called with a parameter; None for others.
        sizes: Spatial, of the convolution's output.
        numbers: Where each element was in that, (C, *sizes) counted through, for the first sample; None
            while none has moved.
    """

    tensor: weakref.ref[Tensor]
    owner: nn.Module | Tensor | None
    sizes: tuple[int, ...]
    numbers: Tensor | None = None


class _Follow(TorchFunctionMode):
    """Finds the convolutions whose outputs are shuffled, and all pixel shuffles of torch's own."""

    def __init__(self, stack: list[nn.Module]) -> None:
        super().__init__()
        self.stack = stack
        self.followed: dict[int, _Followed] = {}
        self.found: dict[nn.Module | Tensor, list[NDArray[np.int64]]] = {}
        self.calls: Counter[nn.Module | Tensor] = Counter()
        self.shuffles: list[Shuffle] = []
        self.resizes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self.followed.get(id(args[0])) if args else None
        if before is not None and before.tensor() is not args[0]:
            before = None  # another tensor has its identity now
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            return result
        # In place or not, torch's function or ATen's.
        name = re.sub("(?<=[a-z0-9])_$", "", getattr(func, "__name__", "").split(".")[0])
        if name == "interpolate" or name.startswith("upsample_"):
            self.resizes += result.numel() > args[0].numel()
        if func in _FUNCTIONS:
            self._begin(func, dict(zip(_SIGNATURE, args, strict=False)) | kwargs, result)
        elif before is not None and name in (*_MOVES, *ELEMENTWISE):
            self._step(before, func, name, args, kwargs, result)
        elif name in ("reshape", "view", "unflatten") and _splits_channels(args[0], result):
            # What is no convolution's output may be shuffled as well: a residual beside it.
            self._follow(args[0], None, tuple(args[0].shape[2:]))
            self._step(self.followed[id(args[0])], func, name, args, kwargs, result)
        elif name == "pixel_shuffle":
            factor = result.shape[-1] // args[0].shape[-1]
            self.shuffles.append(Shuffle((factor,) * 2, tuple(result.shape[-2:])))
        return result

    def _begin(self, func: Any, call: dict[str, Any], result: Tensor) -> None:
        weight = call["weight"]
        layer = self.stack[-1] if self.stack else None
        owner: nn.Module | Tensor | None = None
        if layer is not None and _is_plain(layer, func, weight):
            owner = layer
        elif isinstance(weight, nn.Parameter) and _moves_by_one(call):
            owner = weight
        if owner is not None:
            self.calls[owner] += 1
        self._follow(result, owner, tuple(result.shape[2 - weight.dim() :]))

    def _follow(
        self,
        tensor: Tensor,
        owner: nn.Module | Tensor | None,
        sizes: tuple[int, ...],
        numbers: Tensor | None = None,
    ) -> None:
        self.followed[id(tensor)] = _Followed(weakref.ref(tensor), owner, sizes, numbers)

    def _step(
        self, before: _Followed, func: Any, name: str, args: Any, kwargs: Any, result: Tensor
    ) -> None:
        owner, sizes, tensor = before.owner, before.sizes, args[0]
        if name in ELEMENTWISE and result.shape == tensor.shape:
            others = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, Tensor)]
            if all(other.numel() == 1 for other in others):
                self._follow(result, owner, sizes, before.numbers)
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
        self._follow(result, owner, sizes, moved)
        first = moved[0] if moved.dim() == len(sizes) + 2 else moved
        channels = channels_of(first.numpy(), sizes)
        if channels is not None:
            self.shuffles.append(Shuffle(channels.shape[1:], tuple(first.shape[1:])))
            if owner is not None:
                self.found.setdefault(owner, []).append(channels)


def _splits_channels(before: Any, after: Tensor) -> bool:
    """Whether (N, C, *L) becomes (N, *C, *L) with a factor for each axis."""
    if not isinstance(before, Tensor) or not 3 <= before.dim() <= 5:
        return False
    sizes = before.shape[2:]
    return after.dim() == 2 + 2 * len(sizes) and after.shape[-len(sizes) :] == sizes


def _is_plain(layer: nn.Module, func: Any, weight: Any) -> bool:
    """Whether a call is that of a layer of torch's own, of stride 1, with the weight that it stores."""
    if not isinstance(layer, CONVOLUTIONS) or type(layer).forward is not class_of(layer).forward:
        return False
    others = [
        hook
        for hooks in (layer._forward_hooks, layer._forward_pre_hooks)
        for hook in hooks.values()
        if not makes_weight(hook)
    ]
    if others or isinstance(layer.padding, str) or {*layer.stride, *layer.dilation} != {1}:
        return False
    return isinstance(weight, Tensor) and torch.equal(weight, current_weight(layer))


def _moves_by_one(call: dict[str, Any]) -> bool:
    """Whether a call has stride and dilation 1, and its padding in numbers."""
    stride, dilation = call.get("stride", 1), call.get("dilation", 1)
    steps = [*(_numbers(stride)), *(_numbers(dilation))]
    return {*steps} == {1} and not isinstance(call.get("padding", 0), str)


def _numbers(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def class_of(layer: nn.Module) -> type[nn.Module]:
    """Torch's own class of a convolution, below that of a parametrization."""
    return next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))


def _followed(model: nn.Module, inputs: Any) -> _Follow:
    with running_modules() as stack:
        follow = _Follow(stack)
        with follow:
            run_model(model, as_inputs(inputs))
    return follow


def executed_shuffles(model: nn.Module, inputs: Any) -> list[Shuffle]:
    """The pixel shuffles that run.

    The model is run once; pass a copy where that matters (batch statistics).
    """
    return _followed(model, inputs).shuffles


# Layers by name, and sentences about other upsampling.
_Found = tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]


def shuffled_layers(model: nn.Module, inputs: Any) -> _Found:
    """The convolutions whose outputs are shuffled, by name, with their channels as `Shuffled` has them.

    A layer whose calls are not all shuffled alike, or whose parameters others use, is none of them. The model
    is run once.

    Returns:
        The layers, and notes on other upsampling.
    """
    names = names_of(model)
    owners: dict[int, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(name)
    layers = {}
    follow = _followed(model, inputs)
    others = len(follow.shuffles)
    for layer, channels in _alike(follow):
        if not isinstance(layer, nn.Module) or not names.get(layer):
            continue
        if all(len(owners[id(p)]) == 1 for p in layer.parameters(recurse=False)):
            layers[names[layer]] = channels
            others -= follow.calls[layer]
    return layers, upsampling_notes(others, follow.resizes)


def shuffled_parameters(model: nn.Module, inputs: Any) -> _Found:
    """The same for convolutions that are calls of functions, by the name of the parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    follow = _followed(model, inputs)
    found = {weight: channels for weight, channels in _alike(follow) if id(weight) in names}
    others = len(follow.shuffles) - sum(follow.calls[weight] for weight in found)
    notes = upsampling_notes(others, follow.resizes)
    return {names[id(weight)]: channels for weight, channels in found.items()}, notes


def _alike(follow: _Follow) -> Iterator[tuple[nn.Module | Tensor, NDArray[np.int64]]]:
    """What is always shuffled, and always in the same way."""
    for owner, seen in follow.found.items():
        if len(seen) == follow.calls[owner] and all(np.array_equal(one, seen[0]) for one in seen):
            yield owner, seen[0]
