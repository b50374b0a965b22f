"""Convolutions in front of pixel shuffles, written as the transposed convolutions that they are, and back.

The transposed convolution stands where the convolution stood, under its name, and a hook puts its phases back
into channels: whatever the model's code does with them stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from deconvfix.core.shuffled import Shuffled
from deconvfix.forms.base import Need
from deconvfix.frontends.shuffled import SHUFFLED_LAYER, UNSEEN
from deconvfix.frontends.torch.find import current_weight
from deconvfix.frontends.torch.inputs import copy_model
from deconvfix.frontends.torch.layers import ConvTransposeModule, read_weight
from deconvfix.frontends.torch.shuffles import class_of, shuffled_layers
from deconvfix.frontends.torch.surgery import exchange, put_weight
from deconvfix.plan import Match

__all__ = [
    "as_in",
    "as_shuffled",
    "shows_shuffles",
    "shuffled_by",
    "stored",
    "unshuffled",
    "with_shuffled",
    "with_transposed",
    "without_phases",
]

_TRANSPOSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.ConvTranspose1d,
    nn.Conv2d: nn.ConvTranspose2d,
    nn.Conv3d: nn.ConvTranspose3d,
}


class _Unshuffle:
    """A hook that puts the phases of a transposed convolution back into the channels of the convolution.

    Attributes:
        layer: The convolution that it stands for.
        shuffled: The geometry of both.
        rest: The phases of its bias, (C,); None without.
        corrected: Whether the transposed convolution has another weight than it.
    """

    def __init__(self, layer: nn.Module, shuffled: Shuffled, rest: Tensor | None) -> None:
        self.layer = layer
        self.shuffled = shuffled
        self.rest = rest
        self.corrected = False

    def correct(self) -> None:
        """Notes that the weight is another one, without a grid: the bias loses its phases too."""
        self.corrected = True
        self.rest = None

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        order = torch.from_numpy(self.shuffled.order).to(output.device)
        back = unshuffled(output, self.shuffled.spec.stride, order)
        if self.rest is None:
            return back
        return back + self.rest.to(back).reshape(-1, *(1 for _ in self.shuffled.spec.stride))


def unshuffled(output: Tensor, strides: Sequence[int], order: Tensor) -> Tensor:
    """Phases as channels of the convolution again: (.., C, *(L * r)) -> (.., C * phases, *L).

    Args:
        output: Of the transposed convolution.
        strides: Its strides.
        order: See `Shuffled.order`.
    """
    lead = output.shape[: output.dim() - len(strides)]
    sizes = output.shape[output.dim() - len(strides) :]
    pairs = [n for size, r in zip(sizes, strides, strict=True) for n in (size // r, r)]
    first = len(lead)
    axes = [first + 1 + 2 * i for i in range(len(strides))]
    axes += [first + 2 * i for i in range(len(strides))]
    # (.., C, L, r, L, r, ..) -> (.., C * phases, *L), in the order of the convolution's channels
    split = output.reshape(*lead, *pairs).permute(*range(first), *axes)
    phases = math.prod(strides)
    channels = split.reshape(*lead[:-1], lead[-1] * phases, *(n for n in pairs[::2]))
    return channels.index_select(first - 1, order)


class _PadFirst:
    """A hook that pads the input as a convolution does that extends its input otherwise than by zeros."""

    def __init__(self, padding: Sequence[int], mode: str) -> None:
        self.padding = list(padding)
        self.mode = mode

    def __call__(self, module: nn.Module, args: Any) -> Any:
        return (functional.pad(args[0], self.padding, mode=self.mode), *args[1:])


def shuffled_by(module: nn.Module) -> _Unshuffle | None:
    """What a transposed convolution stands for, where it stands for a convolution and a shuffle."""
    return next((h for h in module._forward_hooks.values() if isinstance(h, _Unshuffle)), None)


def shows_shuffles(model: nn.Module) -> bool:
    """Whether it has transposed convolutions for convolutions in front of pixel shuffles."""
    return any(shuffled_by(module) is not None for module in model.modules())


def as_shuffled(match: Match, module: nn.Module) -> Match:
    """How a layer is described that stands for a convolution and a shuffle; others as they are."""
    hook = shuffled_by(module)
    if hook is None:
        return match
    op = f"{type(hook.layer).__name__} + PixelShuffle"
    return replace(match, op=op, lacks={Need.OWN_PLACE: SHUFFLED_LAYER} | dict(match.lacks))


def without_phases(module: nn.Module) -> None:
    """Takes the phases of its bias from a layer whose weight has lost its grid."""
    hook = shuffled_by(module)
    if hook is not None:
        hook.correct()


def with_transposed(model: nn.Module, inputs: Any | None) -> tuple[nn.Module, tuple[str, ...]]:
    """The model with its convolutions in front of pixel shuffles written as transposed convolutions.

    Args:
        model: Changed, but not in what it computes.
        inputs: To find them by a run of a copy; None: none are found.

    Returns:
        The model, and notes on other upsampling.
    """
    if inputs is None:
        shuffles = any(isinstance(module, nn.PixelShuffle) for module in model.modules())
        return model, (UNSEEN,) if shuffles else ()
    layers, notes = shuffled_layers(copy_model(model).eval(), inputs)
    return _exposed(model, layers), notes


def as_in(model: nn.Module, exposed: nn.Module) -> nn.Module:
    """Another model of the same architecture, with the same layers written as transposed convolutions."""
    known = {name: shuffled_by(module) for name, module in exposed.named_modules()}
    return _exposed(
        model, {name: hook.shuffled.channels for name, hook in known.items() if hook is not None}
    )


def _exposed(model: nn.Module, channels: Mapping[str, NDArray[np.int64]]) -> nn.Module:
    for name, order in channels.items():
        layer: Any = model.get_submodule(name)
        zeros = layer.padding_mode == "zeros"
        padding = [(p if zeros else 0,) * 2 for p in layer.padding]
        shuffled = Shuffled.of(
            order,
            layer.in_channels,
            tuple(layer.kernel_size),
            tuple(padding),
            layer.groups,
            bias=layer.bias is not None,
        )
        if shuffled is None:
            continue
        model = exchange(model, layer, _transposed(layer, shuffled))
    return model


@torch.no_grad()
def _transposed(layer: Any, shuffled: Shuffled) -> nn.Module:
    spec = shuffled.spec
    kind: Any = _TRANSPOSED[class_of(layer)]
    weight = current_weight(layer)
    new = kind(
        spec.in_channels,
        spec.out_channels,
        spec.kernel_size,
        stride=spec.stride,
        padding=tuple(begin for begin, _ in spec.padding),
        groups=spec.groups,
        bias=spec.bias,
        device=weight.device,
        dtype=weight.dtype,
    )
    new.weight.copy_(torch.from_numpy(shuffled.transposed(read_weight(weight))))
    rest = None
    if layer.bias is not None:
        bias = read_weight(layer.bias)
        new.bias.copy_(torch.from_numpy(shuffled.mean_bias(bias)))
        # Of the mean as it is stored, so that both together are the bias to the bit.
        left = bias - shuffled.spread_bias(read_weight(new.bias))
        rest = torch.from_numpy(left) if left.any() else None
    if layer.padding_mode != "zeros":
        new.register_forward_pre_hook(
            _PadFirst(layer._reversed_padding_repeated_twice, layer.padding_mode)
        )
    new.register_forward_hook(_Unshuffle(layer, shuffled, rest))
    result: nn.Module = new.train(layer.training)
    return result


def with_shuffled(model: nn.Module) -> nn.Module:
    """The way back: the convolutions, with the weights that the transposed convolutions have now."""
    for name, module in list(model.named_modules()):
        hook = shuffled_by(module)
        if hook is None:
            continue
        assert isinstance(module, ConvTransposeModule)
        if hook.corrected:
            shuffled = hook.shuffled
            bias = None
            if module.bias is not None:
                bias = shuffled.spread_bias(read_weight(module.bias))
            put_weight(hook.layer, shuffled.convolution(read_weight(module.weight)), bias, name)
        model = exchange(model, module, hook.layer)
    return model


def stored(model: nn.Module, exposed: nn.Module) -> nn.Module:
    """A copy whose layers of these names store the weights that they compute (weight norms and the like)."""
    model = copy_model(model)
    for name, module in exposed.named_modules():
        if shuffled_by(module) is None:
            continue
        layer: Any = model.get_submodule(name)
        weight = current_weight(layer)
        plain: Any = class_of(layer)(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            padding=layer.padding,
            groups=layer.groups,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
            device=weight.device,
            dtype=weight.dtype,
        )
        plain.weight.data = weight.detach()
        if layer.bias is not None:
            plain.bias.data = layer.bias.detach()
        model = exchange(model, layer, plain)
    return model
