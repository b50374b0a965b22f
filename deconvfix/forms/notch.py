"""Transposed convolution -> the same layer, without the grid that it makes of local means.

The kernel is split into a part with equal phase sums and the rest, W = E + I (`forms.equalized`). The grid
comes from I alone: a constant input is answered by the phase sums of I. So I gets the input without its
local mean, and the layer keeps all that it does to detail:

    y = x (*) W - (h * x) (*) I          (*) the transposed convolution, h * x the local mean

(At a `strength` s below 1, with s I instead: that much of the grid goes.)

A constant gives x = h * x and is left with E: no grid, whatever W is. Since h is symmetric, I does not see
linear slopes either. In words of signal processing, the images of the input's spectrum at the multiples
of 1/s pass a notch 1 - h^ instead of being suppressed by the kernel as a whole. The wider h, the narrower
the notch, the closer the function to the trained one, and the farther from an edge a grid can still begin:
`reach` pixels of the layer's input, on either side, on the axes with a stride (`steps.LocalMeans`).

It is written as one sub-pixel convolution (`forms.subpixel`) of the channels and their means, with the
kernels W and -I: twice its multiply-accumulates, and no transposed convolution is left.

On request the kernel grows as an equalized one does. Refused where a phase has no tap, and for weights
that are computed while the model runs.

Source: notch filters at the images are textbook (Crochiere, Rabiner 1983, Multirate Digital Signal
Processing, chapter 2); that a vanishing answer at the multiples of 1/s frees a kernel of checkerboard
artifacts is the sum rule (Sugawara, Shiota, Kiya 2018, arXiv:1806.02658).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import ConvTranspose, LocalMeans
from deconvfix.errors import Refusal
from deconvfix.forms.base import (
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
)
from deconvfix.forms.equalized import EQUALIZED
from deconvfix.forms.subpixel import SUBPIXEL

__all__ = ["NOTCH"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Notch(Form):
    """The layer without the grid of local means; see the module's text for its algebra."""

    name: ClassVar[str] = "notch"
    summary: ClassVar[str] = "the sub-pixel form without the grid that local means make"
    has_strength: ClassVar[bool] = True
    can_grow: ClassVar[bool] = True
    has_means: ClassVar[bool] = True
    shuffles: ClassVar[bool] = True
    evens_sums: ClassVar[bool] = True
    # A notch changes so little that the layers still understand each other's features; regressions, each
    # on its own, disturb that. On three networks the same number of steps ended 0, 1.0 and 1.4 dB closer
    # to the original than from calibrated layers.
    tunes_from_weights: ClassVar[bool] = True

    def settle(
        self, spec: ConvTransposeSpec, settings: Settings, read_weight: ReadWeight | None
    ) -> Settled | Refusal:
        """As for the equalized form; exact layers have no grid, and become their sub-pixel form."""
        if settings.init == "random":
            return Refusal(
                f"init is {settings.init!r} and the form is 'notch'",
                "the notch form keeps the trained weight",
                "Use init 'calibrated', or the form 'resize'",
            )
        settled = EQUALIZED.settle(spec, settings, read_weight)
        if isinstance(settled, Refusal):
            return settled
        # Equal phase sums leave nothing to remove, and the means would only cost time.
        if settled.exact:
            exact = SUBPIXEL.settle(spec, replace(settings, init="exact"), read_weight)
            if isinstance(exact, Refusal):
                return exact
            residual, note = settled.relative_residual, settled.note
            return replace(exact, relative_residual=residual, note=note, form=SUBPIXEL.name)
        old = math.prod(spec.weight_shape)
        # The weight holds kernels of the channels and of their means.
        taps = SUBPIXEL.compile(_wide(spec, settled.settings), Settings()).macs_per_position
        refusal = too_large(old, taps // (spec.out_channels // spec.groups))
        if refusal is not None:
            return refusal
        share = f"{settled.relative_residual:.3g}"
        note = f"its grid on local means (share {share} of the kernel) is removed"
        return replace(settled, note=note, needs=(Need.LOCAL_MEANS,))

    def compile(self, spec: ConvTransposeSpec, settings: Settings) -> Compiled:
        """Steps: LocalMeans, and those of the sub-pixel form for twice the channels."""
        wide = _wide(spec, settings)
        compiled = SUBPIXEL.compile(wide, settings)
        return replace(compiled, steps=(_means(spec, settings), *compiled.steps))

    def fit(self, spec: ConvTransposeSpec, settings: Settings, weight: Array) -> Array:
        """The kernels W and -I, group by group: (2 * C_in, C_out / groups, *taps)."""
        grown, equalized = EQUALIZED.equivalent(spec, settings, weight)
        margins = [
            ((new - old) // 2,) * 2
            for new, old in zip(grown.kernel_size, spec.kernel_size, strict=True)
        ]
        whole = np.pad(weight, [(0, 0), (0, 0), *margins])
        # (C_in, C_out/g, *k) twice -> (g, 2, C_in/g, C_out/g, *k) -> (2*C_in, C_out/g, *k)
        parts = [
            kernel.reshape(spec.groups, -1, *kernel.shape[1:]) for kernel in (whole, equalized)
        ]
        # W and -s I at the strength s, side by side in each group.
        both = np.stack([parts[0], parts[1] - parts[0]], 1)
        return both.reshape(-1, *whole.shape[1:])

    def design(self, spec: ConvTransposeSpec, settings: Settings) -> Design:
        """The phases of the equalized form, whose taps see a channel and its means.

        With P the projection onto kernels of unequal phase sums and s the strength, the kernels are
        (V, -s P V). On V in the image of P these columns have the length sqrt(1 + s^2), on the others 1.
        """
        plain = EQUALIZED.design(spec, settings)
        taps, even = plain.basis.shape
        # The first columns span Z, so the others are the kernels of unequal phase sums.
        columns, _ = np.linalg.qr(np.concatenate([plain.basis, np.eye(taps)], 1))
        uneven = columns[:, even:] / math.sqrt(1 + settings.strength**2)
        basis = np.zeros((2 * taps, taps))
        basis[:taps] = np.concatenate([plain.basis, uneven], 1)
        basis[taps:, even:] = -settings.strength * uneven
        # The taps of the means come behind those of the channels, at the same pixels.
        phases = tuple(
            Phase(
                phase.first,
                phase.step,
                (*phase.taps, *(taps + tap for tap in phase.taps)),
                phase.starts * 2,
                (0,) * len(phase.taps) + (1,) * len(phase.taps),
            )
            for phase in plain.phases
        )
        return Design((_means(spec, settings), *plain.steps), phases, basis, copies=2)

    def equivalent(
        self, spec: ConvTransposeSpec, settings: Settings, weight: Array
    ) -> tuple[ConvTransposeSpec, Array]:
        """The layer with equal phase sums: what the new one is on constants."""
        return EQUALIZED.equivalent(spec, settings, weight)

    def recommend(self, candidate: Candidate) -> tuple[Merit, Recommendation] | None:
        """For layers with a grid whose own weights cannot be corrected: it keeps what they do to detail."""
        weight, needs = candidate.weight, (*self.needs(Settings()), Need.LOCAL_MEANS)
        if not candidate.has_grid or weight is None or candidate.lacks_any(needs):
            return None
        settled = self.settle(candidate.spec, Settings(), lambda: weight)
        if isinstance(settled, Refusal):
            return None
        cost = self.relative_macs(candidate.spec, settled.settings)
        reason = (
            "Its phase sums differ, which makes a grid, and its own weights cannot be corrected: the "
            f"sub-pixel form without the grid of local means, at x{cost:.2f} multiply-accumulates. "
            "Calibrate it on a few inputs."
        )
        return Merit.REMOVES_THE_GRID_KEEPS_DETAIL, Recommendation(self.name, reason, cost)

    def spread(
        self, spec: ConvTransposeSpec, settings: Settings, kernel: Array
    ) -> tuple[ConvTransposeSpec, Array]:
        """The sum of the kernels of the channels and of their means: a constant is its mean."""
        # (2*C_in, C_out/g, *k) -> (g, 2, C_in/g, C_out/g, *k) -> (C_in, C_out/g, *k)
        parts = kernel.reshape(spec.groups, 2, -1, *kernel.shape[1:])
        return EQUALIZED.spread(spec, settings, parts.sum(1).reshape(-1, *kernel.shape[1:]))


NOTCH = Notch()


def _wide(spec: ConvTransposeSpec, settings: Settings) -> ConvTransposeSpec:
    """The layer, grown, with a channel of means for each channel."""
    (step,) = EQUALIZED.compile(spec, settings).steps
    assert isinstance(step, ConvTranspose)
    return replace(step.spec, in_channels=2 * spec.in_channels)


def _means(spec: ConvTransposeSpec, settings: Settings) -> LocalMeans:
    return LocalMeans(tuple(settings.reach if s > 1 else 0 for s in spec.stride), spec.groups)
