"""Transposed convolution -> convolution of stride 1, pixel shuffle, crop. The same function.

Per axis, with the letters of `ConvTransposeSpec`. Output positions o + p_b = s*t + f are told apart
by their phase f. Let g = gcd(s, d), s' = s/g, d' = d/g. A tap j reaches the positions s*i + d*j only,
so

    phases reached    f = g*f', with f' < s'; the others hold the bias alone
    s' = 1            one phase, and its taps are those of a convolution with dilation d'
    otherwise         the kernel is spread to its K' = d'*(k - 1) + 1 dense taps and cut into
                      r = min(s', K') phases of q = ceil(K' / r) taps each:

    conv weight[(co, f'), ci, m] = W[ci, co, r*(q - 1 - m) + f']      (zero past the last tap)

The convolution reaches back over c = q - 1 pixels (d'*(q - 1) when s' = 1). With c pixels of zero
padding on both sides it has L + c outputs, and the shuffle gives the uncropped result, from which
p_b pixels go at the begin and s*(c + 1) - K + p_e - op at the end. Whole multiples of s are never
computed: they are taken from the padding instead, which may so become a crop of the input (padding
past the kernel) or grow beyond c (output_padding past the kernel: zeros in, bias out).
Neither depends on L, so dynamic shapes work, and neither changes the weight.

Exact for every geometry. Refused only when the dense taps of a huge dilation would explode the weight.

Source: Shi et al. 2016, arXiv:1609.05158 and 1609.07009 (the case k divisible by s, d = 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.rearrange import Flip, Merge, Permute, Repeat, Split, Verb, ZeroExtend
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import AddBias, Conv, Crop, PixelShuffle, Step, ZeroPhases
from deconvfix.errors import Refusal
from deconvfix.forms.base import (
    Candidate,
    Compiled,
    Form,
    Merit,
    Need,
    ReadWeight,
    Recommendation,
    Settings,
    Settled,
    too_large,
    zero_border,
)
from deconvfix.forms.windowed import compile_phases, compile_union, elements_of_union

__all__ = ["SUBPIXEL"]


@dataclass(frozen=True)
class _Axis:
    """One axis of the derivation above, with its letters."""

    k: int
    s: int
    r: int  # phases that the convolution computes
    q: int  # taps of each phase
    gap: int  # g: distance of the computed phases
    spread: int  # distance of the taps in the dense kernel (d'), 1 where nothing is spread
    dilation: int  # of the new convolution
    pad: tuple[int, int]
    crop: tuple[int, int]


def _axis(k: int, s: int, d: int, p_b: int, p_e: int, op: int) -> _Axis:
    big_k = d * (k - 1) + 1
    # Only multiples of g are reached, so s and d are looked at in units of g.
    g = math.gcd(s, d) if k > 1 else 1  # a single tap has no dilation
    s_, d_ = s // g, (d // g if k > 1 else 1)
    if s_ == 1:
        r, q, spread, dilation = 1, k, 1, d_
    else:
        dense = d_ * (k - 1) + 1
        r = min(s_, dense)
        q, spread, dilation = math.ceil(dense / r), d_, 1
    c = dilation * (q - 1)
    # What is left behind the layer's last pixel, negative where output_padding goes past it.
    end = s * (c + 1) - big_k + p_e - op
    return _Axis(
        k=k,
        s=s,
        r=r,
        q=q,
        gap=g,
        spread=spread,
        dilation=dilation,
        # Whole strides are taken off the padding, and the crop is less than a stride.
        pad=(c - p_b // s, c - end // s),
        crop=(p_b % s, end % s),
    )


def _axes(spec: ConvTransposeSpec) -> tuple[_Axis, ...]:
    return tuple(
        _axis(k, s, d, *padding, op)
        for k, s, d, padding, op in zip(
            spec.kernel_size,
            spec.stride,
            spec.dilation,
            spec.padding,
            spec.output_padding,
            strict=True,
        )
    )


@dataclass(frozen=True)
class Subpixel(Form):
    """The exact form; see the module's text for its algebra."""

    name: ClassVar[str] = "subpixel"
    summary: ClassVar[str] = "the same function, as a convolution and a pixel shuffle"
    is_exact: ClassVar[bool] = True
    shuffles: ClassVar[bool] = True
    folds: ClassVar[bool] = True

    def needs(self, settings: Settings) -> tuple[Need, ...]:
        """No weight: whatever it is, and wherever it comes from, it is only rearranged."""
        return (Need.OWN_PLACE,)

    def settle(
        self, spec: ConvTransposeSpec, settings: Settings, read_weight: ReadWeight | None
    ) -> Settled | Refusal:
        """Always exact: the weight is not looked at."""
        if settings.init not in (None, "exact"):
            return Refusal(
                f"init is {settings.init!r} and the form is 'subpixel'",
                "the sub-pixel form uses the trained weight unchanged",
                "Omit init, or use the form 'resize'",
            )
        old = math.prod(spec.weight_shape)
        taps = math.prod(spec.kernel_size)
        written = {"union": elements_of_union(spec), "phases": taps}
        new = written.get(settings.convolution or "", _taps(_axes(spec)))
        refusal = too_large(old, old // taps * new)
        if refusal:
            return refusal
        return Settled(replace(settings, init="exact"), True, None, "the same function")

    def compile(self, spec: ConvTransposeSpec, settings: Settings) -> Compiled:
        """Steps: pad or crop where needed, Conv, ZeroPhases where needed, PixelShuffle, Crop.

        Output channels are the first axis of the new weight, one for each phase of each old one. A kernel
        that the stride does not divide is filled up with zeros, 3 x 3 taps to 4 phases of 2 x 2 here:

        >>> from deconvfix.core.rearrange import rearrange
        >>> spec = ConvTransposeSpec.create(8, 6, (3, 3), stride=2, padding=1, output_padding=1)
        >>> compiled = SUBPIXEL.compile(spec, Settings())
        >>> spec.weight_shape, rearrange(compiled.weight, np.ones(spec.weight_shape)).shape
        ((8, 6, 3, 3), (24, 8, 2, 2))
        >>> rearrange(compiled.bias, np.ones(6)).shape
        (24,)
        >>> compiled.steps[1:]
        (PixelShuffle(factors=(2, 2)), Crop(amounts=((1, 1), (1, 1))))
        """
        if settings.convolution == "union":
            return compile_union(spec)
        if settings.convolution == "phases":
            return compile_phases(spec)
        axes = _axes(spec)
        phases = tuple(a.r for a in axes)
        # Phases that no tap reaches (stride > kernel) are not convolved: zeros are put in their places.
        partial = any(a.r != a.s for a in axes)
        conv = Conv(
            in_channels=spec.in_channels,
            out_channels=spec.out_channels * math.prod(phases),
            kernel_size=tuple(a.q for a in axes),
            padding=(0,) * spec.ndim,
            dilation=tuple(a.dilation for a in axes),
            groups=spec.groups,
            bias=spec.bias and not partial,
        )
        steps: list[Step] = [*zero_border(conv, tuple(a.pad for a in axes))]
        if partial:
            steps.append(ZeroPhases(phases, tuple(a.gap for a in axes), spec.stride))
        if math.prod(spec.stride) > 1:
            steps.append(PixelShuffle(spec.stride))
        if any(any(a.crop) for a in axes):
            steps.append(Crop(tuple(a.crop for a in axes)))
        # The bias belongs to the phases without taps as well, so it can only come after they are there.
        if partial and spec.bias:
            steps.append(AddBias())
        return Compiled(
            steps=tuple(steps),
            weight=_weight_verbs(axes),
            bias=() if partial else (Repeat(math.prod(phases)),),
            macs_per_position=spec.macs_per_position() // math.prod(spec.kernel_size) * _taps(axes),
        )

    def fit(
        self, spec: ConvTransposeSpec, settings: Settings, weight: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The weight itself."""
        return weight

    def spread(
        self, spec: ConvTransposeSpec, settings: Settings, kernel: NDArray[np.float64]
    ) -> tuple[ConvTransposeSpec, NDArray[np.float64]]:
        """The layer itself."""
        return spec, kernel

    def recommend(self, candidate: Candidate) -> tuple[Merit, Recommendation] | None:
        """Always possible; the choice where there is no grid, and the last resort where there is one."""
        settled = self.settle(candidate.spec, Settings(), None)
        if isinstance(settled, Refusal):
            return None
        cost = self.relative_macs(candidate.spec, settled.settings)
        at_cost = f"at x{cost:.2f} multiply-accumulates"
        merit = Merit.KEEPS_THE_GRID
        lacking = (candidate.lacks.get(need) for need in (Need.STORED_WEIGHT, Need.OWN_MODULE))
        only = next(filter(None, lacking), None)
        if candidate.has_grid is None:
            reason = (
                "Its weight is computed while the model runs, so only the exact form is possible, "
                f"{at_cost}; it keeps any grid."
            )
        elif not candidate.has_grid:
            merit = Merit.SAME_FUNCTION
            reason = f"Its phase sums are equal, so there is no grid to remove: the exact form, {at_cost}."
        elif only is not None:
            reason = (
                f"Its phase sums differ, which makes a grid, but {only.found}: the exact form, "
                f"{at_cost}, keeps the grid."
            )
        else:
            reason = (
                "Its phase sums differ, which makes a grid, and no other form is possible: the exact "
                f"form, {at_cost}, keeps the grid."
            )
        return merit, Recommendation(self.name, reason, cost)


SUBPIXEL = Subpixel()


def _taps(axes: tuple[_Axis, ...]) -> int:
    return math.prod(a.q * a.r for a in axes)


def _weight_verbs(axes: tuple[_Axis, ...]) -> tuple[Verb, ...]:
    n = len(axes)
    unchanged = (0, 0, 0)  # group, C_in/g and C_out/g axes
    verbs: list[Verb] = []
    if any(a.spread > 1 for a in axes):
        # (k) -> (k, 1) -> (k, d') -> (k*d'): each tap is followed by d' - 1 zeros
        verbs += [Split(3 + i, (-1, 1)) for i in reversed(range(n))]
        verbs.append(ZeroExtend((*unchanged, *(more for a in axes for more in (0, a.spread - 1)))))
        verbs += [Merge(3 + i, 4 + i) for i in range(n)]
    # (k*d') -> (q*r) -> (q, r): tap r*m + f becomes tap m of phase f
    verbs.append(ZeroExtend((*unchanged, *(a.q * a.r - a.k * a.spread for a in axes))))
    verbs += [Split(3 + i, (-1, axes[i].r)) for i in reversed(range(n))]
    q_axes = tuple(3 + 2 * i for i in range(n))
    r_axes = tuple(4 + 2 * i for i in range(n))
    verbs += [
        Flip(q_axes),
        # (g, C_in/g, C_out/g, q_1, r_1, .., q_n, r_n) -> (g, C_out/g, r_1, .., r_n, C_in/g, *q)
        Permute((0, 2, *r_axes, 1, *q_axes)),
        # -> (C_out*r_1*..*r_n, C_in/g, *q)
        Merge(0, 1 + n),
    ]
    return tuple(verbs)
