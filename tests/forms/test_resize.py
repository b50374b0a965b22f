"""The resize form: its size, gain and border, and the kernels that divide."""

import numpy as np
import pytest
from hypothesis import given

from deconvfix.core.rearrange import rearrange
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import run
from deconvfix.errors import Refusal
from deconvfix.fit.least_squares import apply_operators
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from deconvfix.forms.upsampled import operators_of
from tests.support import oracle
from tests.support.forms import bilinear, interpolations, padding_modes, run_form, spread_of_phases
from tests.support.strategies import cases


@given(cases(), interpolations, padding_modes)
def test_resize_has_the_output_size_of_the_layer(case, interpolation, padding_mode):
    settings = Settings(interpolation, padding_mode, "fit")
    assert run_form("resize", case, settings).shape == case.expected.shape


@given(cases(), interpolations)
def test_resize_with_zero_border_is_the_transposed_convolution_it_claims(case, interpolation):
    """Upsampling and convolving with w equals one transposed convolution with the kernel h * w.

    Exact in real numbers; float64 rounds fits of integers below 1e3 to far less than 1e-9.
    """
    settings = Settings(interpolation, "zeros", "fit")
    spec, kernel = form("resize").equivalent(case.spec, settings, case.weight)
    grown = [
        new - old if s > 1 else 0
        for new, old, s in zip(
            kernel.shape[2:], case.spec.effective_kernel_size, spec.stride, strict=True
        )
    ]
    padding = [(b + g // 2, e + g - g // 2) for (b, e), g in zip(spec.padding, grown, strict=True)]
    want = oracle.conv_transpose(
        case.x,
        kernel,
        case.bias,
        spec.stride,
        padding,
        spec.output_padding,
        spec.dilation,
        spec.groups,
    )
    np.testing.assert_allclose(run_form("resize", case, settings), want, rtol=0, atol=1e-9)


@given(cases(), interpolations)
def test_resize_keeps_the_total_gain(case, interpolation):
    _, kernel = form("resize").equivalent(case.spec, Settings(interpolation), case.weight)
    axes = tuple(range(2, kernel.ndim))
    np.testing.assert_allclose(kernel.sum(axes), case.weight.sum(axes), rtol=0, atol=1e-9)


@given(cases(), interpolations)
def test_resize_has_no_ripple(case, interpolation):
    """Every phase sum is the same, whatever the weights: compared to the kernel's magnitude."""
    spec, kernel = form("resize").equivalent(case.spec, Settings(interpolation), case.weight)
    assert spread_of_phases(spec, kernel) <= 1e-12 * max(1.0, np.abs(kernel).sum())


@given(cases(), interpolations)
def test_resize_fit_is_the_least_squares_solution(case, interpolation):
    """No other kernel of the same gain comes closer: moving w along the constraint does not help."""
    spec, resize = case.spec, form("resize")
    settings = Settings(interpolation)
    kernel = resize.fit(spec, settings, case.weight)
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(kernel.shape)
    direction -= direction.mean(tuple(range(2, kernel.ndim)), keepdims=True)

    def distance(w):
        reached = apply_operators(w, operators_of(spec, settings))
        return float(((reached - resize.target(spec, settings, case.weight)) ** 2).sum())

    best = distance(kernel)
    for step in (1e-3, -1e-3):
        assert best <= distance(kernel + step * direction) + 1e-9


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
@pytest.mark.parametrize("stride", [(2, 2), (2, 4), (3, 2), (8,), (2, 1, 3)], ids=str)
def test_bilinear_kernels_divide_and_stay_the_same_function(stride, interpolation):
    kernel_size = tuple(2 * s - s % 2 for s in stride)
    spec = ConvTransposeSpec.create(
        6,
        4,
        kernel_size,
        stride=stride,
        padding=[s // 2 for s in stride],
        groups=2,
    )
    rng = np.random.default_rng(3)
    weight = bilinear(spec) * rng.integers(1, 5, spec.weight_shape[:2] + (1,) * spec.ndim)
    settled = form("resize").settle(spec, Settings(interpolation), lambda: weight)
    assert settled.exact
    assert settled.settings.init == "exact"
    assert "the same function" in settled.note
    x = rng.integers(-3, 4, (2, 6, *(3 + i for i in range(spec.ndim)))).astype(np.float64)
    bias = rng.integers(-3, 4, 4).astype(np.float64)
    want = oracle.conv_transpose(
        x, weight, bias, stride, spec.padding, spec.output_padding, spec.dilation, 2
    )
    compiled = form("resize").compile(spec, settled.settings)
    kernel = form("resize").fit(spec, settled.settings, weight)
    got = run(compiled.steps, x, rearrange(compiled.weight, kernel, 2), bias)
    # Rounding of the fit in float64, values below 100.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)


def test_a_border_mode_of_one_s_own_makes_a_dividing_kernel_inexact():
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    settled = form("resize").settle(spec, Settings(padding_mode="reflect"), lambda: bilinear(spec))
    assert not settled.exact
    assert "but for the reflect border" in settled.note


def test_trained_kernels_do_not_divide():
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    weight = np.random.default_rng(0).standard_normal(spec.weight_shape)
    settled = form("resize").settle(spec, Settings(), lambda: weight)
    assert not settled.exact
    assert 0.1 < settled.relative_residual < 1
    refusal = form("resize").settle(spec, Settings(init="exact"), lambda: weight)
    assert isinstance(refusal, Refusal)
    assert "does not divide" in refusal.sentence("up")


def test_random_init_is_seeded():
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    weight = np.ones(spec.weight_shape)

    def drawn(seed):
        return form("resize").fit(spec, Settings(init="random", seed=seed), weight)

    assert np.array_equal(drawn(1), drawn(1))
    assert not np.array_equal(drawn(1), drawn(2))


def test_what_becomes_of_a_kernel_is_said():
    spec = ConvTransposeSpec.create(2, 3, (5,), stride=2, padding=2)
    weight = np.random.default_rng(0).standard_normal(spec.weight_shape)
    resize = form("resize")
    assert resize.settle(spec, Settings(init="random"), lambda: weight).note.startswith(
        "random weights"
    )
    refusal = resize.settle(spec, Settings(init="exact"), lambda: weight)
    assert "init 'exact' needs a kernel that divides" in refusal.sentence("up")
    divided = ConvTransposeSpec.create(2, 2, (4,), stride=2, padding=1, groups=2)
    assert resize.settle(divided, Settings(), lambda: bilinear(divided)).exact
