"""The description of one zoo model and the wrapper that makes its builder reproducible."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Builder = Callable[[], Built]


@dataclass(frozen=True)
class ZooModel:
    """One model of the zoo.

    Attributes:
        name: Unique identifier, usable as a test id.
        package: Importable name of the package the architecture comes from, ``"torch"`` for
            the hand-written ones.
        build: Builds the model in eval mode and its example positional and keyword inputs.
        exports: Whether ``torch.onnx.export(..., dynamo=True)`` accepts the unmodified model.
        note: Why the model does not export, or what is particular about it.
    """

    name: str
    package: str
    build: Builder
    exports: bool = True
    note: str = ""


def seeded(builder: Builder) -> Builder:
    """Make a builder reproducible and its model ready for a comparison of outputs.

    Args:
        builder: Returns a model with its positional and keyword example inputs.

    Returns:
        The builder, run under a fixed seed without disturbing the caller's random state, and
        returning the model in eval mode.
    """

    @functools.wraps(builder)
    def build() -> Built:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, args, kwargs = builder()
            _enliven(model)
        return model.eval(), args, kwargs

    return build


def _enliven(model: nn.Module) -> None:
    """Scale up weights that are too small to matter, and fill zero biases.

    Trained models do not look like the initial weights many packages choose: standard
    deviations made for wide layers, or plain zeros, let the signal of a small model die out
    long before its output, which would then hide any mistake.
    """
    for module in model.modules():
        if isinstance(module, _ConvNd):
            fan_in = module.in_channels // module.groups * math.prod(module.kernel_size)
            if module.transposed:
                fan_in = max(1, fan_in // math.prod(module.stride))
        elif isinstance(module, nn.Linear):
            fan_in = module.in_features
        else:
            continue
        _scale_weight(module, fan_in**-0.5)
        if module.bias is not None and not module.bias.any():
            nn.init.uniform_(module.bias, -0.1, 0.1)


def _scale_weight(module: nn.Module, wanted: float) -> None:
    if hasattr(module, "weight_g"):
        stored = module.weight_g
    elif hasattr(module, "weight_orig"):
        return
    elif parametrize.is_parametrized(module, "weight"):
        originals = module.parametrizations.weight
        if not hasattr(originals, "original0"):
            return
        stored = originals.original0
    else:
        stored = module.weight
    with torch.no_grad():
        current = module.weight.square().mean().sqrt().item()
        if current == 0:
            stored.normal_(std=wanted)
        elif current < wanted / 2:
            stored.mul_(wanted / current)
