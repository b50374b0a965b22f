"""Transposed convolution -> the same layer with corrected weights. Free of checkerboard artifacts.

A constant input gives, away from the border, the phase sums g_f = sum of W[j] over d*j = f (mod s).
They are equal iff the kernel has no checkerboard artifact: the first-order sum rule (Sugawara, Shiota,
Kiya 2018, arXiv:1806.02658). The smallest change of the weights that makes them equal adds
(c - g_f)/n_f to each of the n_f taps of phase f; `fit.least_squares.equal_phase_sums` has the formula.
The layer keeps its type and shapes, so the corrected checkpoint loads into unchanged code.

With Z an orthonormal basis of the kernels whose phase sums are equal, a trained kernel is
W_0 = Z Z^T W_0 + W_perp, and W_perp, its imbalance, is what the correction takes away. At *strength* s
the layer's kernel is Z w + (1 - s) W_perp: the ripple is (1 - s) of what it was, whatever w is. The fit
to the weights has w = Z^T W_0, which is W_0 - s W_perp; fits to data change w. At s = 0 the layer stays as
it is.

On request the kernel *grows* by a few taps on either side of each axis with a stride, k + 2*grow with
padding p + d*grow, which begins with taps of zero: the same outputs from a larger space of kernels. The
weight then has another shape, and the recipe is needed to load it.

Refused where a phase has no tap (k < s, or a dilation that shares a factor with the stride): its sum is
zero whatever the weights are.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.phases import phase_of_taps
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import ConvTranspose, Pad
from deconvfix.errors import Refusal
from deconvfix.fit.least_squares import equal_phase_sums, relative_distance, sum_rule_basis
from deconvfix.forms.base import (
    FITTED_TO_DATA,
    KEEP,
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
)

__all__ = ["EQUALIZED"]

_AS_IT_IS = "strength 0: left unchanged"

# Below this the phase sums were equal already, up to the rounding of the stored weights.
_EQUAL = 1e-6


@dataclass(frozen=True)
class Equalized(Form):
    """The same layer with equal phase sums; see the module's text for its algebra."""

    name: ClassVar[str] = "equalized"
    summary: ClassVar[str] = "the same layer, its weights corrected so that it makes no grid"
    keeps_layer: ClassVar[bool] = True
    evens_sums: ClassVar[bool] = True
    has_strength: ClassVar[bool] = True
    can_grow: ClassVar[bool] = True

    def needs(self, settings: Settings) -> tuple[Need, ...]:
        """A stored weight that can be set; a plain layer where calls must be seen, or arguments change."""
        needs = (Need.STORED_WEIGHT, Need.SETTABLE_WEIGHT)
        if settings.grow:
            return (Need.OWN_PLACE, *needs, Need.OWN_MODULE)
        return (*needs, Need.OWN_MODULE) if settings.init in FITTED_TO_DATA else needs

    def why_untouched(self, settings: Settings) -> str | None:
        """At strength 0 nothing is done to a layer, so nothing can stand in the way."""
        return _AS_IT_IS if settings.strength == 0 else None

    def settle(
        self, spec: ConvTransposeSpec, settings: Settings, read_weight: ReadWeight | None
    ) -> Settled | Refusal:
        """Refuses kernels with an empty phase and says how far the weights move."""
        if settings.init == "random":
            return Refusal(
                f"init is {settings.init!r} and the form is 'equalized'",
                "the equalized form corrects the trained weight",
                "Use init 'calibrated', or the form 'resize'",
            )
        if settings.strength == 0:
            return Settled(replace(settings, init="exact"), True, 0.0, _AS_IT_IS, form=KEEP)
        # A kernel that grows may reach phases that the trained one does not.
        grown = _grown(spec, settings)
        for axis, (k, s, d) in enumerate(
            zip(grown.kernel_size, grown.stride, grown.dilation, strict=True)
        ):
            reached = len(set(int(phase) for phase in phase_of_taps((k,), (s,), (d,))[0]))
            if reached < s:
                return Refusal(
                    f"on axis {axis} kernel_size {k} with dilation {d} reaches {reached} of the "
                    f"{s} phases of the stride",
                    "every phase needs a tap",
                    "Use the form 'resize' or 'subpixel' for this layer",
                )
        if read_weight is None:
            return Refusal(
                "its weight is computed while the model runs",
                "a stored weight is needed to correct it",
                "Convert this layer to 'subpixel', or exclude it",
            )
        # How far the whole correction moves the weights says whether there is anything to correct.
        weight = _extended(spec, settings, read_weight())
        equalized = self.fit(spec, replace(settings, strength=1.0), read_weight())
        imbalance = relative_distance(equalized, weight)
        exact = imbalance <= _EQUAL
        residual = settings.strength * imbalance
        # What was asked for is checked last, when it is known how much there is to correct.
        if settings.init == "exact" and not exact:
            return Refusal(
                f"its phase sums differ (relative correction {residual:.3g})",
                "init 'exact' needs equal phase sums",
                "Use init 'fit', or the form 'subpixel'",
            )
        note = (
            "phase sums are already equal"
            if exact
            else f"minimum-norm correction, relative size {residual:.3g}"
            + ("" if settings.strength == 1 else f", strength {settings.strength:g}")
        )
        init = settings.init if settings.init in FITTED_TO_DATA and not exact else "fit"
        settled = replace(settings, init=init)
        return Settled(settled, exact, residual, note, form=KEEP if exact else None)

    def compile(self, spec: ConvTransposeSpec, settings: Settings) -> Compiled:
        """One step: the transposed convolution."""
        spec = _grown(spec, settings)
        return Compiled((ConvTranspose(spec),), (), (), spec.macs_per_position())

    def fit(
        self, spec: ConvTransposeSpec, settings: Settings, weight: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The corrected weight, (C_in, C_out / groups, *kernel_size), grown if that was asked for."""
        if math.prod(spec.stride) == 1:
            return weight
        weight = _extended(spec, settings, weight)
        if settings.strength == 0:
            return weight  # bit for bit, zeros with a sign included
        spec = _grown(spec, settings)
        phases = phase_of_taps(spec.kernel_size, spec.stride, spec.dilation)
        return equal_phase_sums(weight, phases, spec.stride, settings.strength)

    def spread(
        self, spec: ConvTransposeSpec, settings: Settings, kernel: NDArray[np.float64]
    ) -> tuple[ConvTransposeSpec, NDArray[np.float64]]:
        """The layer with another weight, of the grown kernel's shape."""
        return _grown(spec, settings), kernel

    def design(self, spec: ConvTransposeSpec, settings: Settings) -> Design:
        """One phase for each residue of o + p_b; the kernels are those with equal phase sums.

        Below strength 1 they keep a part of their imbalance as well, which is fixed.

        Tap j reaches output o from input i = (o + p_b - d*j) / s.
        """
        spec = _grown(spec, settings)
        # Per axis the taps and start pixels of each residue, then their products over the axes.
        axes = list(
            zip(
                spec.kernel_size,
                spec.stride,
                spec.dilation,
                spec.padding,
                spec.output_padding,
                strict=True,
            )
        )
        border = []
        choices: list[list[tuple[int, list[tuple[int, int]]]]] = []
        for k, s, d, (p_b, p_e), op in axes:
            big_k = d * (k - 1) + 1
            reaches = [
                (
                    first,
                    [
                        (j, (first + p_b - d * j) // s)
                        for j in range(k)
                        if (first + p_b - d * j) % s == 0
                    ],
                )
                for first in range(s)
            ]
            # A tap may reach before the map: the design pads it by so much, and counts from there.
            begin = max(0, -min(start for _, taps in reaches for _, start in taps))
            border.append((begin, max(0, (big_k - 1 - p_e + op) // s)))
            choices.append(
                [(first, [(j, start + begin) for j, start in taps]) for first, taps in reaches]
            )
        phases = []
        # A phase of the layer is one residue on each axis, with all combinations of their taps.
        for grid in itertools.product(*choices):
            reached = list(itertools.product(*(taps for _, taps in grid)))
            phases.append(
                Phase(
                    first=tuple(first for first, _ in grid),
                    step=spec.stride,
                    taps=tuple(
                        int(np.ravel_multi_index([j for j, _ in combination], spec.kernel_size))
                        for combination in reached
                    ),
                    starts=tuple(
                        tuple(start for _, start in combination) for combination in reached
                    ),
                )
            )
        taps = phase_of_taps(spec.kernel_size, spec.stride, spec.dilation)
        steps = (Pad(tuple(border), "zeros"),)
        basis = sum_rule_basis(taps, spec.stride)
        return Design(steps, tuple(phases), basis, has_offset=settings.strength != 1)

    def recommend(self, candidate: Candidate) -> tuple[Merit, Recommendation] | None:
        """For layers with a grid whose own weights can be corrected: nothing else changes in the model."""
        weight = candidate.weight
        # Recommended with a fit to data alone.
        needs = self.needs(Settings(init="calibrated"))
        if not candidate.has_grid or weight is None or candidate.lacks_any(needs):
            return None
        if isinstance(self.settle(candidate.spec, Settings(), lambda: weight), Refusal):
            return None
        reason = (
            "Its phase sums differ, which makes a grid: the same layer with corrected weights, at "
            "x1.00 multiply-accumulates. Calibrate them on a few inputs: a fit to the weights alone "
            "changes the output a lot."
        )
        return Merit.REMOVES_THE_GRID_KEEPS_LAYER, Recommendation(self.name, reason, 1.0)


EQUALIZED = Equalized()


def _grown(spec: ConvTransposeSpec, settings: Settings) -> ConvTransposeSpec:
    """The layer with its kernel grown; see the module's text."""
    more = [settings.grow if s > 1 else 0 for s in spec.stride]
    return replace(
        spec,
        kernel_size=tuple(k + 2 * m for k, m in zip(spec.kernel_size, more, strict=True)),
        padding=tuple(
            (b + d * m, e + d * m)
            for (b, e), d, m in zip(spec.padding, spec.dilation, more, strict=True)
        ),
    )


def _extended(
    spec: ConvTransposeSpec, settings: Settings, weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The weight with the taps of zero that a grown kernel begins with."""
    more = [(settings.grow,) * 2 if s > 1 else (0, 0) for s in spec.stride]
    return np.pad(weight, [(0, 0), (0, 0), *more])
