"""Weights that nobody trained: bases of a transform, whose phases differ on purpose.

Vocoders and source separators end with an inverse short-time Fourier transform, wavelet networks with the
synthesis bank of a wavelet transform, both written as transposed convolutions. By their phase sums they are
nothing but grid. Two properties give them away, and trained weights have neither:

*A bank of narrow bands* (Allen and Rabiner 1977, doi 10.1109/PROC.1977.10770; Vaidyanathan 1993, chapter 8,
for cosine-modulated banks). Each row is a window times a sinusoid, and the frequencies of the rows are evenly
spaced: its spectrum lies in a band around its peak, and the peaks are an arithmetic progression.

*An orthonormal bank* (Vaidyanathan 1993, chapter 6: paraunitary). As many rows as each period has pixels,
each orthogonal to all others and to all shifts by multiples of the stride, and all of one length: the layer
is inverted by its own transpose.
"""

from __future__ import annotations

import itertools
import math

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
    if all(map(_is_narrow, groups)):
        return "the windowed sinusoids of a synthesis filter bank, such as an inverse Fourier transform"
    if spec.dilation == (1,) * spec.ndim and all(_is_orthonormal(spec, group) for group in groups):
        return "an orthonormal synthesis filter bank, such as a wavelet transform"
    return None


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
