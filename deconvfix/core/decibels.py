"""Amplitude ratios in decibels, and the ends of the scale."""

from __future__ import annotations

import math

__all__ = [
    "INVISIBLE_DB",
    "LOWEST_DB",
    "decibels",
    "decibels_in_words",
]


# A grid below this part of the level is not seen: 0.1 %, less than half a step of 8 bits.
INVISIBLE_DB = -60.0


# JSON has no -inf: this is what exactly equal phases are reported as.
LOWEST_DB = -300.0

# What rounding a kernel to float32 (6e-8 of each tap: -144 dB) leaves of a grid that is gone.
_ROUNDED_DB = -140.0


def decibels(ratio: float) -> float:
    """20 log10 of an amplitude ratio, held inside +-300 dB.

    Of amplitudes, so that half of one is 6 dB less, not 3; and nothing at all is a number, too:

    >>> round(decibels(0.5), 2)
    -6.02
    >>> decibels(0)
    -300.0
    """
    if ratio <= 0 or math.isnan(ratio):
        return LOWEST_DB
    return float(min(max(20 * math.log10(ratio), LOWEST_DB), -LOWEST_DB))


def decibels_in_words(value: float) -> str:
    """A ripple for people: the number, or what its ends stand for."""
    if value <= _ROUNDED_DB:
        return "none"
    return f"{value:.1f} dB" if value < -LOWEST_DB else "nothing but grid"
