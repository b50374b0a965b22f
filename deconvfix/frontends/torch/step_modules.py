"""The steps of the waist as torch modules without weights, and the bias.

TorchScript compiles a branch of their own in each, where the general function is Python.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deconvfix.core import steps
from deconvfix.frontends.torch import steps as torch_steps

__all__ = [
    "AddBias",
    "Crop",
    "LocalMeans",
    "PixelShuffle",
    "ReflectionPad",
    "Upsample",
    "ZeroPhases",
]


class ReflectionPad(nn.Module):
    """Reflection of any width: wider than the map it goes on reflecting, as `numpy.pad` does."""

    def __init__(self, amounts: steps.Pairs) -> None:
        super().__init__()
        self.amounts = amounts
        # torch.nn.functional.pad wants the last axis first.
        self.numbers = [n for pair in reversed(amounts) for n in pair]

    def forward(self, input: Tensor) -> Tensor:
        """(.., *L) -> (.., *(begin + L + end))."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.pad(input, self.numbers, mode="reflect")
        else:
            return torch_steps.pad(input, self.amounts, "reflect")

    def extra_repr(self) -> str:
        """As torch.nn modules show themselves."""
        return str(self.amounts)


class Crop(nn.Module):
    """Removes `(begin, end)` pixels per axis."""

    def __init__(self, amounts: steps.Pairs) -> None:
        super().__init__()
        self.amounts = amounts
        # TorchScript knows lists of integers of any length, and tuples of a fixed one alone.
        self.begins = [begin for begin, _ in amounts]
        self.ends = [end for _, end in amounts]

    def forward(self, input: Tensor) -> Tensor:
        """(.., *L) -> (.., *(L - begin - end))."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return torch_steps.cropped(input, self.begins, self.ends)
        else:
            return torch_steps.crop(input, self.amounts)

    def extra_repr(self) -> str:
        """As torch.nn modules show themselves."""
        return str(self.amounts)


class PixelShuffle(nn.Module):
    """torch.nn.PixelShuffle for any number of axes and a factor for each."""

    def __init__(self, factors: tuple[int, ...]) -> None:
        super().__init__()
        self.factors = factors
        self.numbers = list(factors)

    def forward(self, input: Tensor) -> Tensor:
        """(.., C*r_1*..*r_n, *L) -> (.., C, *(L*r))."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return torch_steps.shuffled(input, self.numbers)
        else:
            return torch_steps.pixel_shuffle(input, self.factors)

    def extra_repr(self) -> str:
        """As torch.nn modules show themselves."""
        return str(self.factors)


class Upsample(nn.Upsample):
    """torch.nn.Upsample by whole factors, also for unbatched inputs."""

    def __init__(self, factors: tuple[int, ...], interpolation: steps.Interpolation) -> None:
        # For torch's own text of the module. What runs are the attributes below.
        super().__init__(scale_factor=factors, mode=interpolation)
        self.factors = factors
        self.interpolation: steps.Interpolation = interpolation
        self.scales = [float(factor) for factor in factors]
        self.torch_mode = torch_steps.mode_of(interpolation, len(factors))
        # torch refuses align_corners with nearest interpolation.
        self.corners = None if interpolation == "nearest" else False

    def forward(self, input: Tensor) -> Tensor:
        """(.., *L) -> (.., *(L*factors))."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.interpolate(input, None, self.scales, self.torch_mode, self.corners)
        else:
            return torch_steps.resize(input, self.factors, self.interpolation)


class LocalMeans(nn.Module):
    """Adds to each channel a channel of its local means; see `steps.LocalMeans`."""

    def __init__(self, reach: tuple[int, ...], groups: int) -> None:
        super().__init__()
        self.reach = reach
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        """(.., C, *L) -> (.., 2*C, *L)."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            raise RuntimeError("local means are not scripted: trace or export the model")
        return torch_steps.local_means(input, self.reach, self.groups)

    def extra_repr(self) -> str:
        """As torch.nn modules show themselves."""
        return f"reach={self.reach}, groups={self.groups}"


class ZeroPhases(nn.Module):
    """Adds channels of zeros for the phases that no tap reaches; see `steps.ZeroPhases`."""

    def __init__(self, step: steps.ZeroPhases) -> None:
        super().__init__()
        self.step = step
        self.blocks, self.gaps = list(step.blocks), list(step.gaps)
        self.strides = list(step.strides)

    def forward(self, input: Tensor) -> Tensor:
        """(.., C*r_1*..*r_n, *L) -> (.., C*s_1*..*s_n, *L)."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return torch_steps.with_zero_phases(input, self.blocks, self.gaps, self.strides)
        else:
            return torch_steps.zero_phases(input, self.blocks, self.gaps, self.strides)

    def extra_repr(self) -> str:
        """As torch.nn modules show themselves."""
        return str(self.step)


class AddBias(nn.Module):
    """Adds a bias of shape (C,) to every pixel."""

    def __init__(self, bias: nn.Parameter, ndim: int) -> None:
        super().__init__()
        self.bias = bias
        self.ndim = ndim

    def forward(self, input: Tensor) -> Tensor:
        """(.., C, *L) -> the same."""
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return input + self.bias.to(input.dtype).reshape([-1] + [1] * self.ndim)
        else:
            return torch_steps.add_bias(input, self.bias, self.ndim)
