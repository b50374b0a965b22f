"""Checkerboard artifacts as numbers, from the weights alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deconvfix.fit.least_squares import phase_of_taps, phase_sums
from deconvfix.spec import ConvTransposeSpec

__all__ = ["LOWEST_DB", "decibels", "ripple_db", "uneven_overlap"]

# JSON has no -inf: this is what exactly equal phases are reported as.
LOWEST_DB = -300.0


def decibels(ratio: float) -> float:
    """20 log10 of an amplitude ratio, held inside +-300 dB."""
    if ratio <= 0 or math.isnan(ratio):
        return LOWEST_DB
    return float(min(max(20 * math.log10(ratio), LOWEST_DB), -LOWEST_DB))


def uneven_overlap(spec: ConvTransposeSpec) -> bool:
    """Whether output pixels are reached by different numbers of taps (Odena et al. 2016).

    True when the kernel size is not divisible by the stride; dilation is taken into account.
    """
    for phase, s in zip(
        phase_of_taps(spec.kernel_size, spec.stride, spec.dilation), spec.stride, strict=True
    ):
        if len(set(np.bincount(phase, minlength=s).tolist())) > 1:
            return True
    return False


def ripple_db(spec: ConvTransposeSpec, weight: NDArray[np.float64]) -> float:
    """Flat-field ripple of a layer: how much its phase sums differ, relative to their mean.

    With g_f the phase sums of a pair of channels and m their mean, 20 log10 of
    rms(g_f - m) / rms(m), both over all pairs and phases: the expected ripple over the expected
    level when the channels of a constant input are independent.

    Args:
        spec: The layer.
        weight: (C_in, C_out / groups, *kernel_size).

    Returns:
        Decibels; -300 when all phase sums are equal, or the stride is 1.
    """
    phases = phase_of_taps(spec.kernel_size, spec.stride, spec.dilation)
    sums = phase_sums(weight, phases, spec.stride)
    axes = tuple(range(2, sums.ndim))
    mean = sums.mean(axes, keepdims=True)
    spread = float(np.sqrt(np.mean((sums - mean) ** 2)))
    level = float(np.sqrt(np.mean(mean**2)))
    if level == 0:
        return LOWEST_DB if spread == 0 else -LOWEST_DB
    return decibels(spread / level)
