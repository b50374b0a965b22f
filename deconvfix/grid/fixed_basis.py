"""Weights that nobody trained: bases of a transform, whose phases differ on purpose.

Vocoders and source separators end with an inverse short-time Fourier transform, wavelet networks with the
synthesis bank of a wavelet transform, both written as transposed convolutions. By their phase sums they are
nothing but grid. Each of these properties gives them away, and trained weights have none:

*A bank of narrow bands* (Allen and Rabiner 1977, doi 10.1109/PROC.1977.10770; Vaidyanathan 1993, chapter 8,
for cosine-modulated banks). Each row is a window times a sinusoid, and the frequencies of the rows are evenly
spaced: its spectrum lies in a band around its peak, and the peaks are an arithmetic progression.

*An orthonormal bank* (Vaidyanathan 1993, chapter 6: paraunitary). As many rows as each period has pixels,
each orthogonal to all others and to all shifts by multiples of the stride, and all of one length: the layer
is inverted by its own transpose.

*A windowed Fourier basis* of few taps, whose bands are too wide to be told apart: one row is the window, and
each other one is the window times a sinusoid of a whole number of periods.

*Wavelets of stride 2 that are not orthonormal* (Cohen, Daubechies and Feauveau 1992,
doi 10.1002/cpa.3160450502; 5/3 and 9/7 of JPEG 2000): a low pass answers a constant without a grid, a high
pass with an alternation alone, so the phase sums of each row are equal but for signs, those of a Hadamard
matrix.

*Insertion of zeros*: each input channel goes to one pixel of each period, and nowhere else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec

__all__ = ["fixed_basis"]

Array = NDArray[np.float64]

# So much of the energy of a row lies in its band: 90 % for a rectangular window, more for all others.
_BAND_ENERGY = 0.85
# Fewer rows than this could be narrow and evenly spaced by chance.
_FEWEST_BANDS = 8
# How far the peaks may be from evenly spaced, in parts of the spacing.
_UNEVEN = 0.3
# Rounding of stored weights, and tables of few digits, relative to the length of a row. Cosine-modulated
# banks are orthonormal to 0.3 % (Nguyen 1994, doi 10.1109/78.258122).
_ORTHONORMAL = 0.01
_ZOOM = 8
# Rounding of stored weights and tables of few digits, where numbers should be equal.
_SAME = 2e-3
# Fewer taps, or frequencies, could be sinusoids by chance.
_FEWEST_TAPS, _FEWEST_FREQUENCIES = 6, 3


def fixed_basis(spec: ConvTransposeSpec, weight: Array) -> str | None:
    """What a weight is a basis of, in words; None if it may have been trained.

    A layer with a bias is taken for trained.

    Args:
        spec: The layer.
        weight: (C_in, C_out / groups, *kernel_size).
    """
    # A transform has no offset, and torch's layers have a bias unless it is switched off.
    if spec.bias or not np.isfinite(weight).all() or not weight.any():
        return None
    groups = np.split(weight, spec.groups)
    if math.prod(spec.stride) > 1 and _inserts_zeros(groups):
        return "the insertion of zeros between the pixels"
    if all(map(_is_narrow, groups)) or all(map(_is_windowed_fourier, groups)):
        return "the windowed sinusoids of a synthesis filter bank, such as an inverse Fourier transform"
    if spec.dilation == (1,) * spec.ndim and all(_is_orthonormal(spec, group) for group in groups):
        return "an orthonormal synthesis filter bank, such as a wavelet transform"
    if all(_is_biorthogonal(spec, group) for group in groups):
        return "the synthesis bank of a biorthogonal wavelet transform"
    return None


def _inserts_zeros(groups: Sequence[Array]) -> bool:
    """Whether each row has one tap, all alike, and no two go to the same output channel."""
    # (C_in, C_out / groups * taps)
    sizes = np.abs(np.concatenate([group.reshape(len(group), -1) for group in groups]))
    channels = [np.abs(group).max(tuple(range(2, group.ndim))) for group in groups]
    return bool(
        len(sizes) > 1
        and ((sizes > 0).sum(1) == 1).all()
        and np.ptp(sizes.max(1)) <= _SAME * sizes.max()
        and all(((own > 0).sum(0) <= 1).all() for own in channels)
    )


def _is_windowed_fourier(group: Array) -> bool:
    """Whether the rows, (C_in, 1, *k) along one axis of taps, are one of them times sinusoids."""
    taps = [k for k in group.shape[2:] if k > 1]
    if group.shape[1] != 1 or len(taps) != 1 or taps[0] < _FEWEST_TAPS:
        return False
    rows = group.reshape(len(group), -1)
    rows = rows[(rows**2).sum(1) > 1e-12 * (rows**2).sum(1).max()]
    if len(rows) > 2 * taps[0]:
        return False
    phase = 2 * np.pi / taps[0] * np.arange(taps[0])
    for window in rows:
        if (window * np.sign(window.sum()) < -_SAME * np.abs(window).max()).any():
            continue
        found = set()
        for row in rows:
            # What is left of the row beside the best sinusoid of each number of periods.
            left = []
            for periods in range(taps[0] // 2 + 1):
                pair = window[:, None] * np.stack(
                    [np.cos(periods * phase), np.sin(periods * phase)], 1
                )
                weights = np.linalg.lstsq(pair, row, rcond=None)[0]
                left.append(float(np.linalg.norm(row - pair @ weights)))
            if min(left) > _SAME * np.linalg.norm(row):
                break
            found.add(int(np.argmin(left)))
        else:
            # Rows of one frequency are multiples of each other, as those of a separable layer are.
            return len(found) >= _FEWEST_FREQUENCIES
    return False


def _is_biorthogonal(spec: ConvTransposeSpec, group: Array) -> bool:
    """Whether the phase sums of the rows are those of a Hadamard matrix, each row times a number."""
    rows = len(group)
    if set(spec.stride) != {2} or group.shape[1] != 1 or rows != 2**spec.ndim:
        return False
    phases = itertools.product(*(range(2) for _ in range(spec.ndim)))
    # (rows, phases): dilation moves taps to other phases, so their places are counted in pixels.
    sums = np.zeros((rows, rows))
    places = [np.arange(k) * d % 2 for k, d in zip(spec.kernel_size, spec.dilation, strict=True)]
    for index, phase in enumerate(phases):
        chosen = [np.flatnonzero(place == at) for place, at in zip(places, phase, strict=True)]
        taps = group[:, 0]
        for axis, kept in enumerate(chosen, 1):
            taps = taps.take(kept, axis)
        sums[:, index] = taps.reshape(rows, -1).sum(1)
    sizes = np.abs(sums).max(1)
    if not (sizes > 0).all() or np.abs(np.abs(sums) / sizes[:, None] - 1).max() > _SAME:
        return False
    signs = np.sign(sums)
    return bool(np.array_equal(signs @ signs.T, rows * np.eye(rows)))


def _is_narrow(group: Array) -> bool:
    """Whether the rows, (C_in, 1, *k) along one axis of taps, are narrow bands at even distances."""
    taps = [k for k in group.shape[2:] if k > 1]
    if group.shape[1] != 1 or len(taps) != 1:
        return False
    rows = group.reshape(len(group), -1)
    # Rows of zeros, such as the sine of the frequency 0, have no peak.
    rows = rows[(rows**2).sum(1) > 1e-12 * (rows**2).sum(1).max()]
    length = rows.shape[1]
    if len(rows) < _FEWEST_BANDS:
        return False
    # Zero-padded, so that peaks between the frequencies of the transform are found.
    power = np.abs(np.fft.rfft(rows, _ZOOM * length)) ** 2  # (rows, frequencies up to one half)
    peaks = power.argmax(1)
    # Two main lobes of a window of this length, or the distance of the bands where that is more.
    spread = np.sort(np.unique(np.round(peaks / _ZOOM)))
    if len(spread) < max(_FEWEST_BANDS, len(rows) // 2 - 1):
        return False
    # The median, as bands may be left out at either end.
    steps = np.diff(spread)
    spacing = float(np.median(steps))
    if np.abs(steps - spacing).max() > max(1.0, _UNEVEN * spacing):
        return False
    reach = round(_ZOOM * max(2.0, spacing))
    frequencies = np.arange(power.shape[1])
    inside = np.abs(frequencies - peaks[:, None]) <= reach
    # A band that covered most of the spectrum would hold anything.
    if 2 * reach > power.shape[1] / 2:
        return False
    return bool(((power * inside).sum(1) >= _BAND_ENERGY * power.sum(1)).all())


def _is_orthonormal(spec: ConvTransposeSpec, group: Array) -> bool:
    """Whether rows and their shifts by the stride are orthogonal, of one length, and complete."""
    rows = len(group)
    # Fewer rows than pixels span no whole space, and more cannot be orthogonal.
    if rows < 2 or rows != group.shape[1] * math.prod(spec.stride):
        return False
    length = float((group**2).sum()) / rows
    for shift in itertools.product(
        *(range(0, k, s) for k, s in zip(spec.kernel_size, spec.stride, strict=True))
    ):
        # The parts of two kernels that overlap, for each direction of the shift on each axis.
        for forward in itertools.product(*((True,) if n == 0 else (True, False) for n in shift)):
            late = [slice(n, None) for n in shift]
            early = [slice(0, k - n) for n, k in zip(shift, spec.kernel_size, strict=True)]
            pairs = list(zip(forward, late, early, strict=True))
            one = tuple(a if is_forward else b for is_forward, a, b in pairs)
            other = tuple(b if is_forward else a for is_forward, a, b in pairs)
            gram = np.tensordot(
                group[(..., *one)], group[(..., *other)], (range(1, group.ndim),) * 2
            )
            wanted = length * np.eye(rows) if not any(shift) else np.zeros((rows, rows))
            if np.abs(gram - wanted).max() > _ORTHONORMAL * length:
                return False
    return True
