"""Transposed convolution -> upsampling, explicit padding, convolution. Free of checkerboard artifacts.

Upsampling by s is itself a transposed convolution with the fixed kernel h:

    nearest   h = 1 on 0 .. s-1
    linear    h[v] = 1 - |(v + 0.5)/s - 0.5| where that is positive; half-pixel centres

so that upsampling and then a convolution with w is the transposed convolution with the kernel h * w.
Its phase sums are all equal, whatever w is. With w of r = max(1, K - s + 1) taps, h * w covers the
K taps of the trained kernel; what it has more (linear, s > K, or a kernel that is asked to grow by so
many taps on either side) is spread over both ends. `fit` finds
the w whose h * w comes closest to the trained kernel. When none is left over, the kernel *divides*,
and the layer is converted exactly: bilinear-initialised layers, separable box factors.

Feature maps are extended at the border before the convolution (Odena et al. 2016), by `padding_mode`:
    reflect, replicate   no dark rim; the border differs from the trained layer on purpose
    zeros                the trained layer's own border. For linear upsampling the small map is
                         padded by one zero pixel first, so that it fades out as the kernel does
    None                 zeros where the kernel divides (exact everywhere), reflect elsewhere

Folded, the layer is the sub-pixel convolution of h * w, and that is the form's kernel (`upsampled`). Linear
upsampling and a reflection by the factor or more stay apart, and so does what would save nothing.

An axis of stride 1 has no phases: it keeps its taps, its dilation and its zero border exactly.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.folded import Folding
from deconvfix.core.rearrange import plain_layout
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Conv, Interpolation, Pad, Resize, Step
from deconvfix.errors import Refusal
from deconvfix.fit.least_squares import apply_operators, factor_out, relative_distance
from deconvfix.forms.base import (
    FITTED_TO_DATA,
    UPSAMPLING,
    Candidate,
    Compiled,
    Design,
    Form,
    Merit,
    Need,
    Phase,
    ReadWeight,
    Recommendation,
    Settings,
    Settled,
    too_large,
    zero_border,
)
from deconvfix.forms.subpixel import SUBPIXEL
from deconvfix.forms.upsampled import axes_of, folding_of, macs_of, operators_of

__all__ = ["RESIZE"]

# Taps smaller than this part of the largest are rounding.
_NEGLIGIBLE = 1e-5
# A kernel divides when h * w meets it to a few roundings of the trained dtype's worst case, float32.
_DIVIDES = 1e-6


@dataclass(frozen=True)
class ResizeForm(Form):
    """Resize-convolution; see the module's text for its algebra."""

    name: ClassVar[str] = "resize"
    summary: ClassVar[str] = "upsampling and a convolution, which make no grid"
    can_grow: ClassVar[bool] = True
    chooses_border: ClassVar[bool] = True
    folds: ClassVar[bool] = True

    def needs(self, settings: Settings) -> tuple[Need, ...]:
        """A stored weight, and the upsampling that was chosen."""
        return (*super().needs(settings), UPSAMPLING[settings.interpolation])

    def settle(
        self, spec: ConvTransposeSpec, settings: Settings, read_weight: ReadWeight | None
    ) -> Settled | Refusal:
        """Looks whether the kernel divides, and chooses the border by it."""
        axes = axes_of(spec, settings)
        old = math.prod(spec.weight_shape)
        taps = math.prod(a.taps for a in axes)
        refusal = too_large(old, old // math.prod(spec.kernel_size) * taps)
        if refusal:
            return refusal
        if read_weight is None:
            return Refusal(
                "its weight is computed while the model runs",
                "a resize-convolution is fitted to a stored weight",
                "Convert this layer to 'subpixel', or exclude it",
            )
        # How far the best kernel is from the trained one decides all that follows.
        residual = self._residual(spec, replace(settings, init="fit"), read_weight())
        divides = residual <= _DIVIDES
        mode = settings.padding_mode or ("zeros" if divides else "reflect")
        strided = max(spec.stride) > 1
        # Other borders change the outputs there on purpose, where there is a stride.
        exact = settings.init != "random" and divides and (mode == "zeros" or not strided)
        init = settings.init or ("exact" if divides else "fit")
        if exact and init in FITTED_TO_DATA:
            init = "exact"
        if init == "exact" and not divides:
            return Refusal(
                f"the kernel does not divide by the {settings.interpolation} upsampling kernel "
                f"(relative residual {residual:.3g})",
                "init 'exact' needs a kernel that divides",
                "Use init 'fit', or the form 'subpixel'",
            )
        if init == "random":
            residual = self._residual(spec, replace(settings, init="random"), read_weight())
            note = f"random weights (seed {settings.seed})"
        elif exact:
            note = f"{'the kernel divides' if strided else 'stride 1'}: the same function"
        elif divides:
            note = f"the kernel divides: the same function but for the {mode} border"
        else:
            note = f"least squares on the weights, relative residual {residual:.3g}"
        settings = replace(settings, padding_mode=mode, init=init)
        note = f"{note}, {mode} border{self.words_of_fold(spec, settings)}"
        return Settled(settings, exact, residual, note)

    def compile(self, spec: ConvTransposeSpec, settings: Settings) -> Compiled:
        """Steps: Resize, Pad, Conv; a zero Pad first for linear upsampling with a zero border.

        Folded: those of the sub-pixel convolution, behind the border of the small map.
        """
        folding = self.folding(spec, settings)
        if folding is not None:
            exact = SUBPIXEL.compile(folding.spec, settings)
            first = () if folding.border is None else (folding.border,)
            return replace(exact, steps=(*first, *exact.steps))
        axes = axes_of(spec, settings)
        mode = settings.padding_mode or "reflect"
        conv = Conv(
            in_channels=spec.in_channels,
            out_channels=spec.out_channels,
            kernel_size=tuple(a.taps for a in axes),
            padding=(0,) * spec.ndim,
            dilation=tuple(a.dilation for a in axes),
            groups=spec.groups,
            bias=spec.bias,
        )
        steps: list[Step] = []
        border = [a.pad for a in axes]
        if max(spec.stride) > 1:
            # One zero pixel around the small map is s pixels of the upsampled one.
            if settings.interpolation == "linear" and mode == "zeros":
                steps.append(Pad(tuple((int(a.s > 1),) * 2 for a in axes), "zeros"))
                border = [
                    (b - a.s, e - a.s) if a.s > 1 else (b, e)
                    for a, (b, e) in zip(axes, border, strict=True)
                ]
            steps.append(Resize(spec.stride, settings.interpolation))
        # Axes of stride 1 keep their zero border, so only the others are extended.
        if mode != "zeros":
            extended = tuple(
                (max(b, 0), max(e, 0)) if a.s > 1 else (0, 0)
                for a, (b, e) in zip(axes, border, strict=True)
            )
            if any(map(any, extended)):
                steps.append(Pad(extended, mode))
            border = [
                (b - pad[0], e - pad[1]) for (b, e), pad in zip(border, extended, strict=True)
            ]
        steps += zero_border(conv, tuple(border))
        return Compiled(
            steps=tuple(steps),
            weight=plain_layout(spec.ndim),
            bias=(),
            macs_per_position=macs_of(spec, axes),
        )

    def folding(self, spec: ConvTransposeSpec, settings: Settings) -> Folding | None:
        """Where it is asked for, and possible, and saves multiply-accumulates."""
        found = folding_of(spec, settings) if settings.fold else None
        return found if isinstance(found, Folding) else None

    def words_of_fold(self, spec: ConvTransposeSpec, settings: Settings) -> str:
        """Folded or not, and why not."""
        if not settings.fold or max(spec.stride) == 1:
            return ""
        found = folding_of(spec, settings)
        return ", folded" if isinstance(found, Folding) else f", not folded ({found})"

    def joined(
        self, spec: ConvTransposeSpec, settings: Settings, kernel: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """h * w where the layer is folded."""
        if self.folding(spec, settings) is None:
            return kernel
        return apply_operators(kernel, operators_of(spec, settings))

    def parted(
        self, spec: ConvTransposeSpec, settings: Settings, kernel: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The w whose h * w comes closest to the kernel of a folded layer."""
        if self.folding(spec, settings) is None:
            return kernel
        return factor_out(kernel, operators_of(spec, settings))

    def fit(
        self, spec: ConvTransposeSpec, settings: Settings, weight: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """w, or h * w where the layer is folded, (C_in, C_out / groups, *taps).

        w is fitted, or seeded at torch's default scale.
        """
        return self.joined(spec, settings, self._fit_apart(spec, settings, weight))

    def _fit_apart(
        self, spec: ConvTransposeSpec, settings: Settings, weight: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        axes = axes_of(spec, settings)
        if settings.init == "random":
            shape = (*weight.shape[:2], *(a.taps for a in axes))
            # torch's default for convolutions, uniform within 1 / sqrt(fan_in).
            bound = 1 / math.sqrt(spec.in_channels // spec.groups * math.prod(shape[2:]))
            return np.random.default_rng(settings.seed).uniform(-bound, bound, shape)
        return factor_out(self.target(spec, settings, weight), operators_of(spec, settings))

    def design(self, spec: ConvTransposeSpec, settings: Settings) -> Design:
        """One phase, the convolution on the upsampled and extended input; every kernel is allowed.

        Of what is folded the two are designed apart.
        """
        *steps, conv = self.compile(spec, replace(settings, fold=False)).steps
        assert isinstance(conv, Conv)
        # A design has no convolution to do this padding.
        if any(conv.padding):
            steps.append(Pad(tuple((p, p) for p in conv.padding), "zeros"))
        # The kernel is laid out as a transposed one: tap j is the convolution's tap r - 1 - j.
        reached = list(itertools.product(*(range(r) for r in conv.kernel_size)))
        starts = tuple(
            tuple(
                d * (r - 1 - j)
                for j, r, d in zip(tap, conv.kernel_size, conv.dilation, strict=True)
            )
            for tap in reached
        )
        ones = (1,) * spec.ndim
        phase = Phase((0,) * spec.ndim, ones, tuple(range(len(reached))), starts)
        return Design(tuple(steps), (phase,), np.eye(len(reached)))

    def spread(
        self, spec: ConvTransposeSpec, settings: Settings, kernel: NDArray[np.float64]
    ) -> tuple[ConvTransposeSpec, NDArray[np.float64]]:
        """h * w for the kernel w, (C_in, C_out / groups, *taps); a folded layer's kernel as it is."""
        spread = kernel
        if self.folding(spec, settings) is None:
            spread = apply_operators(kernel, operators_of(spec, settings))
        dilation = tuple(a.dilation for a in axes_of(spec, settings))
        return replace(spec, kernel_size=spread.shape[2:], dilation=dilation), spread

    def target(
        self, spec: ConvTransposeSpec, settings: Settings, weight: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The trained kernel on the taps of h * w: dilation spread out, zeros where h * w is longer."""
        axes = axes_of(spec, settings)
        sizes = [len(matrix) for matrix in operators_of(spec, settings)]
        target = np.zeros((*weight.shape[:2], *sizes))
        taps = tuple(
            # Stride 1 keeps its dilation. Elsewhere the taps lie d positions apart.
            slice(0, k) if a.s == 1 else slice(a.grown, a.grown + d * (k - 1) + 1, d)
            for k, d, a in zip(spec.kernel_size, spec.dilation, axes, strict=True)
        )
        target[(..., *taps)] = weight
        return target

    def recommend(self, candidate: Candidate) -> tuple[Merit, Recommendation] | None:
        """Where the kernel divides: the same function, often much cheaper. Else it removes the grid."""
        weight = candidate.weight
        if weight is None or candidate.lacks_any((Need.STORED_WEIGHT, Need.OWN_MODULE)):
            return None
        if not candidate.has_grid:
            return self._recommend_divided(candidate, weight)
        settled = self.settle(candidate.spec, Settings(), lambda: weight)
        if candidate.lacks_any(self.needs(Settings())) or isinstance(settled, Refusal):
            return None
        cost = self.relative_macs(candidate.spec, settled.settings)
        reason = (
            "Its phase sums differ, which makes a grid, and its own weights cannot be corrected: a "
            f"resize-convolution has no grid, at x{cost:.2f} multiply-accumulates; calibrate it on a few "
            "inputs."
        )
        return Merit.REMOVES_THE_GRID, Recommendation(self.name, reason, cost)

    def _recommend_divided(
        self, candidate: Candidate, weight: NDArray[np.float64]
    ) -> tuple[Merit, Recommendation] | None:
        """The interpolation whose kernel divides the layer's, with the fewest taps left."""
        spec = candidate.spec
        best: tuple[int, Interpolation, float, NDArray[np.bool_]] | None = None
        for interpolation, need in UPSAMPLING.items():
            settings = Settings(interpolation=interpolation, init="exact")
            settled = self.settle(spec, settings, lambda: weight)
            if need in candidate.lacks or isinstance(settled, Refusal) or not settled.exact:
                continue
            kernel = self.fit(spec, replace(settled.settings, init="fit"), weight)
            used = np.abs(kernel) > _NEGLIGIBLE * np.abs(kernel).max(initial=0)
            taps = int(np.any(used, axis=(0, 1)).sum())
            if best is None or taps < best[0]:
                best = (taps, interpolation, self.relative_macs(spec, settled.settings), used)
        if best is None:
            return None
        taps, interpolation, cost, used = best
        reason = (
            f"Its kernel divides by that of {interpolation} upsampling: a resize-convolution is the "
            f"same function, at x{cost:.2f} multiply-accumulates"
            f"{_less_than_a_convolution(spec, taps, interpolation, used)}."
        )
        return Merit.SAME_FUNCTION_SIMPLER, Recommendation(self.name, reason, cost)

    def _residual(
        self, spec: ConvTransposeSpec, settings: Settings, weight: NDArray[np.float64]
    ) -> float:
        _, reached = self.equivalent(spec, settings, weight)
        return relative_distance(reached, self.target(spec, settings, weight))


RESIZE = ResizeForm()


def _less_than_a_convolution(
    spec: ConvTransposeSpec, taps: int, interpolation: Interpolation, used: NDArray[np.bool_]
) -> str:
    """What would do instead of the whole convolution, as a clause; empty where nothing less does.

    Args:
        spec: The layer.
        taps: How many positions of the kernel are not zero for some pair of channels.
        interpolation: Of the upsampling.
        used: Which values of the kernel are not zero, (C_in, C_out / groups, *taps).
    """
    connected = np.any(used, axis=tuple(range(2, used.ndim)))
    per_channel = spec.groups == spec.in_channels == spec.out_channels or (
        spec.groups == 1
        and spec.in_channels == spec.out_channels > 1
        and not connected[~np.eye(spec.in_channels, dtype=bool)].any()
    )
    if taps <= 1 and per_channel:
        return f"; one tap per channel is not zero, so {interpolation} upsampling alone is enough"
    if per_channel and spec.groups == 1:
        return "; each channel depends on itself alone, so a depthwise convolution is enough"
    return ""
