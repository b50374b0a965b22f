"""Grids in real outputs: variance explained by phase, spectral peaks, radial spectra. Arrays only.

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

from deconvfix.artifacts import LOWEST_DB
from deconvfix.grids import layers_with

__all__ = [
    "Peak",
    "PhaseVariance",
    "RadialSpectrum",
    "f_survival",
    "high_pass",
    "phase_variance",
    "radial_spectrum",
    "spectral_peaks",
]

Array = NDArray[np.float64]

# More of an output is not looked at: whole samples first, then the middle of them.
_MOST_ELEMENTS = 2**22
_FEWEST_CELLS = 4
# Peaks off the axes are told from here on; in noise one in a thousand gets there.
_STANDS_OUT_DB = 10.0
_NEIGHBOURS = 6
_RADIAL_BINS = 64
_EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class PhaseVariance:
    """Analysis of variance of an output by phase, see `phase_variance`.

    Attributes:
        period: Of the grid, in output pixels per axis.
        layers: Those whose grid has this period, or a multiple of it.
        share: Of the variance of the high-pass residual, what the phase explains, 0 to 1. Without a
            grid 1 / cells is to be expected.
        rms: Root mean square of the grid, in units of the output.
        f_statistic: Variance between phases over what the variance within phases explains.
        p_value: Probability of an F as large as that without a grid.
        cells: Number of whole periods that were compared.
    """

    period: tuple[int, ...]
    layers: tuple[str, ...]
    share: float
    rms: float
    f_statistic: float
    p_value: float
    cells: int


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
        before = np.concatenate([np.zeros_like(sums[_at(axis, slice(0, 1))]), sums], axis)
        boxes = (before[_at(axis, slice(s, None))] - before[_at(axis, slice(0, n + 1 - s))]) / s
        if s % 2 == 0:
            boxes = (boxes[_at(axis, slice(1, None))] + boxes[_at(axis, slice(0, -1))]) / 2
        mean = boxes
        middle = middle[_at(axis, slice(s // 2, n - s // 2))]
    return middle - mean


def phase_variance(
    values: NDArray[Any], period: Sequence[int], layers: Sequence[str] = ()
) -> PhaseVariance | None:
    """Analysis of variance of an output by phase: is there a grid, and how strong is it?

    The high-pass residual (`high_pass`) is cut into cells of one period. Each cell i is one observation
    of a vector x_i: its pixels of all channels, each channel's mean taken off. Without a grid the mean
    vector m of n cells is noise:

        F = n |m|^2 / tr(V),    V the covariance of the x_i

    is 1 on average. Pixels within a cell are correlated, so the degrees of freedom are those of Box's
    approximation (Box 1954, doi 10.1214/aoms/1177728786; in repeated-measures analyses Greenhouse and
    Geisser 1959), tr(V)^2 / tr(V^2) and n - 1 times that, with tr(V^2) estimated without bias (Bai and
    Saranadasa 1996). With white noise and one channel this is the F test of a one-way analysis.

    Neighbouring cells count as independent, and positions as equal: textures that are longer than a cell
    make p a few times too small, and pictures that are all aligned with the grid (centred digits) have
    phases of their own. A grid that is there usually gives a p far below 1e-6.

    Args:
        values: (N, C, *spatial).
        period: Of the grid, per axis.
        layers: Whose grid it is.

    Returns:
        None if there are fewer than four whole periods.
    """
    values = _manageable(values)
    if any(n < 2 * s + s for n, s in zip(values.shape[2:], period, strict=True)):
        return None
    cells = _cells(high_pass(values, period), period)
    count = len(cells)
    if count < _FEWEST_CELLS:
        return None
    x = (cells - cells.mean(2, keepdims=True)).reshape(count, -1)
    channels, most = cells.shape[1], cells.shape[1] * (cells.shape[2] - 1)
    mean = x.mean(0)
    between = count * float(mean @ mean)
    total = float(np.vdot(x, x))
    # What rounding leaves in an output without any noise.
    floor = x.size * (_EPS * float(np.abs(values).max(initial=0))) ** 2
    if total <= floor:
        return PhaseVariance(tuple(period), tuple(layers), 0.0, 0.0, 0.0, 1.0, count)
    deviations = x - mean
    variance = max(total - between, floor) / (count - 1)
    # tr(V^2) from the smaller of the two products.
    product = deviations @ deviations.T if count < x.shape[1] else deviations.T @ deviations
    squared = float(np.vdot(product, product)) / (count - 1) ** 2
    unbiased = (
        (squared - variance**2 / (count - 1)) * (count - 1) ** 2 / ((count + 1) * (count - 2))
    )
    freedom = min(variance**2 / unbiased, most) if unbiased > 0 else most
    freedom = max(freedom, 1.0)
    statistic = between / variance
    return PhaseVariance(
        period=tuple(period),
        layers=tuple(layers),
        share=between / total,
        rms=math.sqrt(float(mean @ mean) / (channels * cells.shape[2])),
        f_statistic=statistic,
        p_value=f_survival(statistic, freedom, freedom * (count - 1)),
        cells=count,
    )


def f_survival(statistic: float, numerator: float, denominator: float) -> float:
    """Probability that an F-distributed number exceeds `statistic`.

    The regularised incomplete beta function by Lentz's continued fraction (Press et al., Numerical
    Recipes, section 6.4); NumPy has none, and this is all that SciPy would be needed for.

    Args:
        statistic: The number.
        numerator: Degrees of freedom of the numerator.
        denominator: Degrees of freedom of the denominator.
    """
    if statistic <= 0:
        return 1.0
    a, b = denominator / 2, numerator / 2
    x = denominator / (denominator + numerator * statistic)
    if x <= 0:
        return 0.0
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(max(scale + a * math.log(x) + b * math.log1p(-x), -745.0)) if x < 1 else 0.0
    if x < (a + 1) / (a + b + 2):
        return min(front * _beta_fraction(a, b, x) / a, 1.0)
    return max(1 - front * _beta_fraction(b, a, 1 - x) / b, 0.0)


def _beta_fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    result = d
    # It converges in about sqrt(max(a, b)) rounds.
    for m in range(1, 200 + int(10 * math.sqrt(max(a, b)))):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 + term * d, 1 + term / c
            d = 1 / (d if abs(d) > tiny else tiny)
            c = c if abs(c) > tiny else tiny
            result *= d * c
        if abs(d * c - 1) < 1e-14:
            break
    return result


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
    values = _manageable(values)
    if any(n < 2 * s for n, s in zip(values.shape[2:], period, strict=True)):
        return ()
    residual = high_pass(values, period)
    counts = [n // s for n, s in zip(residual.shape[2:], period, strict=True)]
    if min(counts) < _FEWEST_CELLS:
        return ()
    whole = _spatial(slice(0, n * s) for n, s in zip(counts, period, strict=True))
    power = _power(residual[whole])
    ndim = len(period)
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
        if not any(multiples) or multiples > opposite:
            continue
        at = np.array([j * n for j, n in zip(multiples, counts, strict=True)])
        near = (at + around) % power.shape
        background = float(np.median(power[tuple(near.T)]))
        ratio_db = _power_db(float(power[tuple(at)]), background)
        on_axis = sum(j > 0 for j in multiples) == 1
        frequency = tuple(Fraction(j, s) for j, s in zip(multiples, period, strict=True))
        if not on_axis and ratio_db < _STANDS_OUT_DB:
            continue
        signed = tuple(float(f if f <= Fraction(1, 2) else f - 1) for f in frequency)
        hz = signed[0] * sample_rate if ndim == 1 and sample_rate is not None else None
        found.append((on_axis, Peak(signed, hz, ratio_db, layers_with(frequency, periods))))
    found.sort(key=lambda each: (not each[0], 0.0 if each[0] else -each[1].ratio_db))
    return tuple(peak for _, peak in found)


def radial_spectrum(values: NDArray[Any]) -> RadialSpectrum | None:
    """The power of a picture by distance from the origin of its spectrum, averaged over directions.

    Each channel's mean is taken off, a Hann window laid over; powers are averaged over samples and
    channels, then over rings 1/64 cycles per pixel wide up to the corner at sqrt(1/2).

    Args:
        values: (N, C, H, W); None is returned for another number of axes, or less than 8 pixels.
    """
    if values.ndim != 4 or min(values.shape[2:]) < 8:
        return None
    values = _manageable(values)
    power = _power(values - values.mean((2, 3), keepdims=True))
    vertical, horizontal = (np.fft.fftfreq(n) for n in values.shape[2:])
    radius = np.hypot(vertical[:, None], horizontal[None, :])
    ring = np.floor(radius * _RADIAL_BINS).astype(np.int64).ravel()
    sums, counts = np.bincount(ring, power.ravel()), np.bincount(ring)
    rings = np.nonzero(counts)[0]
    means = sums[rings] / counts[rings]
    reference = float(means.mean())
    return RadialSpectrum(
        tuple(float(each + 0.5) / _RADIAL_BINS for each in rings),
        tuple(_power_db(float(each), reference) for each in means),
    )


def _at(axis: int, part: slice) -> tuple[Any, ...]:
    """The index of a part of one axis."""
    return (*[slice(None)] * axis, part)


def _spatial(parts: Iterable[slice]) -> tuple[Any, ...]:
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


def _cells(residual: Array, period: Sequence[int]) -> Array:
    """(N, C, *spatial) -> (cells, C, phases)."""
    counts = [n // s for n, s in zip(residual.shape[2:], period, strict=True)]
    whole = _spatial(slice(0, n * s) for n, s in zip(counts, period, strict=True))
    pairs = [size for pair in zip(counts, period, strict=True) for size in pair]
    samples, channels = residual.shape[:2]
    # (N, C, n_1, S_1, n_2, S_2, ..) -> (N, n_1, n_2, .., C, S_1, S_2, ..)
    split = residual[whole].reshape(samples, channels, *pairs)
    ndim = len(counts)
    order = (0, *(2 + 2 * a for a in range(ndim)), 1, *(3 + 2 * a for a in range(ndim)))
    cells: Array = split.transpose(order).reshape(-1, channels, math.prod(period))
    return cells


def _manageable(values: NDArray[Any]) -> Array:
    """In float64, and not more than can be looked at in a moment."""
    per_sample = max(1, math.prod(values.shape[1:]))
    values = values[: max(1, _MOST_ELEMENTS // per_sample)]
    excess = per_sample / _MOST_ELEMENTS
    if excess > 1:
        keep = [int(n / excess ** (1 / (values.ndim - 2))) for n in values.shape[2:]]
        starts = [(n - k) // 2 for n, k in zip(values.shape[2:], keep, strict=True)]
        values = values[_spatial(slice(b, b + k) for b, k in zip(starts, keep, strict=True))]
    wide: Array = values.astype(np.float64)
    return wide
