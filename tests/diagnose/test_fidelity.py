"""The words for what became of the visible grid, and when it counts as worse."""

from dataclasses import replace

import pytest

from deconvfix.diagnose.fidelity import Fidelity, OutputChange
from deconvfix.grid.flat_field import FlatField
from deconvfix.grid.tones import LockedTones
from deconvfix.grid.visible import VisibleGrid


def change(before, after):
    return OutputChange(
        index=0,
        period=(2, 2),
        flat_before=None,
        flat_after=None,
        tones=(),
        visible_before=VisibleGrid(before, 2 * before, 20),
        visible_after=VisibleGrid(after, 2 * after, 20),
    )


@pytest.mark.parametrize(
    ("before", "after", "words", "worse"),
    [
        (1.0, 0.1, "fell from 1.00 to 0.10 steps", False),
        (1.0, 1.02, "stayed at 1.02 steps", False),
        (0.1, 0.2, "rose from 0.10 to 0.20 steps", False),
        (0.6, 0.9, "rose from 0.60 to 0.90 steps", True),
        (-0.5, 0.4, "rose from 0.00 to 0.40 steps", True),
        (-0.5, -0.1, "stayed at 0.00 steps", False),
        (-0.1, -0.5, "stayed at 0.00 steps", False),
    ],
)
def test_what_became_of_the_visible_grid(before, after, words, worse):
    output = change(before, after)
    assert f"the visible grid {words}" in output.visible_in_words()
    fidelity = Fidelity(40.0, -20.0, -120.0, outputs=(output,))
    assert fidelity.looks_worse is worse
    assert fidelity.sentence().startswith("In the smooth parts of the outputs, the visible grid")
    assert "On a constant input" in fidelity.sentence()


def test_without_a_measurement_constants_speak():
    assert Fidelity(40.0, -20.0, -120.0).sentence().startswith("On a constant input")
    assert not Fidelity(40.0, -20.0, -120.0).looks_worse


def sounding(before, after, **fields):
    """An output that is a sound, with tones of these levels."""
    heard = [LockedTones(level, level - 3, 0.25, 2000.0) for level in (before, after)]
    given = {"programme": 0.5, "snr_db": 41.0, **fields}
    return OutputChange(
        0, (8,), None, None, (), heard_before=heard[0], heard_after=heard[1], **given
    )


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [(-50.0, -62.0, False), (-62.0, -50.0, True), (-80.0, -65.0, False), (-50.0, -49.5, False)],
)
def test_sound_is_told_in_decibels_below_the_programme(before, after, worse):
    output = sounding(before, after)
    words = output.visible_in_words()
    assert f"{-before:.0f} dB below the programme (the strongest, at 2000 Hz, " in words
    assert f"{-after:.0f} dB below the programme" in words
    assert output.looks_worse is worse
    fidelity = Fidelity(60.0, -20.0, -60.0, -20.0, -60.0, outputs=(output,))
    sentence = fidelity.sentence()
    assert sentence.startswith("In the outputs, tones that are locked to the phase")
    assert "41.0 dB SNR" in sentence
    assert "steps" not in sentence
    assert "PSNR" not in sentence


def test_the_tone_on_a_constant_is_relative_to_the_programme():
    """0.005 and 0.0005 of 0.5."""
    flat = [FlatField(10.0, rms, 0.001, 0.02) for rms in (5e-3, 5e-4)]
    output = replace(sounding(-50.0, -62.0), flat_before=flat[0], flat_after=flat[1])
    fidelity = Fidelity(60.0, -20.0, -60.0, 14.0, -6.0, outputs=(output,))
    wanted = "the tone fell from 40 dB below the programme to 60 dB below the programme"
    assert wanted in fidelity.sentence()


def test_pictures_beside_sounds_are_matched_as_pictures():
    both = (sounding(-50.0, -62.0), replace(sounding(-50.0, -62.0), index=1, snr_db=None))
    assert Fidelity(33.3, -20.0, -60.0, outputs=both).match_in_words() == "33.3 dB PSNR"
    assert Fidelity(None, -20.0, -60.0).match_in_words() is None
