"""What people do by hand to transposed convolutions whose grid they see: the baselines of fidelity.py.

Each function takes one layer and gives a module of ordinary parts in its place. They are written without
deconvfix, so that the comparison does not lean on what is compared.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["bilinear_then_kernel", "replaced", "shared_kernel"]

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def replaced(
    model: nn.Module, names: Iterable[str], build: Callable[[Any], nn.Module]
) -> nn.Module:
    """A copy of the model with `build(layer)` in place of each layer that is named."""
    new = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            new.set_submodule(name, build(new.get_submodule(name)))
    return new.eval()


def shared_kernel(layer: Any) -> nn.Module:
    """A sub-pixel convolution whose phases all have one kernel, the mean of the trained phases.

    This is how ICNR initialises a sub-pixel convolution (Aitken et al. 2017, arXiv:1707.02937), with the
    sub-kernel taken from a trained layer. It is the same as a convolution and nearest upsampling.
    """
    taps, (low, high) = _taps_by_offset(layer)
    out_channels = layer.out_channels
    mean = torch.stack(taps).mean(0)
    phases = len(taps)
    # Written with all phases, as a pixel shuffle wants them: (C_out * phases, C_in/g, *window)
    weight = mean.repeat_interleave(phases, 0)
    conv = _conv(layer, weight, out_channels * phases)
    if layer.bias is not None:
        conv.bias = nn.Parameter(layer.bias.detach().repeat_interleave(phases))
    return nn.Sequential(_Pad(list(zip(low, high, strict=True))), conv, _Shuffle(layer.stride))


def bilinear_then_kernel(layer: Any) -> nn.Module:
    """Bilinear upsampling, then the trained kernel as a convolution of stride 1.

    Divided by the number of phases: a constant meets all taps instead of those of one phase. Padding as
    "same" puts it within half a pixel of where the layer was.
    """
    weight = _correlation(layer) / math.prod(layer.stride)
    conv = _conv(layer, weight, layer.out_channels)
    if layer.bias is not None:
        conv.bias = nn.Parameter(layer.bias.detach().clone())
    _check_whole(layer)
    ndim = len(layer.stride)
    up = nn.Upsample(scale_factor=layer.stride, mode=_MODES[ndim], align_corners=False)
    # As padding="same" does it: the odd pixel at the end.
    border = [((k - 1) // 2, k // 2) for k in layer.kernel_size]
    return nn.Sequential(up, _Pad(border), conv)


class _Pad(nn.Module):
    """Zeros on both sides of each axis."""

    def __init__(self, border: list[tuple[int, int]]) -> None:
        super().__init__()
        self.border = [side for pair in reversed(border) for side in pair]

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.border)


class _Shuffle(nn.Module):
    """Pixel shuffle in any number of dimensions: (N, C * s_1 * .., *L) -> (N, C, *(s * L))."""

    def __init__(self, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        n = len(self.stride)
        sizes = [length * s for length, s in zip(x.shape[2:], self.stride, strict=True)]
        x = x.unflatten(1, (-1, *self.stride))  # (N, C, *s, *L)
        order = [axis for a in range(n) for axis in (2 + n + a, 2 + a)]
        return x.permute(0, 1, *order).reshape(*x.shape[:2], *sizes)


def _conv(layer: Any, weight: Tensor, out_channels: int) -> Any:
    kind = _CONVS[len(layer.stride)]
    size = tuple(weight.shape[2:])
    conv = kind(layer.in_channels, out_channels, size, groups=layer.groups, bias=False)
    conv.weight = nn.Parameter(weight.clone())
    return conv


def _by_group(layer: Any) -> Tensor:
    """The weight as (C_out, C_in / groups, *k), the taps in their order."""
    weight = layer.weight.detach().unflatten(0, (layer.groups, -1))
    return weight.transpose(1, 2).flatten(0, 1)


def _correlation(layer: Any) -> Tensor:
    """The kernel that a convolution of stride 1 needs: the taps reversed."""
    weight = _by_group(layer)
    return weight.flip(tuple(range(2, weight.dim())))


def _check_whole(layer: Any) -> None:
    """The output must be `stride` times the input, as in all of the fixtures."""
    for k, s, p, op in zip(
        layer.kernel_size, layer.stride, layer.padding, layer.output_padding, strict=True
    ):
        assert k - s - 2 * p + op == 0, "only layers that multiply the size"
    assert set(layer.dilation) == {1}


def _taps_by_offset(layer: Any) -> tuple[list[Tensor], tuple[list[int], list[int]]]:
    """The sub-kernel of each phase, (C_out, C_in / groups, *window), and the window's reach.

    Output s*t + f gets tap j of input t + (f + p - j) / s.
    """
    _check_whole(layer)
    tables: list[list[dict[int, int]]] = []
    low, high = [], []
    for k, s, p in zip(layer.kernel_size, layer.stride, layer.padding, strict=True):
        axis = [{(f + p - j) // s: j for j in range(k) if (f + p - j) % s == 0} for f in range(s)]
        offsets = [value for table in axis for value in table]
        low.append(max(0, -min(offsets)))
        high.append(max(0, max(offsets)))
        tables.append(axis)
    weight = _by_group(layer)
    found = []
    for phase in itertools.product(*(range(len(axis)) for axis in tables)):
        kernel = weight
        for a, f in enumerate(phase):
            window = range(-low[a], high[a] + 1)
            columns = [
                kernel.select(2 + a, tables[a][f][offset])
                if offset in tables[a][f]
                else torch.zeros_like(kernel.select(2 + a, 0))
                for offset in window
            ]
            kernel = torch.stack(columns, 2 + a)
        found.append(kernel)
    return found, (low, high)
