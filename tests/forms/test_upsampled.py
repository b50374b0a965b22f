"""A folded resize-convolution is upsampling and then a convolution, by the meaning of the steps of both."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvfix.core.rearrange import rearrange
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import PixelShuffle, Resize, run
from deconvfix.errors import OptionError
from deconvfix.fit.least_squares import apply_operators
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from deconvfix.forms.upsampled import axes_of, folding_of, operators_of
from deconvfix.request import Request
from tests.support.forms import padding_modes, spread_of_phases
from tests.support.strategies import cases

RESIZE = form("resize")
foldings = st.builds(
    Settings,
    padding_mode=padding_modes,
    grow=st.integers(0, 1),
    convolution=st.sampled_from([None, "union", "phases"]),
    fold=st.just(True),
)


def apart(settings):
    return replace(settings, fold=False)


def kernel_of(case, settings, seed=0):
    """A kernel of integers for the convolution on the upsampled map."""
    taps = tuple(axis.taps for axis in axes_of(case.spec, settings))
    shape = (*case.spec.weight_shape[:2], *taps)
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(np.float64)


def computed(case, settings, kernel):
    compiled = RESIZE.compile(case.spec, settings)
    weight = rearrange(compiled.weight, kernel, case.spec.groups)
    bias = None if case.bias is None else rearrange(compiled.bias, case.bias)
    return compiled, run(compiled.steps, case.x, weight, bias)


@given(cases(), foldings)
def test_folded_is_upsampling_and_a_convolution(case, settings):
    kernel = kernel_of(case, settings)
    plain, expected = computed(case, apart(settings), kernel)
    folded, actual = computed(case, settings, RESIZE.joined(case.spec, settings, kernel))
    np.testing.assert_array_equal(actual, expected)
    if RESIZE.folding(case.spec, settings) is None:
        assert folded == plain
        return
    assert not any(isinstance(step, Resize) for step in folded.steps)
    assert folded.macs_per_position < plain.macs_per_position


@given(cases(), foldings)
def test_a_folded_kernel_parts_again_and_has_no_ripple(case, settings):
    kernel = kernel_of(case, settings)
    joined = RESIZE.joined(case.spec, settings, kernel)
    np.testing.assert_allclose(
        RESIZE.parted(case.spec, settings, joined), kernel, rtol=0, atol=1e-9
    )
    spec, spread = RESIZE.spread(case.spec, settings, joined)
    assert spread_of_phases(spec, spread) == 0
    np.testing.assert_array_equal(
        spread, apply_operators(kernel, operators_of(case.spec, settings))
    )


def layer(k, s, p, op=0, ndim=2):
    return ConvTransposeSpec.create(
        4, 6, (k,) * ndim, stride=(s,) * ndim, padding=(p,) * ndim, output_padding=(op,) * ndim
    )


def test_one_wrong_tap_of_a_folded_kernel_shows():
    """Neither the output nor the closest kernel in the form's own space is that of the wrong one."""
    spec, settings = layer(4, 2, 1), Settings(padding_mode="reflect", fold=True)
    rng = np.random.default_rng(1)
    w = rng.integers(-9, 10, (4, 6, 3, 3)).astype(np.float64)
    joined = RESIZE.joined(spec, settings, w)
    wrong = joined.copy()
    wrong[2, 3, 1, 2] += 1
    assert spread_of_phases(*RESIZE.spread(spec, settings, wrong)) == 1
    back = RESIZE.joined(spec, settings, RESIZE.parted(spec, settings, wrong))
    assert np.abs(back - wrong).max() > 0.1
    verbs = RESIZE.compile(spec, settings).weight
    x = rng.integers(-9, 10, (1, 4, 3, 5)).astype(np.float64)
    steps = RESIZE.compile(spec, settings).steps
    outputs = [run(steps, x, rearrange(verbs, kernel)) for kernel in (joined, wrong)]
    assert not np.array_equal(*outputs)


@pytest.mark.parametrize(
    ("spec", "changes", "ratio"),
    [
        (layer(4, 2, 1), {}, 16 / 36),
        (layer(3, 2, 1, 1), {"convolution": "phases"}, 9 / 16),
        (layer(16, 8, 4, ndim=1), {}, 16 / 72),
        (layer(4, 2, 1, ndim=3), {}, 64 / 216),
        (layer(5, 2, 2, 1), {"padding_mode": "replicate"}, 36 / 64),
        # An axis without a stride keeps its taps and its dilation.
        (ConvTransposeSpec.create(4, 6, (3, 4), stride=(1, 2), padding=(2, 1), dilation=(2, 1)),
         {}, 12 / 18),
    ],
    ids=["k4 s2", "k3 s2 by phase", "k16 s8 1-D", "k4 s2 3-D", "k5 s2", "one axis"],
)  # fmt: skip
def test_what_a_folded_layer_costs(spec, changes, ratio):
    settings = Settings(**{"padding_mode": "reflect", "fold": True} | changes)
    folded = RESIZE.compile(spec, settings)
    assert any(isinstance(step, PixelShuffle) for step in folded.steps)
    plain = RESIZE.compile(spec, apart(settings))
    assert folded.macs_per_position / plain.macs_per_position == pytest.approx(ratio)
    assert RESIZE.words_of_fold(spec, settings) == ", folded"


@pytest.mark.parametrize(
    ("spec", "changes", "why"),
    [
        (layer(4, 2, 1), {"interpolation": "linear"}, "linear upsampling"),
        (layer(5, 2, 2, 1), {}, "a wide reflection"),
        (layer(2, 2, 0), {"convolution": "phases"}, "no multiply-accumulates to save"),
        (layer(3, 2, 1, 1), {}, "no multiply-accumulates to save"),
    ],
    ids=["linear", "wide", "k2 s2", "k3 s2 in one convolution"],
)
def test_what_stays_apart(spec, changes, why):
    settings = Settings(**{"padding_mode": "reflect", "fold": True} | changes)
    assert folding_of(spec, settings) == why
    assert RESIZE.words_of_fold(spec, settings) == f", not folded ({why})"
    assert RESIZE.compile(spec, settings) == RESIZE.compile(spec, apart(settings))


@pytest.mark.parametrize("fold", [None, False])
def test_nothing_is_folded_unless_it_is_asked_for(fold):
    settings = Settings(padding_mode="zeros", fold=fold)
    assert RESIZE.folding(layer(4, 2, 1), settings) is None
    assert RESIZE.words_of_fold(layer(4, 2, 1), settings) == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "equalized"}, "sub-pixel convolution"),
        ({"to": "auto"}, "not measured"),
        ({"to": "resize", "init": "tuned"}, "its upsampling apart"),
        ({"to": "resize", "fold": "yes"}, "one of True, False"),
    ],
)
def test_what_cannot_be_asked_for(options, words):
    with pytest.raises(OptionError, match=words):
        Request(**{"fold": True} | options)
