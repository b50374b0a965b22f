"""Tones that are locked to the phase of the layers, in real sounds: how loud, and at which frequency.

What repeats with the period P of the layers is heard as tones at multiples of 1 / P. But a programme has
tones of its own, which may lie there too: means over some periods, which show a grid in pictures, show in
true sounds the sounds. A tone of the layers begins at the same phase in every stretch of every sound; those
of a programme do not. So the spectra of stretches (of 16 periods, with a Hann window) are averaged with their
phases. A stretch counts the less the more the programme has beside the tone, at neighbouring frequencies,
and the more it departs from the others at the tone itself. Levels are of the rms, relative to that of the
whole sound: the programme. True sounds have none; a network has here about what it plays in silence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from deconvfix.core.decibels import LOWEST_DB, decibels
from deconvfix.grid.visible import without_grid

__all__ = [
    "AUDIBLE_DB",
    "LockedTones",
    "level_in_words",
    "locked_tones",
    "quietest",
    "rms",
    "tone_table",
    "without_locked",
    "without_tones",
]

# Below this part of the programme what is locked to the phase is not heard.
AUDIBLE_DB = -60.0
# Periods of a stretch, the most and the fewest; neighbours lie within half the distance of two tones.
_REPEATS, _FEWEST_REPEATS = 16, 8
_NEAR, _FAR = 3, 6
_FEWEST_STRETCHES = 4
# Power of a mean over its variance from which on it is more than chance: of 100 tones one in 200 cases.
_SIGNIFICANT = 10.0
_ROUNDS = 10

Spectrum = NDArray[np.complex128]


@dataclass(frozen=True)
class LockedTones:
    """The tones in a sound that are locked to the phase of the layers.

    Attributes:
        total_db: Of all together, relative to the programme; -300 where there is no more than chance.
        strongest_db: Of the strongest.
        frequency: Of the strongest, in cycles per sample; None where there is none.
        hz: The same in Hz; None without a sample rate.
    """

    total_db: float
    strongest_db: float
    frequency: float | None
    hz: float | None

    @property
    def is_heard(self) -> bool:
        """Whether they are loud enough beside the programme."""
        return self.total_db > AUDIBLE_DB

    def in_words(self) -> str:
        """How loud they are, and the strongest."""
        if self.frequency is None:
            return "none"
        at = f"{self.frequency:.4g} per sample" if self.hz is None else f"{self.hz:g} Hz"
        strongest = level_in_words(self.strongest_db)
        return f"{level_in_words(self.total_db)} (the strongest, at {at}, {strongest})"


def level_in_words(level_db: float) -> str:
    """A level relative to the programme."""
    if level_db <= LOWEST_DB:
        return "none"
    return f"{abs(level_db):.0f} dB {'below' if level_db <= 0 else 'above'} the programme"


def rms(values: NDArray[Any]) -> float:
    """Of all values; 0 where there is none."""
    return math.sqrt(float(np.mean(values.astype(np.float64) ** 2))) if values.size else 0.0


def locked_tones(
    values: NDArray[Any],
    period: Sequence[int],
    *,
    like: NDArray[Any] | None = None,
    sample_rate: float | None = None,
) -> LockedTones | None:
    """Measures the tones of a sound that are locked to the phase.

    Args:
        values: (N, C, L).
        period: Of the grid, in samples, one number.
        like: The sound whose rms is that of the programme; None: its own.
        sample_rate: In Hz.

    Returns:
        None where the sound is too short or silent, or has values that are not finite.
    """
    programme = rms(values if like is None else like)
    spectrum = _spectrum(values, period[0])
    if spectrum is None or not programme or not math.isfinite(programme):
        return None
    power = (np.abs(spectrum) ** 2).mean(0)
    # A tone and its mirror image, but for that of half the sample rate.
    power *= np.where(2 * np.arange(1, len(power) + 1) == period[0], 1.0, 2.0)
    strongest = int(power.argmax())
    levels = [decibels(math.sqrt(p) / programme) for p in (power.sum(), power[strongest])]
    frequency = (strongest + 1) / period[0] if power[strongest] else None
    hz = None if sample_rate is None or frequency is None else frequency * sample_rate
    return LockedTones(levels[0], levels[1], frequency, hz)


def tone_table(values: NDArray[Any], period: Sequence[int]) -> NDArray[np.float64] | None:
    """One period of the tones, (C, P), from the first sample on; None where `locked_tones` is.

    Args:
        values: (N, C, L).
        period: Of the grid, in samples, one number.
    """
    spectrum = _spectrum(values, period[0])
    if spectrum is None:
        return None
    whole = np.concatenate([np.zeros((len(spectrum), 1)), spectrum], 1) * period[0]
    return np.fft.irfft(whole, period[0], axis=1)


def without_locked(values: NDArray[Any], period: Sequence[int]) -> NDArray[np.float64]:
    """An output less what is locked to the phase: a sound less its tones, see `visible.without_grid`.

    Args:
        values: (N, C, *spatial).
        period: Of the grid, in pixels per axis.
    """
    if len(period) != 1:
        return without_grid(values, period)
    table = tone_table(values, period)
    return values.astype(np.float64) if table is None else without_tones(values, table)


def without_tones(values: NDArray[Any], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """A sound (N, C, L) less one period of tones (C, P), repeated from the first sample on."""
    length = values.shape[2]
    left: NDArray[np.float64] = values - np.tile(table, -(-length // table.shape[1]))[:, :length]
    return left


def quietest(
    inputs: Sequence[NDArray[Any]], output: NDArray[Any]
) -> tuple[float, list[NDArray[Any]]]:
    """What a network gets where its output is quietest, as a constant: silence, as it hears it.

    Args:
        inputs: Of a run; those along time are (N, C, T).
        output: The sound, (N, C, L).

    Returns:
        Mean square of the output there, and the inputs, constant along time; all samples are alike.
    """
    along = [x for x in inputs if x.dtype.kind == "f" and x.ndim == 3]
    frames = min((x.shape[2] for x in along), default=0)
    hop = output.shape[2] // frames if frames else 0
    if not hop:
        return math.inf, list(inputs)
    power = np.square(output[..., : frames * hop], dtype=np.float64)
    # (N, C, T, hop) -> (N, T), over three frames, as layers see those beside
    loud = power.reshape(len(output), -1, frames, hop).mean((1, 3))
    loud = uniform_filter1d(loud, min(3, frames), axis=1)
    sample, frame = np.unravel_index(int(loud.argmin()), loud.shape)
    found = []
    for x in inputs:
        if x.dtype.kind == "f" and x.ndim == 3:
            at = int(frame) * x.shape[2] // frames
            x = np.ascontiguousarray(np.broadcast_to(x[sample, :, at, None], x.shape))
        found.append(x)
    return float(loud.min()), found


def _spectrum(values: NDArray[Any], period: int) -> Spectrum | None:
    """Fourier coefficients of the tones 1 .. P / 2, (C, P / 2), zero where there is no more than chance."""
    length = values.shape[2]
    repeats = min(_REPEATS, length // period)
    if period < 2 or repeats < _FEWEST_REPEATS or not np.isfinite(values).all():
        return None
    size = repeats * period
    # Half a stretch is a whole number of periods, so that all of them begin at the same phase.
    begins = range(0, length - size + 1, repeats // 2 * period)
    if len(begins) * len(values) < _FEWEST_STRETCHES:
        return None
    window = np.hanning(size + 2)[1:-1]
    stretches = np.concatenate([values[..., a : a + size] for a in begins]).astype(np.float64)
    found = np.fft.rfft(stretches * (window / window.sum()), axis=2)
    tones = repeats * np.arange(1, period // 2 + 1)
    near = np.arange(_NEAR, min(_FAR, repeats // 2 - 1) + 1)
    around = np.concatenate([tones + n for n in (*-near, *near)]).reshape(2 * len(near), -1)
    around = np.where(around < found.shape[2], around, 2 * (found.shape[2] - 1) - around)
    beside = (np.abs(found[:, :, around]) ** 2).mean(2)
    # Digital silence has nothing beside a tone; a part of the whole stands for its rounding.
    loudness = float(np.mean(stretches**2))
    if not loudness:
        return None
    beside += 1e-16 * loudness
    at = found[:, :, tones]
    mean = np.median(at.real, 0) + 1j * np.median(at.imag, 0)
    for _ in range(_ROUNDS):
        weights = 1 / (beside + np.abs(at - mean) ** 2)
        mean = (weights * at).sum(0) / weights.sum(0)
    power, variance = np.abs(mean) ** 2, 1 / weights.sum(0)
    result: Spectrum = np.where(power > _SIGNIFICANT * variance, mean, 0)
    return result
