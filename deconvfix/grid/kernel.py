"""Checkerboard artifacts as numbers, from the weights alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.decibels import LOWEST_DB, decibels
from deconvfix.core.phases import phase_of_taps, phase_sums
from deconvfix.core.spec import ConvTransposeSpec

__all__ = [
    "frequency_ripples_db",
    "ripple_db",
    "sum_rule_holds",
    "uneven_overlap",
]

# Distance of 1 from the next number of each dtype.
_EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def uneven_overlap(spec: ConvTransposeSpec) -> bool:
    """Whether output pixels are reached by different numbers of taps (Odena et al. 2016).

    True when the kernel size is not divisible by the stride; dilation is taken into account:

    >>> uneven_overlap(ConvTransposeSpec.create(1, 1, (4,), stride=2))
    False
    >>> uneven_overlap(ConvTransposeSpec.create(1, 1, (4,), stride=2, dilation=2))
    True
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

    Three equal taps at stride 2 make pixels of 2 and 1 in turns, 0.5 from their mean of 1.5; four make
    none:

    >>> uneven = ConvTransposeSpec.create(1, 1, (3,), stride=2)
    >>> round(ripple_db(uneven, np.ones((1, 1, 3))), 2)
    -9.54
    >>> ripple_db(ConvTransposeSpec.create(1, 1, (4,), stride=2), np.ones((1, 1, 4)))
    -300.0
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


def _level_ratio(spread: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Decibels of spread / level for each element, as `ripple_db` has it."""
    if level == 0:
        return np.where(spread == 0, LOWEST_DB, -LOWEST_DB)
    ratios = [decibels(float(ratio)) for ratio in (spread / level).ravel()]
    return np.array(ratios).reshape(spread.shape)


def frequency_ripples_db(
    spec: ConvTransposeSpec, weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The ripple of `ripple_db`, told apart by frequency.

    With G_u the discrete Fourier transform of the table of phase sums of a pair of channels, divided
    by the number of phases, the tone at the frequency u (u_a / s_a cycles per output pixel on axis a)
    has the amplitude rms(G_u) / rms(G_0), both over all pairs. u and -u are one real tone, whose power
    is that of both. All vanish iff the first-order sum rule holds (Sugawara, Shiota, Kiya 2018,
    arXiv:1806.02658). The powers of all tones add up to that of `ripple_db`.

    Args:
        spec: The layer.
        weight: (C_in, C_out / groups, *kernel_size).

    Returns:
        Decibels, of the shape of the stride; -300 at u = 0, and where there is nothing.
    """
    phases = phase_of_taps(spec.kernel_size, spec.stride, spec.dilation)
    sums = phase_sums(weight, phases, spec.stride)
    axes = tuple(range(2, sums.ndim))
    # Divided by the number of phases, so that the line at 0 is the mean.
    lines = np.fft.fftn(sums, axes=axes) / math.prod(spec.stride)
    power = np.mean(np.abs(lines) ** 2, axis=(0, 1))
    opposite = np.roll(np.flip(power), 1, tuple(range(spec.ndim)))  # the line at -u
    # Lines that are their own opposite, 0 and 1/2 on each axis, count once.
    own = np.ones(spec.stride, bool)
    for axis, s in enumerate(spec.stride):
        shape = [1] * spec.ndim
        shape[axis] = s
        own &= (2 * np.arange(s) % s == 0).reshape(shape)
    level = float(np.sqrt(power[(0,) * spec.ndim]))
    ripples = _level_ratio(np.sqrt(np.where(own, power, power + opposite)), level)
    ripples[(0,) * spec.ndim] = LOWEST_DB
    return ripples


def sum_rule_holds(spec: ConvTransposeSpec, weight: NDArray[np.float64], dtype: str) -> bool:
    """Whether all phase sums are equal, to the rounding of the stored weights.

    A stored weight is off by at most half an eps of itself, so a phase sum is by half an eps of the
    sum of its taps' magnitudes. Four eps of the largest such sum in the layer are allowed, for weights
    that were computed in that dtype before they were stored.

    Args:
        spec: The layer.
        weight: (C_in, C_out / groups, *kernel_size).
        dtype: That the weights were stored in; others than floats count as float32.
    """
    phases = phase_of_taps(spec.kernel_size, spec.stride, spec.dilation)
    sums = phase_sums(weight, phases, spec.stride)
    axes = tuple(range(2, sums.ndim))
    spread = np.abs(sums - sums.mean(axes, keepdims=True)).max(initial=0)
    magnitude = phase_sums(np.abs(weight), phases, spec.stride).max(initial=0)
    return bool(spread <= 4 * _EPS.get(dtype, _EPS["float32"]) * magnitude)
