"""Transposed convolution -> the same layer with corrected weights. Free of checkerboard artifacts.

A constant input gives, away from the border, the phase sums g_f = sum of W[j] over d*j = f (mod s).
They are equal iff the kernel has no checkerboard artifact: the first-order sum rule (Sugawara, Shiota,
Kiya 2018, arXiv:1806.02658). The smallest change of the weights that makes them equal adds
(c - g_f)/n_f to each of the n_f taps of phase f; `fit.least_squares.equal_phase_sums` has the formula.
The layer keeps its type and shapes, so the corrected checkpoint loads into unchanged code.

Refused where a phase has no tap (k < s, or a dilation that shares a factor with the stride): its sum is
zero whatever the weights are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deconvfix.fit.least_squares import equal_phase_sums, phase_of_taps, relative_distance
from deconvfix.forms.base import Compiled, ReadWeight, Refusal, Settings, Settled
from deconvfix.spec import ConvTransposeSpec
from deconvfix.steps import ConvTranspose

__all__ = ["EQUALIZED"]

# Below this the phase sums were equal already, up to the rounding of the stored weights.
_EQUAL = 1e-6


@dataclass(frozen=True)
class Equalized:
    """The same layer with equal phase sums; see the module's text for its algebra."""

    name: str = "equalized"

    def settle(
        self, spec: ConvTransposeSpec, settings: Settings, read_weight: ReadWeight | None
    ) -> Settled | Refusal:
        """Refuses kernels with an empty phase and says how far the weights move."""
        if settings.init not in (None, "fit", "exact"):
            return Refusal(
                f"init is {settings.init!r} and the form is 'equalized'",
                "the equalized form corrects the trained weight",
                "Leave init out, or choose the form 'resize'",
            )
        for axis, (k, s, d) in enumerate(
            zip(spec.kernel_size, spec.stride, spec.dilation, strict=True)
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
        weight = read_weight()
        residual = relative_distance(self.fit(spec, settings, weight), weight)
        exact = residual <= _EQUAL
        if settings.init == "exact" and not exact:
            return Refusal(
                f"its phase sums differ (relative correction {residual:.3g})",
                "init 'exact' needs phase sums that are equal already",
                "Use init 'fit', or the form 'subpixel'",
            )
        note = (
            "phase sums are equal already"
            if exact
            else f"minimum-norm correction, relative size {residual:.3g}"
        )
        return Settled(replace(settings, init="fit"), exact, residual, note)

    def compile(self, spec: ConvTransposeSpec, settings: Settings) -> Compiled:
        """One step: the transposed convolution."""
        return Compiled((ConvTranspose(spec),), (), (), spec.macs_per_position())

    def fit(
        self, spec: ConvTransposeSpec, settings: Settings, weight: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The corrected weight, (C_in, C_out / groups, *kernel_size)."""
        if math.prod(spec.stride) == 1:
            return weight
        phases = phase_of_taps(spec.kernel_size, spec.stride, spec.dilation)
        return equal_phase_sums(weight, phases, spec.stride)

    def equivalent(
        self, spec: ConvTransposeSpec, settings: Settings, weight: NDArray[np.float64]
    ) -> tuple[ConvTransposeSpec, NDArray[np.float64]]:
        """The layer with its corrected weight."""
        return spec, self.fit(spec, settings, weight)


EQUALIZED = Equalized()
