"""What a regression needs to know of a form: which pixels its taps see, and the kernels it can have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Step

__all__ = ["Design", "Phase"]


@dataclass(frozen=True)
class Phase:
    """Output pixels that are reached by the same taps, in a regular grid.

    Output pixel `first + step * t` is the bias plus the sum, over the taps, of the kernel's tap times
    the pixel `start + t` of the extended input (all of them per axis).

    Attributes:
        first: First pixel of the grid.
        step: Distance of its pixels.
        taps: Positions in the flattened kernel.
        starts: For each tap its first pixel in the extended input.
        copies: For each tap the copy of the channels that it sees; empty where there is one.
    """

    first: tuple[int, ...]
    step: tuple[int, ...]
    taps: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    copies: tuple[int, ...] = ()


@dataclass(frozen=True)
class Design:
    """A form as a linear model of its kernel: what a regression needs to know.

    Attributes:
        steps: How the input is extended (and upsampled) first.
        phases: The grids that the output pixels fall into.
        basis: Z, (taps, free numbers): the kernels that the form can have are Z w (+ `offset`), for
            each pair of channels; the columns are orthonormal.
        copies: How many channels the extended input has for each channel of the input; in each group of
            channels first all of the first copy. The taps of the copies follow one another.
        has_offset: Whether the kernels keep what the fit to the weights has outside of the span of Z.
            Only where there is one copy.
    """

    steps: tuple[Step, ...]
    phases: tuple[Phase, ...]
    basis: NDArray[np.float64]
    copies: int = 1
    has_offset: bool = False

    def moment_sizes(self, spec: ConvTransposeSpec) -> list[int]:
        """The size of H_f of each phase (`fit.regression`), for a group of the layer's channels."""
        c_in, c_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        return [c_in * len(phase.taps) + 1 + c_out for phase in self.phases]

    def kernel(self, w: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
        """Z w: (C_in, C_out / groups, free numbers) -> (copies * C_in, C_out / groups, taps).

        With two copies of the input there are twice as many rows, first copy first in each group:

        >>> design = Design(steps=(), phases=(), basis=np.eye(6), copies=2)
        >>> design.kernel(np.zeros((8, 5, 6)), groups=2).shape
        (16, 5, 3)
        """
        c_in, c_out, _ = w.shape
        # (C_in, C_out/g, copies*taps) -> (g, C_in/g, C_out/g, copies, taps)
        kernel = (w @ self.basis.T).reshape(groups, c_in // groups, c_out, self.copies, -1)
        return np.moveaxis(kernel, 3, 1).reshape(self.copies * c_in, c_out, -1)

    def numbers(self, kernel: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
        """Z^T of a kernel with any axes of taps, the reverse of `kernel` for what the form can have."""
        rows, c_out = kernel.shape[:2]
        c_in = rows // self.copies
        # (copies*C_in, C_out/g, *taps) -> (g, copies, C_in/g, C_out/g, taps)
        taps = kernel.reshape(groups, self.copies, c_in // groups, c_out, -1)
        return np.moveaxis(taps, 1, 3).reshape(c_in, c_out, -1) @ self.basis

    def offset(self, fitted: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """The fixed part of the kernels, which no fit to data moves.

        Args:
            fitted: The fit to the weights alone (`Form.fit`), (C_in, C_out / groups, *taps).

        Returns:
            fitted - Z Z^T fitted, (C_in, C_out / groups, taps); None where all kernels are Z w.
        """
        if not self.has_offset:
            return None
        flat = fitted.reshape(*fitted.shape[:2], -1)
        return flat - flat @ self.basis @ self.basis.T
