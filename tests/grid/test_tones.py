"""Tones that are locked to the phase: found where they are, and not in true sounds."""

import numpy as np
import pytest

from deconvfix.grid.tones import (
    locked_tones,
    quietest,
    rms,
    tone_table,
    without_locked,
)

PERIOD, RATE = 32, 8000


def programme(count=24, seconds=0.5, seed=0):
    """Notes with harmonics, some of them on the very frequencies of the layers, fading; a bit of noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    sounds = []
    for number in range(count):
        pitch = 250 if number % 3 == 0 else rng.uniform(110, 440)
        start, phase = rng.uniform(0, seconds), rng.uniform(0, 2 * np.pi)
        envelope = np.where(t < start, 0, np.exp(-(t - start) / 0.08))
        note = sum(np.sin(2 * np.pi * pitch * n * t + n * phase) / n for n in (1, 2, 3))
        sounds.append(envelope * note + 1e-3 * rng.standard_normal(len(t)))
    return np.array(sounds)[:, None]


def tone(level_db, like, multiple=3):
    """At a multiple of one over the period, so far below the programme."""
    n = np.arange(like.shape[2])
    amplitude = np.sqrt(2) * rms(like) * 10 ** (level_db / 20)
    return amplitude * np.sin(2 * np.pi * multiple * n / PERIOD + 0.7)


def test_a_true_sound_has_none():
    found = locked_tones(programme(), (PERIOD,))
    assert found.total_db == -300
    assert found.frequency is None
    assert not found.is_heard
    assert found.in_words() == "none"


@pytest.mark.parametrize("level", [-30.0, -50.0, -62.0])
def test_a_tone_is_found_with_its_level_and_frequency(level):
    sounds = programme()
    found = locked_tones(sounds + tone(level, sounds), (PERIOD,), like=sounds, sample_rate=RATE)
    assert found.strongest_db == pytest.approx(level, abs=1.0)
    assert found.total_db == pytest.approx(level, abs=1.0)
    assert (found.frequency, found.hz) == (3 / PERIOD, 750)
    assert found.is_heard is (level > -60)
    assert f"{-level:.0f} dB below the programme (the strongest, at 750 Hz" in found.in_words()


def test_the_tone_at_half_the_sample_rate_is_its_own_mirror_image():
    sounds = programme()
    n = np.arange(sounds.shape[2])
    alternating = rms(sounds) * 1e-2 * (-1.0) ** n
    found = locked_tones(sounds + alternating, (PERIOD,), like=sounds)
    assert found.strongest_db == pytest.approx(-40, abs=0.5)
    assert found.frequency == 0.5


def test_tones_add_up():
    sounds = programme()
    both = tone(-40.0, sounds) + tone(-40.0, sounds, multiple=5)
    found = locked_tones(sounds + both, (PERIOD,), like=sounds)
    assert found.total_db == pytest.approx(-37, abs=0.5)


def test_without_them_the_sound_is_what_it_was():
    sounds = programme()
    heard = sounds + tone(-40.0, sounds)
    left = without_locked(heard, (PERIOD,))
    # What is left of the tone is far below it.
    assert rms(left - sounds) < 0.1 * rms(heard - sounds)
    assert locked_tones(left, (PERIOD,), like=sounds).total_db < -60
    table = tone_table(heard, (PERIOD,))
    np.testing.assert_allclose(table[0], tone(-40.0, sounds)[:PERIOD], atol=0.1 * np.ptp(table))
    # A true sound loses nothing.
    assert np.array_equal(without_locked(sounds, (PERIOD,)), sounds)


def test_pictures_are_left_to_the_visible_grid():
    values = np.random.default_rng(0).standard_normal((1, 3, 32, 32))
    values[..., ::2, ::2] += 3.0
    left = without_locked(values, (2, 2))
    assert abs(left[..., ::2, ::2].mean() - left.mean()) < 0.5


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((4, 1, 2048)),
        np.full((4, 1, 2048), np.nan),
        np.ones((4, 1, 7 * PERIOD)),
        np.ones((1, 1, 16 * PERIOD)),
    ],
    ids=["silent", "not finite", "too short", "too few stretches"],
)
def test_what_cannot_be_measured(values):
    assert locked_tones(values, (PERIOD,)) is None


def test_silence_is_where_the_output_is_quietest():
    x = np.arange(2 * 3 * 10, dtype=np.float32).reshape(2, 3, 10)
    mask = np.ones((2, 3), np.float32)
    output = np.ones((2, 1, 80))
    output[1, :, 40:64] = 0.01  # frames 5 to 7 of the second sample
    power, (constant, same) = quietest([x, mask], output)
    assert power == pytest.approx(1e-4)
    assert same is mask
    assert constant.shape == x.shape
    np.testing.assert_array_equal(constant, np.broadcast_to(x[1, :, 6, None], x.shape))
