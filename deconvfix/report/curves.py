"""Fidelity against ripple over the strength, and by the number of samples: the numbers, and their picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deconvfix.core.decibels import LOWEST_DB
from deconvfix.report import plots

__all__ = [
    "SamplesCurve",
    "SamplesPoint",
    "StrengthCurve",
    "StrengthPoint",
    "draw_curve",
]

# Invisible from here on: what lies further down is drawn at the edge.
_LOWEST_DRAWN_DB = -80.0


@dataclass(frozen=True)
class StrengthPoint:
    """What one strength does to a network.

    Attributes:
        strength: From 0 (the original) to 1 (free of the grid).
        psnr_db: Outputs against the original's on calibration samples that were not fitted to, peak =
            range of the original's; infinite where they are equal, None without real outputs.
        network_ripple_db: Flat-field ripple of the network's outputs, the largest (see
            `deconvfix.grid.flat_field`); None where the answer to constant inputs is not periodic.
        layer_ripple_db: Flat-field ripple of the converted layers by their weights, the largest; -300:
            none.
    """

    strength: float
    psnr_db: float | None
    network_ripple_db: float | None
    layer_ripple_db: float


@dataclass(frozen=True)
class StrengthCurve:
    """Fidelity against ripple.

    Attributes:
        points: One for each strength, the smallest first.
        init: How the weights were found: "fit" or "calibrated".
        notes: Sentences about what was measured.
    """

    points: tuple[StrengthPoint, ...]
    init: str
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Strength, PSNR, and both ripples of each point, for people."""
        return [
            (
                f"{point.strength:g}",
                "no difference" if point.psnr_db == math.inf else _decibels(point.psnr_db),
                _decibels(point.network_ripple_db),
                _decibels(point.layer_ripple_db),
            )
            for point in self.points
        ]


def _decibels(value: float | None) -> str:
    if value is None:
        return "not measured"
    return "none" if value <= LOWEST_DB else f"{value:.1f} dB"


def draw_curve(curve: StrengthCurve) -> str | None:
    """The curve as a picture, for a page; None if there is no PSNR to draw."""
    # The network's ripple where all points have it, else that of the layers.
    whole = all(point.network_ripple_db is not None for point in curve.points)
    what = "the network on a constant input" if whole else "the layers (from the weights)"
    marks = []
    for point in curve.points:
        ripple = point.network_ripple_db if whole else point.layer_ripple_db
        if point.psnr_db is not None and ripple is not None:
            marks.append((ripple, point.psnr_db, f"{point.strength:g}"))
    if not any(math.isfinite(psnr) for _, psnr, _ in marks):
        return None
    return plots.trade_off(
        marks,
        lowest=_LOWEST_DRAWN_DB,
        x_label=f"ripple of {what}, dB",
        y_label="match to the original (PSNR), dB",
    )


# A gain of the last step below which further calibration samples are not recommended.
_WORTH_MORE_DB = 0.5


@dataclass(frozen=True)
class SamplesPoint:
    """A calibrated fit to some of the samples.

    Attributes:
        samples: How many.
        psnr_db: Converted against original on the held-out samples; None without real outputs.
    """

    samples: int
    psnr_db: float | None


@dataclass(frozen=True)
class SamplesCurve:
    """How the match to the original improves with the number of calibration samples.

    Attributes:
        heldout: On so many samples, which no fit has seen, the outputs were compared.
        points: The fewest samples first; each set is a part of the next.
    """

    heldout: int
    points: tuple[SamplesPoint, ...]

    def sentence(self) -> str:
        """What the last step gained."""
        *_, one, last = self.points
        if one.psnr_db is None or last.psnr_db is None:
            return "There is no output to compare."
        gained = last.psnr_db - one.psnr_db
        advice = "more would help" if gained >= _WORTH_MORE_DB else "more would change little"
        return f"From {one.samples} to {last.samples} samples: {gained:+.1f} dB; {advice}."
