"""Nearest upsampling and then a convolution of stride 1, as the transposed convolution that they are.

Upsampling by s is itself a transposed convolution, whose kernel is s ones. Along an axis, with a kernel of k
taps and zero padding p of the upsampled map u,

    y[o] = b + sum over m of w[m] u[o + m - p],   u[v] = x[floor(v / s)],

is the transposed convolution of stride s whose K = s + k - 1 taps are box(s) * flipped w,

    W[j] = sum of w[k - 1 - m] over all m with m <= j < m + s,

with padding k - 1 - p. Written as a sub-pixel convolution it needs ceil(K / s) multiply-accumulates for each
output pixel and axis instead of k: 2.25 times fewer for k 3, s 2 in two dimensions.

Other borders extend the small map first, by c pixels of which s*c - p are cropped again: `replicate` needs
c = ceil(p / s). `reflect` of u by less than s pixels meets copies of the border alone, so it is `replicate`;
wider reflections are none. Zero padding beyond k - 1 extends the small map by zeros.

A sum of taps is rounded once, to less than one eps of (box * |w|): the bound of the layers' parity
(`parity.bounds`), with that as its |W|, holds for the original and for what it is folded to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Conv, Pad, PadMode, Pairs, Resize, Step

__all__ = ["Folded", "Folding"]


@dataclass(frozen=True)
class Folding:
    """Nearest upsampling and a convolution, as what they are together.

    Attributes:
        border: What the small map is extended by first, or None.
        spec: The transposed convolution of the extended map.
    """

    border: Pad | None
    spec: ConvTransposeSpec


@dataclass(frozen=True)
class Folded:
    """Nearest upsampling and a convolution.

    Attributes:
        factors: Of the upsampling, per axis.
        kernel_size: Of the convolution.
        padding: Pixels by which the upsampled map is extended, (begin, end) per axis; negative ones crop.
        mode: How.
        in_channels, out_channels, groups, bias: Of the convolution.
    """

    factors: tuple[int, ...]
    kernel_size: tuple[int, ...]
    padding: Pairs
    mode: PadMode
    in_channels: int
    out_channels: int
    groups: int
    bias: bool

    @property
    def can_be_folded(self) -> bool:
        """Whether it is a transposed convolution, behind a border that the small map gets."""
        pairs = zip(self.factors, self.padding, strict=True)
        return self.mode != "reflect" or all(max(pads) < s or pads == (0, 0) for s, pads in pairs)

    @property
    def saves(self) -> bool:
        """Whether the sub-pixel convolution has fewer multiply-accumulates: not with one tap, or k 2, s 2.

        Pairs that save nothing are slower once they are folded: k 1, s 2 at 0.64 in ONNX Runtime.
        """
        pairs = list(zip(self.factors, self.kernel_size, strict=True))
        folded = math.prod(-(-(s + k - 1) // s) for s, k in pairs)
        return folded < math.prod(self.kernel_size)

    @property
    def border(self) -> Pad | None:
        """What the small map is extended by; None where nothing is needed."""
        mode: PadMode = "zeros" if self.mode == "zeros" else "replicate"
        amounts = tuple(
            (self._extended(s, k, begin), self._extended(s, k, end))
            for s, k, (begin, end) in self._axes()
        )
        return Pad(amounts, mode) if any(map(any, amounts)) else None

    @property
    def spec(self) -> ConvTransposeSpec:
        """The transposed convolution, of the small map with its border."""
        ones = (1,) * len(self.factors)
        border = self.border
        extended = ((0, 0),) * len(ones) if border is None else border.amounts
        return ConvTransposeSpec(
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            kernel_size=tuple(s + k - 1 for s, k, _ in self._axes()),
            stride=self.factors,
            padding=tuple(
                (k - 1 - begin + s * more[0], k - 1 - end + s * more[1])
                for (s, k, (begin, end)), more in zip(self._axes(), extended, strict=True)
            ),
            output_padding=(0,) * len(ones),
            dilation=ones,
            groups=self.groups,
            bias=self.bias,
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """What it is: Resize, Pad, Conv; their meaning is `core.steps.run`."""
        ones = (1,) * len(self.factors)
        conv = Conv(
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            kernel_size=self.kernel_size,
            padding=(0,) * len(ones),
            dilation=ones,
            groups=self.groups,
            bias=self.bias,
        )
        pad = (Pad(self.padding, self.mode),) if any(map(any, self.padding)) else ()
        return (Resize(self.factors, "nearest"), *pad, conv)

    def macs_per_position(self) -> int:
        """Multiply-accumulates for each pixel of the small map, of the convolution on the large one."""
        taps = math.prod(s * k for s, k, _ in self._axes())
        return self.in_channels * (self.out_channels // self.groups) * taps

    def transposed(self, weight: NDArray[Any]) -> NDArray[np.float64]:
        """The weight, not rounded yet: (C_out, C_in / groups, *k) -> `spec.weight_shape`."""
        spec, ndim = self.spec, self.spec.ndim
        flipped = np.flip(weight.astype(np.float64), tuple(range(2, 2 + ndim)))
        # (C_out, C_in / groups, *k) -> (C_in, C_out / groups, *k)
        grouped = flipped.reshape(self.groups, -1, *flipped.shape[1:]).swapaxes(1, 2)
        taps = grouped.reshape(self.in_channels, -1, *self.kernel_size)
        summed = np.zeros(spec.weight_shape)
        for start in np.ndindex(*self.factors):
            place: list[Any] = [
                slice(f, f + k) for f, k in zip(start, self.kernel_size, strict=True)
            ]
            summed[(..., *place)] += taps
        return summed

    def _axes(self) -> list[tuple[int, int, tuple[int, int]]]:
        return list(zip(self.factors, self.kernel_size, self.padding, strict=True))

    def _extended(self, s: int, k: int, p: int) -> int:
        """ceil(p / s) where the border is a copy; for zeros only what the kernel does not reach."""
        return -(-max(0, p - (k - 1) if self.mode == "zeros" else p) // s)
