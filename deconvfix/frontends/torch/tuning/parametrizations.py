"""How the kernels of converted layers are held while they are trained: inside their form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deconvfix.forms.base import Design
from deconvfix.frontends.torch.layers import read_weight
from deconvfix.frontends.torch.step_modules import LocalMeans

__all__ = [
    "KeptAlong",
    "Subspace",
    "WithMeans",
]

Array = NDArray[np.float64]


class Subspace(nn.Module):
    """Parametrization of a kernel as Z w + offset, from a matrix, (C_in * free numbers, C_out / groups).

    Args:
        design: With the basis Z.
        offset: (C_in, C_out / groups, taps) or None; see `Design.offset`.
        groups: Of the layer.
        kernel: Where it starts, (.., C_out / groups, *taps).
    """

    basis: Tensor
    offset: Tensor | None

    def __init__(self, design: Design, offset: Array | None, groups: int, kernel: Tensor) -> None:
        super().__init__()
        self.register_buffer("basis", torch.from_numpy(design.basis).to(kernel))
        fixed = None if offset is None else torch.from_numpy(offset).to(kernel)
        self.register_buffer("offset", fixed)
        self.design = design
        self.fixed = offset
        self.groups = groups
        self.shape = kernel.shape

    def forward(self, w: Tensor) -> Tensor:
        """The kernel; `Design.kernel` says what happens to the axes."""
        # (C_in * free, C_out/g) -> (C_in, C_out/g, free)
        kernel = w.unflatten(0, (-1, self.basis.shape[1])).mT @ self.basis.mT
        if self.offset is not None:
            kernel = kernel + self.offset
        # (C_in, C_out/g, copies * taps) -> (C_in, C_out/g, copies, taps)
        kernel = kernel.unflatten(-1, (self.design.copies, -1))
        # -> (g, C_in/g, C_out/g, copies, taps) -> (g, copies, C_in/g, C_out/g, taps)
        shaped: Tensor = kernel.unflatten(0, (self.groups, -1)).movedim(3, 1).reshape(self.shape)
        return shaped

    def right_inverse(self, kernel: Tensor) -> Tensor:
        """The numbers w of a kernel of the form: Z is orthogonal to the offset."""
        # (C_in, C_out/g, free) -> (C_in * free, C_out/g), the transpose of what `forward` does.
        numbers = self.design.numbers(read_weight(kernel), self.groups)
        return torch.from_numpy(numbers.swapaxes(1, 2).reshape(-1, numbers.shape[1])).to(kernel)


class KeptAlong(nn.Module):
    """Parametrization of a kernel that keeps its part along some directions of the input channels.

    So the answers to what these directions stand for stay as they are, through all layers.

    Args:
        along: The directions, (groups, C_in / groups, n); see `fit.regression.solve`.
        start: The kernel, (C_in, C_out / groups, *taps).
        like: A tensor of the dtype and on the device.
    """

    along: Tensor
    start: Tensor

    def __init__(self, along: Array, start: Array, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("along", torch.from_numpy(along).to(like))
        self.register_buffer("start", torch.from_numpy(start).to(like))

    def forward(self, kernel: Tensor) -> Tensor:
        """The kernel, with what `start` has along the directions."""
        # (C_in, C_out/g, *taps) -> (g, C_in/g, C_out/g * taps)
        change = (kernel - self.start).flatten(1).unflatten(0, (len(self.along), -1))
        # A projection, as columns of `along` are orthonormal or zero.
        kept = self.along @ (self.along.mT @ change)
        moved: Tensor = self.start + (change - kept).flatten(0, 1).reshape(kernel.shape)
        return moved


class WithMeans(nn.Module):
    """The form 'notch' while it is trained: a transposed convolution of the channels and their means.

    On a CPU it takes half of the time that the sub-pixel form takes.
    """

    def __init__(self, means: LocalMeans, up: Any) -> None:
        super().__init__()
        self.means = means
        self.up: Any = up

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """As the layer: (N, C_in, *L) -> (N, C_out, *L_out)."""
        output: Tensor = self.up(self.means(input), output_size)
        return output
