"""A convolution of stride 1 in front of a pixel shuffle, as the transposed convolution that it is.

The convolution has the channels of all phases, and the shuffle puts them side by side (Shi et al. 2016,
arXiv:1609.05158, and 1609.07009 for the equivalence). Along an axis with the factor r, a kernel of k taps and
padding p, channel c and phase f,

    y[c, r*i + f] = b[c, f] + sum over m of w[c, f, m] x[i + m - p],

is the transposed convolution of stride r whose r*k taps are W[c, f + r*(k - 1 - m)] = w[c, f, m], with
padding r*(k - 1 - p). Nothing is computed: the weights only change places, so the way back is exact. Its bias
has phases, which a transposed convolution does not have: their mean is its bias, the rest a grid of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec

__all__ = ["Shuffled", "channels_of"]

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Shuffled:
    """Which channel of a convolution becomes which phase, and the geometry of both.

    Attributes:
        channels: For each channel and phase of the shuffle's output the channel of the convolution,
            (C_out, *factors).
        spec: Of the transposed convolution.
    """

    channels: NDArray[np.int64]
    spec: ConvTransposeSpec

    @classmethod
    def of(
        cls,
        channels: NDArray[np.int64],
        in_channels: int,
        kernel_size: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        groups: int,
        *,
        bias: bool,
    ) -> Shuffled | None:
        """For a convolution of stride 1 and dilation 1.

        Args:
            channels: See the class.
            in_channels: Of the convolution.
            kernel_size: Of the convolution.
            padding: Of the convolution, (begin, end) per axis.
            groups: Of the convolution.
            bias: Whether it has one.

        Returns:
            None where it is none: padding beyond the kernel, or phases of one channel in several groups.
        """
        out_channels, *factors = channels.shape
        per_group = channels.size // groups
        group = np.arange(out_channels).reshape(-1, *(1 for _ in factors)) * groups // out_channels
        if out_channels % groups or (channels // per_group != group).any():
            return None
        if any(max(pads) > k - 1 for pads, k in zip(padding, kernel_size, strict=True)):
            return None
        shape = list(zip(factors, kernel_size, padding, strict=True))
        spec = ConvTransposeSpec(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=tuple(r * k for r, k, _ in shape),
            stride=tuple(factors),
            padding=tuple((r * (k - 1 - b), r * (k - 1 - e)) for r, k, (b, e) in shape),
            output_padding=(0,) * len(factors),
            dilation=(1,) * len(factors),
            groups=groups,
            bias=bias,
        )
        return cls(channels, spec)

    @property
    def order(self) -> NDArray[np.int64]:
        """For each channel of the convolution its place among (C_out, *factors), counted through."""
        return np.argsort(self.channels.ravel())

    def transposed(self, weight: NDArray[Number]) -> NDArray[Number]:
        """The weight: (C_out * phases, C_in / groups, *k) -> `spec.weight_shape`."""
        spec, ndim = self.spec, self.spec.ndim
        # (C_out, *factors, C_in / groups, *k), taps in the other direction
        phases = np.flip(weight[self.channels], tuple(range(ndim + 2, 2 * ndim + 2)))
        # -> (C_out, C_in / groups, k, r, k, r, ...): tap r*m + f
        pairs = [axis for i in range(ndim) for axis in (ndim + 2 + i, 1 + i)]
        joined = phases.transpose(0, ndim + 1, *pairs)
        grouped = joined.reshape(
            spec.groups, spec.out_channels // spec.groups, -1, *spec.kernel_size
        )
        return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(spec.weight_shape)

    def convolution(self, weight: NDArray[Number]) -> NDArray[Number]:
        """The way back: `spec.weight_shape` -> (C_out * phases, C_in / groups, *k)."""
        spec, ndim = self.spec, self.spec.ndim
        per_group = (spec.in_channels // spec.groups, spec.out_channels // spec.groups)
        joined = weight.reshape(spec.groups, *per_group, *spec.kernel_size).swapaxes(1, 2)
        taps: list[int] = []
        for size, r in zip(spec.kernel_size, spec.stride, strict=True):
            taps += [size // r, r]
        # (C_out, C_in / groups, k, r, k, r, ...) -> (C_out, *factors, C_in / groups, *k)
        split = joined.reshape(spec.out_channels, per_group[0], *taps)
        places = [0, *(3 + 2 * i for i in range(ndim)), 1, *(2 + 2 * i for i in range(ndim))]
        phases = np.flip(split.transpose(places), tuple(range(ndim + 2, 2 * ndim + 2)))
        result = phases.reshape(-1, *phases.shape[1 + ndim :])[self.order]
        return np.ascontiguousarray(result)

    def mean_bias(self, bias: NDArray[Any]) -> NDArray[np.float64]:
        """The mean over the phases of a bias, (C_out * phases,) -> (C_out,)."""
        result: NDArray[np.float64] = bias[self.channels].mean(
            tuple(range(1, self.channels.ndim)), dtype=np.float64
        )
        return result

    def spread_bias(self, bias: NDArray[Any]) -> NDArray[Any]:
        """A bias without phases, (C_out,), for the channels of the convolution."""
        result: NDArray[Any] = np.repeat(bias, math.prod(self.spec.stride))[self.order]
        return result


def channels_of(indices: NDArray[np.int64], sizes: tuple[int, ...]) -> NDArray[np.int64] | None:
    """What a rearrangement does to the channels of a map, by where it puts each of its elements.

    Args:
        indices: Where each element of the result comes from in (C, *sizes), counted through:
            (C_out, *sizes_out).
        sizes: Spatial, before.

    Returns:
        The channels as `Shuffled` has them; None where it is no pixel shuffle, or too small a map to tell.
    """
    if indices.ndim != len(sizes) + 1 or 0 in indices.shape or 0 in sizes:
        return None
    factors = tuple(have // size for have, size in zip(indices.shape[1:], sizes, strict=True))
    if max(factors) < 2 or indices.shape[1:] != tuple(
        r * n for r, n in zip(factors, sizes, strict=True)
    ):
        return None
    # A single pixel does not tell a shuffle from a reshape, such as that of a latent into a map.
    if any(r > 1 and n < 2 for r, n in zip(factors, sizes, strict=True)):
        return None
    pairs = [n for pair in zip(sizes, factors, strict=True) for n in pair]
    # (C_out, L, r, L, r, ...) -> (C_out, *factors, *sizes)
    order = [0, *range(2, 1 + 2 * len(sizes), 2), *range(1, 1 + 2 * len(sizes), 2)]
    split = indices.reshape(-1, *pairs).transpose(order)
    pixels = math.prod(sizes)
    places = np.arange(pixels).reshape(sizes)
    channels = split.reshape(*split.shape[: 1 + len(sizes)], pixels)[..., 0] // pixels
    wanted = channels.reshape(*channels.shape, *(1 for _ in sizes)) * pixels + places
    complete = np.array_equal(np.sort(channels.ravel()), np.arange(channels.size))
    return channels if complete and np.array_equal(split, wanted) else None
