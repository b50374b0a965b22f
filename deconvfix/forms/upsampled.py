"""The axes of a resize-convolution, and upsampling and convolution together; `resize` has the algebra.

The two together are the transposed convolution with the kernel h * w. *Folded*, nearest upsampling and its
convolution are written as the sub-pixel convolution of that kernel (`core.folded`), with 2.25 times fewer
multiply-accumulates for k 4, s 2 in two dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.folded import Folded, Folding
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Interpolation
from deconvfix.forms.base import Settings
from deconvfix.forms.subpixel import SUBPIXEL

__all__ = ["Axis", "axes_of", "folding_of", "macs_of", "operators_of"]


@dataclass(frozen=True)
class Axis:
    """One axis of a resize-convolution, with the letters of `resize`."""

    s: int
    taps: int  # of the new convolution: r, or k for an axis of stride 1
    dilation: int
    grown: int  # taps that h * w has before the trained kernel begins
    pad: tuple[int, int]  # border of the upsampled map; negative amounts crop


def axes_of(spec: ConvTransposeSpec, settings: Settings) -> tuple[Axis, ...]:
    """The axes of a layer as a resize-convolution."""
    return tuple(
        _axis(k, s, d, *padding, op, settings)
        for k, s, d, padding, op in zip(
            spec.kernel_size,
            spec.stride,
            spec.dilation,
            spec.padding,
            spec.output_padding,
            strict=True,
        )
    )


def _axis(k: int, s: int, d: int, p_b: int, p_e: int, op: int, settings: Settings) -> Axis:
    big_k = d * (k - 1) + 1
    if s == 1:
        return Axis(s, k, d, 0, (big_k - 1 - p_b, big_k - 1 - p_e + op))
    h, first = _upsampling_kernel(s, settings.interpolation)
    r = max(1, big_k - s + 1) + 2 * settings.grow
    grown = (len(h) + r - 1 - big_k) // 2
    # h * w begins at output offset begin - (r - 1) + first, and must begin at -p_b - grown
    begin = r - 1 - first - p_b - grown
    end = (big_k - s - p_b - p_e + op) - begin + r - 1
    return Axis(s, r, 1, grown, (begin, end))


def _upsampling_kernel(s: int, interpolation: Interpolation) -> tuple[NDArray[np.float64], int]:
    """The kernel h, and the offset of its first tap."""
    if interpolation == "nearest":
        return np.ones(s), 0
    first = -(s // 2)
    # Output offsets at which h is positive: 2 s of them for even s, 2 s - 1 for odd.
    v = np.arange(first, first + (2 * s if s % 2 == 0 else 2 * s - 1))
    return 1 - np.abs((v + 0.5) / s - 0.5), first


def operators_of(spec: ConvTransposeSpec, settings: Settings) -> list[NDArray[np.float64]]:
    """Per axis the matrix of w -> h * w, (K + growth, taps)."""
    return [_operator(axis, settings.interpolation) for axis in axes_of(spec, settings)]


def _operator(axis: Axis, interpolation: Interpolation) -> NDArray[np.float64]:
    if axis.s == 1:
        return np.eye(axis.taps)
    h, _ = _upsampling_kernel(axis.s, interpolation)
    matrix = np.zeros((len(h) + axis.taps - 1, axis.taps))
    for tap in range(axis.taps):
        matrix[tap : tap + len(h), tap] = h
    return matrix


def macs_of(spec: ConvTransposeSpec, axes: Sequence[Axis]) -> int:
    """Multiply-accumulates for each input pixel, of the convolution on the upsampled map."""
    per_pixel = spec.in_channels * (spec.out_channels // spec.groups)
    return per_pixel * math.prod(a.taps * a.s for a in axes)


def folding_of(spec: ConvTransposeSpec, settings: Settings) -> Folding | str:
    """How upsampling and convolution are folded, or why they are not: a clause."""
    if settings.interpolation != "nearest":
        return f"{settings.interpolation} upsampling"
    axes = axes_of(spec, settings)
    pair = Folded(
        factors=spec.stride,
        kernel_size=tuple(a.taps for a in axes),
        padding=tuple(a.pad if a.s > 1 else (0, 0) for a in axes),
        mode=settings.padding_mode or "reflect",
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        groups=spec.groups,
        bias=spec.bias,
    )
    if not pair.can_be_folded:
        return "a wide reflection"
    # Axes of stride 1 stay what they are.
    strided = [a.s > 1 for a in axes]
    together = replace(
        pair.spec,
        padding=_chosen(strided, pair.spec.padding, spec.padding),
        output_padding=_chosen(strided, pair.spec.output_padding, spec.output_padding),
        dilation=_chosen(strided, pair.spec.dilation, spec.dilation),
    )
    if SUBPIXEL.compile(together, settings).macs_per_position >= macs_of(spec, axes):
        return "no multiply-accumulates to save"
    return Folding(pair.border, together)


def _chosen(which: Sequence[bool], there: Sequence[Any], here: Sequence[Any]) -> tuple[Any, ...]:
    """Of two sequences the items of the first where `which` says so."""
    return tuple(a if w else b for w, a, b in zip(which, there, here, strict=True))
