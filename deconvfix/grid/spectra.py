"""Spectra of real outputs: without what is no grid, at the frequencies of grids, and by distance.

All arrays are (N, C, *spatial), and a grid has a period of S_a pixels on each spatial axis a.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.decibels import LOWEST_DB
from deconvfix.grid.periods import layers_with

__all__ = [
    "FEWEST_CELLS",
    "Peak",
    "RadialSpectrum",
    "axis_spectrum",
    "high_pass",
    "manageable",
    "radial_spectrum",
    "spatial_index",
    "spectral_peaks",
]

Array = NDArray[np.float64]

# More of an output is not looked at: whole samples first, then the middle of them.
_MOST_ELEMENTS = 2**22
FEWEST_CELLS = 4
# Peaks off the axes are told from here on; in noise one in a thousand gets there.
_STANDS_OUT_DB = 10.0
_NEIGHBOURS = 6
_RADIAL_BINS = 64


@dataclass(frozen=True)
class Peak:
    """The power of an output at one frequency of the grid.

    Attributes:
        frequency: Cycles per output pixel, per axis.
        hz: The same in Hz, for one dimension with a sample rate.
        ratio_db: Power there over the median power of the neighbouring frequencies.
        layers: Those whose grids have this frequency. The first, of the shortest period, has it most
            directly; at the others it is an image of a lower one.
    """

    frequency: tuple[float, ...]
    hz: float | None
    ratio_db: float
    layers: tuple[str, ...]


@dataclass(frozen=True)
class RadialSpectrum:
    """Azimuthally averaged power of a two-dimensional output.

    Attributes:
        frequency: Middle of each ring, cycles per output pixel.
        power_db: Mean power in the ring over the mean power of all rings, 10 log10.
    """

    frequency: tuple[float, ...]
    power_db: tuple[float, ...]


def high_pass(values: Array, period: Sequence[int]) -> Array:
    """What is left of an output without its running mean over one period.

    The mean is taken by the symmetric windows [1, .., 1] / S for odd and [1/2, 1, .., 1, 1/2] / S for
    even S along each axis. Their transforms vanish at all multiples of 1/S but zero: the grid passes
    unchanged along each axis, constants and ramps vanish. Without this the picture itself, which
    is no noise, would be counted as variance within phases, and its slope as a grid.

    Returns:
        The residual where the window fits, S // 2 pixels smaller at each end.
    """
    mean, middle = values, values
    for axis, s in enumerate(period, start=2):
        sums = np.cumsum(mean, axis=axis)
        n = mean.shape[axis]
        # A zero in front: a sum over a window is the difference of two running sums.
        before = np.concatenate([np.zeros_like(sums[_at(axis, slice(0, 1))]), sums], axis)
        boxes = (before[_at(axis, slice(s, None))] - before[_at(axis, slice(0, n + 1 - s))]) / s
        # Two neighbouring windows of even length, averaged, are centred on a pixel.
        if s % 2 == 0:
            boxes = (boxes[_at(axis, slice(1, None))] + boxes[_at(axis, slice(0, -1))]) / 2
        mean = boxes
        middle = middle[_at(axis, slice(s // 2, n - s // 2))]
    return middle - mean


def spectral_peaks(
    values: NDArray[Any],
    period: Sequence[int],
    periods: Mapping[str, tuple[int, ...]],
    sample_rate: float | None = None,
) -> tuple[Peak, ...]:
    """How far the frequencies of the grid stand out of a spectrum.

    The high-pass residual is cropped to whole periods, so that each j/S is a frequency of the discrete
    Fourier transform, and put under a Hann window, which leaves a tone in its own and the two
    frequencies beside it. Powers are averaged over samples and channels. Each is held against the
    median of the frequencies up to 6 steps away, those beside it left out.

    Args:
        values: (N, C, *spatial).
        period: The longest of the grids' periods, per axis.
        periods: Of each layer's grid, to which peaks are attributed.
        sample_rate: Of the output, in Hz.

    Returns:
        Every frequency j/S along one axis, then those off the axes that stand out by 10 dB or more.
        Nothing if there are fewer than four whole periods along an axis.
    """
    found_power = _grid_power(values, period)
    if found_power is None:
        return ()
    power, counts = found_power
    ndim = len(period)
    # Frequencies around each line without the line and those beside it, where the window leaks.
    reach = [min(n // 2, _NEIGHBOURS) for n in counts]
    around = np.array(
        [
            offset
            for offset in itertools.product(*(range(-r, r + 1) for r in reach))
            if max(map(abs, offset)) > 1
        ]
    )
    found = []
    for multiples in itertools.product(*(range(s) for s in period)):
        opposite = tuple(-j % s for j, s in zip(multiples, period, strict=True))
        # u and -u are one tone of a real output.
        if not any(multiples) or multiples > opposite:
            continue
        # With n whole periods j/S is line j*n of the transform.
        at = np.array([j * n for j, n in zip(multiples, counts, strict=True)])
        near = (at + around) % power.shape
        background = float(np.median(power[tuple(near.T)]))
        ratio_db = _power_db(float(power[tuple(at)]), background)
        on_axis = sum(j > 0 for j in multiples) == 1
        frequency = tuple(Fraction(j, s) for j, s in zip(multiples, period, strict=True))
        if not on_axis and ratio_db < _STANDS_OUT_DB:
            continue
        # Frequencies above one half are negative ones.
        signed = tuple(float(f if f <= Fraction(1, 2) else f - 1) for f in frequency)
        hz = signed[0] * sample_rate if ndim == 1 and sample_rate is not None else None
        found.append((on_axis, Peak(signed, hz, ratio_db, layers_with(frequency, periods))))
    found.sort(key=lambda peak: (not peak[0], 0.0 if peak[0] else -peak[1].ratio_db))
    return tuple(peak for _, peak in found)


def axis_spectrum(
    values: NDArray[Any], period: Sequence[int], axis: int
) -> tuple[Array, Array] | None:
    """The spectrum in which `spectral_peaks` looks for peaks, along one axis.

    Args:
        values: (N, C, *spatial).
        period: The longest of the grids' periods, per axis.
        axis: The spatial axis; the frequency is zero along the others.

    Returns:
        Frequencies from 0 to 1/2, in cycles per pixel, and the power at each, both (n,). None where
        `spectral_peaks` gives nothing.
    """
    found = _grid_power(values, period)
    if found is None:
        return None
    power, _ = found
    along = np.moveaxis(power, axis, 0).reshape(power.shape[axis], -1)[:, 0]
    frequency = np.arange(len(along) // 2 + 1) / len(along)
    return frequency, along[: len(frequency)]


def radial_spectrum(values: NDArray[Any]) -> RadialSpectrum | None:
    """The power of a picture by distance from the origin of its spectrum, averaged over directions.

    Each channel's mean is taken off, a Hann window laid over; powers are averaged over samples and
    channels, then over rings 1/64 cycles per pixel wide up to the corner at sqrt(1/2).

    Args:
        values: (N, C, H, W); None is returned for another number of axes, or less than 8 pixels.
    """
    if values.ndim != 4 or min(values.shape[2:]) < 8:
        return None
    values = manageable(values)
    power = _power(values - values.mean((2, 3), keepdims=True))
    vertical, horizontal = (np.fft.fftfreq(n) for n in values.shape[2:])
    radius = np.hypot(vertical[:, None], horizontal[None, :])
    # The number of the ring for each frequency, for one sum per ring.
    ring = np.floor(radius * _RADIAL_BINS).astype(np.int64).ravel()
    sums, counts = np.bincount(ring, power.ravel()), np.bincount(ring)
    rings = np.nonzero(counts)[0]
    means = sums[rings] / counts[rings]
    reference = float(means.mean())
    return RadialSpectrum(
        tuple(float(ring + 0.5) / _RADIAL_BINS for ring in rings),
        tuple(_power_db(float(mean), reference) for mean in means),
    )


def _grid_power(values: NDArray[Any], period: Sequence[int]) -> tuple[Array, list[int]] | None:
    """Power of the high-pass residual at each frequency, and the number of whole periods per axis."""
    values = manageable(values)
    if any(n < 2 * s for n, s in zip(values.shape[2:], period, strict=True)):
        return None
    residual = high_pass(values, period)
    counts = [n // s for n, s in zip(residual.shape[2:], period, strict=True)]
    if min(counts) < FEWEST_CELLS:
        return None
    whole = spatial_index(slice(0, n * s) for n, s in zip(counts, period, strict=True))
    return _power(residual[whole]), counts


def _at(axis: int, part: slice) -> tuple[Any, ...]:
    """The index of a part of one axis."""
    return (*[slice(None)] * axis, part)


def spatial_index(parts: Iterable[slice]) -> tuple[Any, ...]:
    """The index of a part of the last axes."""
    return (..., *parts)


def _power(values: Array) -> Array:
    """Power under a Hann window at each frequency, the mean over samples and channels."""
    for axis in range(2, values.ndim):
        n = values.shape[axis]
        shape = [1] * values.ndim
        shape[axis] = n
        values = values * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)).reshape(shape)
    lines = np.fft.fftn(values, axes=tuple(range(2, values.ndim)))
    power: Array = np.mean(np.abs(lines) ** 2, axis=(0, 1))
    return power


def _power_db(power: float, reference: float) -> float:
    if power <= 0:
        return 0.0 if reference <= 0 else LOWEST_DB
    if reference <= 0:
        return -LOWEST_DB
    return min(max(10 * math.log10(power / reference), LOWEST_DB), -LOWEST_DB)


def manageable(values: NDArray[Any]) -> Array:
    """In float64, and not more than can be looked at in a moment."""
    per_sample = max(1, math.prod(values.shape[1:]))
    # Whole samples first, and then the middle of each.
    values = values[: max(1, _MOST_ELEMENTS // per_sample)]
    excess = per_sample / _MOST_ELEMENTS
    if excess > 1:
        keep = [int(n / excess ** (1 / (values.ndim - 2))) for n in values.shape[2:]]
        starts = [(n - k) // 2 for n, k in zip(values.shape[2:], keep, strict=True)]
        values = values[spatial_index(slice(b, b + k) for b, k in zip(starts, keep, strict=True))]
    wide: Array = values.astype(np.float64)
    return wide
