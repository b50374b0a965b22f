"""Pictures of evidence."""

import numpy as np
import pytest

from deconvfix.diagnose.evidence import Evidence, Pair
from deconvfix.report.pictures import AMPLIFIED, draw
from tests.support.pages import STEP, pixels_of, spectrum, texts_of, tone


def grid(size, height, level=0.0):
    """A checkerboard of three channels, each on a level of its own."""
    board = height * (-1.0) ** np.add.outer(np.arange(size), np.arange(size))
    return board + level + np.arange(3)[:, None, None]


def drawn(**parts):
    return draw(Evidence(**{"flat": None, "sample": None, **parts}))


@pytest.mark.parametrize("left", [1.0, 0.5, 0.1, 0.0])
def test_flat_pictures_share_one_contrast(left):
    """What is left of a grid must be seen in its proportion; the level may move."""
    before, after = drawn(flat=Pair("a constant", grid(40, 0.01), grid(40, 0.01 * left, level=5)))
    old, new = (pixels_of(each.uri) for each in (before, after))
    assert np.ptp(old) == 1
    assert np.ptp(new) == pytest.approx(left, abs=2 * STEP)
    assert before.title.startswith("before; black to white: 0.02 around")
    assert after.title.removeprefix("after") == before.title.removeprefix("before")


def test_rounding_is_not_enlarged_to_a_grid():
    """A grid of one part in ten million is that of float32, and nothing."""
    before, after = drawn(flat=Pair("a constant", grid(40, 1e-7), grid(40, 0.0)))
    assert np.ptp(pixels_of(before.uri)) < 0.2
    assert np.ptp(pixels_of(after.uri)) == 0


def test_the_difference_is_enlarged_as_it_says():
    rng = np.random.default_rng(0)
    old = rng.random((3, 24, 24))
    old[0, 0, :2] = 0, 1  # the contrast
    new = old + 0.02 * rng.standard_normal(old.shape)
    pair = Pair("the example input", old, new)
    before, after, difference = drawn(sample=pair)
    assert difference.title == f"difference x{AMPLIFIED:g}"
    shown = pixels_of(difference.uri)[4::8, 4::8] - 0.5
    want = (AMPLIFIED * (new - old)).transpose(1, 2, 0).clip(-0.5, 0.5)
    np.testing.assert_allclose(shown, want, atol=STEP)
    plain = pixels_of(after.uri) - pixels_of(before.uri)
    assert np.abs(plain).max() < np.abs(shown).max() / 2


def test_equal_outputs_differ_by_gray():
    [*_, difference] = drawn(sample=Pair("x", grid(16, 1.0), grid(16, 1.0)))
    np.testing.assert_allclose(pixels_of(difference.uri), 0.5, atol=STEP)


def test_signals_are_curves_and_volumes_are_shown_through_their_middle():
    rng = np.random.default_rng(0)
    signal = rng.random((1, 400))
    [curve] = drawn(sample=Pair("x", signal, signal))
    assert curve.wide
    assert {"before", "after", "sample"} <= set(texts_of(curve.uri))
    volume = rng.random((1, 5, 32, 32))
    first, *_ = drawn(sample=Pair("x", volume, volume))
    plane, *_ = drawn(sample=Pair("x", volume[:, 2], volume[:, 2]))
    assert first.uri == plane.uri


def test_a_spectrum_names_the_layers_at_their_tones():
    tones = [tone((0.0, 0.25), ("up1",)), tone((0.0, 0.5), ("up2", "up1"))]
    [picture] = drawn(spectra=(spectrum(tones),))
    words = " ".join(texts_of(picture.uri))
    assert words.count("up1") == 2
    assert words.count("up2") == 1
    assert "cycles per pixel" in words
    assert picture.title.startswith("along the horizontal axis")
    assert picture.wide
    [bare] = drawn(spectra=(spectrum([]),))
    assert "up1" not in " ".join(texts_of(bare.uri))


def test_a_spectrum_of_sound_is_in_hz():
    tones = [tone((0.125,), ("up2", "up1"), hz=1000.0)]
    [picture] = drawn(spectra=(spectrum(tones, axes=1, axis=0, sample_rate=8000.0),))
    words = texts_of(picture.uri)
    assert "Hz" in words
    assert "4000" in words
    [without] = drawn(spectra=(spectrum(tones, axes=1, axis=0),))
    assert "cycles per sample" in texts_of(without.uri)
