"""Ripple, tones and sum rule of a kernel, by their definitions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings

from deconvfix.core.decibels import LOWEST_DB
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.forms import EQUALIZED
from deconvfix.forms.base import Settings
from deconvfix.grid import kernel as artifacts
from deconvfix.grid.kernel import ripple_db
from tests.support import oracle, strategies
from tests.support.forms import bilinear
from tests.support.grids import box_filtered, inner_period, layer


def test_ripple_of_a_bilinear_kernel_is_none_and_of_a_single_tap_is_not():
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    assert ripple_db(spec, bilinear(spec)) == LOWEST_DB
    one = np.zeros(spec.weight_shape)
    one[..., 0, 0] = 1
    # phase sums 1, 0, 0, 0: deviations rms sqrt(3)/4 over mean 1/4
    assert ripple_db(spec, one) == pytest.approx(20 * math.log10(math.sqrt(3)))


NOTHING_DB = -250.0


def measured_phases(spec, weight):
    """Phase tables of the definition's answers to one in one channel, (C_in, C_out/g, *s)."""
    sizes = [
        (big - 1) // s + 2 for big, s in zip(spec.effective_kernel_size, spec.stride, strict=True)
    ]
    work = math.prod(sizes) * math.prod(weight.shape) * spec.in_channels
    assume(work < 40_000)
    n = spec.ndim
    # One sample for each input channel, which alone is one.
    x = np.eye(spec.in_channels).reshape(spec.in_channels, spec.in_channels, *[1] * n)
    x = np.broadcast_to(x, (*x.shape[:2], *sizes))
    more = tuple(s - 1 for s in spec.stride)  # phases past the last tap, where s > K
    y = oracle.conv_transpose(
        x, weight, None, spec.stride, ((0, 0),) * n, more, spec.dilation, spec.groups
    )
    y = inner_period(spec, y)
    per = spec.out_channels // spec.groups
    group = np.arange(spec.in_channels) // (spec.in_channels // spec.groups)
    return np.stack([y[ci, g * per : (g + 1) * per] for ci, g in enumerate(group)])


@given(strategies.specs())
@settings(max_examples=60)
def test_ripple_of_each_frequency_by_definition(spec):
    weight = np.random.default_rng(0).standard_normal(spec.weight_shape)
    tables = measured_phases(spec, weight)
    lines = np.fft.fftn(tables, axes=range(2, tables.ndim)) / math.prod(spec.stride)
    power = (np.abs(lines) ** 2).mean((0, 1))
    level = power[(0,) * spec.ndim]
    found = artifacts.frequency_ripples_db(spec, weight)
    assert found.shape == spec.stride
    for u in itertools.product(*map(range, spec.stride)):
        opposite = tuple(-j % s for j, s in zip(u, spec.stride, strict=True))
        tone = power[u] if u == opposite else power[u] + power[opposite]
        if any(u):
            np.testing.assert_allclose(10 ** (found[u] / 10), tone / level, rtol=1e-6, atol=1e-12)


@given(strategies.specs())
@settings(max_examples=60)
def test_powers_of_the_tones_add_up_to_the_ripple(spec):
    weight = np.random.default_rng(1).standard_normal(spec.weight_shape)
    tones = artifacts.frequency_ripples_db(spec, weight)
    once = {
        min(u, tuple(-j % s for j, s in zip(u, spec.stride, strict=True)))
        for u in itertools.product(*map(range, spec.stride))
        if any(u)
    }
    total = sum(10 ** (tones[u] / 10) for u in once)
    whole = 10 ** (artifacts.ripple_db(spec, weight) / 10)
    assert total == pytest.approx(whole, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("stride", [(8,), (2, 3), (2, 1, 2)], ids=str)
def test_box_filtered_kernel_has_no_ripple(stride):
    spec = layer(*stride)
    weight = box_filtered(spec, np.random.default_rng(0))
    assert artifacts.frequency_ripples_db(spec, weight).max() < NOTHING_DB
    assert artifacts.sum_rule_holds(spec, weight, "float64")
    weight[0, 0, 0] += 1e-3
    assert not artifacts.sum_rule_holds(spec, weight, "float32")


@given(strategies.specs())
@settings(max_examples=60)
def test_equalized_weights_hold_the_sum_rule_in_every_dtype(spec):
    weight = np.random.default_rng(2).standard_normal(spec.weight_shape)
    assume(not hasattr(EQUALIZED.settle(spec, Settings(), lambda: weight), "found"))
    fitted = EQUALIZED.fit(spec, Settings(), weight)
    for dtype in ("float64", "float32", "float16"):
        stored = fitted.astype(dtype).astype(np.float64)
        assert artifacts.sum_rule_holds(spec, stored, dtype)


def test_sum_rule_knows_the_dtype():
    spec = layer(2, 2)
    weight = box_filtered(spec, np.random.default_rng(0))
    rounded = weight.astype(np.float16).astype(np.float64)
    assert artifacts.sum_rule_holds(spec, rounded, "float16")
    assert not artifacts.sum_rule_holds(spec, rounded, "float32")
