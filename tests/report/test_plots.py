"""Pictures by themselves."""

import numpy as np
import pytest

from deconvfix.report import plots as pictures
from deconvfix.report.plots import Mark
from tests.support.pages import STEP, pixels_of, texts_of


def test_an_image_is_the_array_with_its_pixels_enlarged():
    array = np.random.default_rng(0).random((3, 8, 12))
    got = pixels_of(pictures.image(array, 0, 1))
    assert got.shape == (192, 288, 3)
    np.testing.assert_allclose(got[12::24, 12::24], array.transpose(1, 2, 0), atol=STEP)
    assert (got[:24, :24] == got[0, 0]).all()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_channels_that_are_no_colours(channels):
    """One or two: the first in gray; more: the first three as colours."""
    array = np.random.default_rng(0).random((channels, 200, 200))
    got = pixels_of(pictures.image(array, 0, 1))
    want = array[:3] if channels >= 3 else array[[0, 0, 0]]
    np.testing.assert_allclose(got, want.transpose(1, 2, 0), atol=STEP)


def test_what_is_beyond_the_contrast_is_black_or_white():
    got = pixels_of(pictures.image(np.array([[[-9.0, 0.5, 9.0]]]), 0, 1))
    np.testing.assert_allclose(np.unique(got.round(1)), [0, 0.5, 1])


def test_a_constant_is_a_picture_too():
    assert np.ptp(pixels_of(pictures.image(np.full((1, 4, 4), 7.0)))) == 0


def test_the_same_curves_give_the_same_bytes():
    x = np.arange(50.0)
    first, second = (
        pictures.curves(x, [("before", x), ("after", -x)], x_label="Hz", y_label="dB")
        for _ in range(2)
    )
    assert first == second
    assert {"Hz", "dB", "before", "after"} <= set(texts_of(first))


def test_marks_are_named_and_names_are_no_markup():
    x = np.linspace(0, 1, 50)
    marks = [Mark(0.25, ("<b>&up", "$x^2$", "上采样")), Mark(0.75, tuple("abcde"))]
    uri = pictures.curves(x, [("before", x)], x_label="x", y_label="y", marks=marks)
    words = " ".join(texts_of(uri))
    for name in ("<b>&up", "$x^2$", "上采样", "c +2"):
        assert name in words, "others than the third are a number"
    assert "d" not in texts_of(uri)
    bare = pictures.curves(x, [("before", x)], x_label="x", y_label="y")
    assert "<b>&up" not in " ".join(texts_of(bare))


def test_long_names_keep_their_ends():
    name = "decoder.up_blocks.3.upsamplers.0.conv"
    x = np.linspace(0, 1, 50)
    uri = pictures.curves(x, [("a", x)], x_label="x", y_label="y", marks=[Mark(0.5, (name,))])
    assert any(each.endswith("upsamplers.0.conv"[-15:]) for each in texts_of(uri))
    assert not any(name in each for each in texts_of(uri))


def test_names_do_not_stand_on_each_other():
    marks = [Mark(each / 64, (str(each),), strength=-abs(each - 20)) for each in range(33)]
    chosen = pictures.labelled(marks, 0.05)
    places = sorted(each.position for each in chosen)
    assert min(np.diff(places)) >= 0.05
    assert chosen[0].names == ("20",), "the strongest has its name"
    assert len(pictures.labelled(marks, 0.0)) == len(marks)


@pytest.mark.parametrize("shape", [(5,), (4, 6)])
def test_kernels_share_one_scale(shape):
    """Twice the kernel is the stronger one: what differs is seen."""
    kernel = np.random.default_rng(0).standard_normal(shape)
    same = pixels_of(pictures.kernels(kernel, kernel))
    other = pixels_of(pictures.kernels(kernel, kernel / 4))
    half = same.shape[1] // 2
    assert same.shape == other.shape
    assert (same[:, :half] == other[:, :half]).all()
    assert (same[:, half:] != other[:, half:]).any()
    pictures.kernels(np.zeros(shape), np.zeros(shape))
