"""Weights that keep a part of their imbalance: strength from 0 (nothing moves) to 1 (no grid)."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvfix.core.phases import phase_of_taps, phase_sums
from deconvfix.errors import Refusal
from deconvfix.forms.base import Settings
from tests.support.fits import accepts
from tests.support.strategies import cases
from tests.support.strength import EQUALIZED, unequal

strengths = st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.9, 1.0])

settings_drawn = st.builds(Settings, strength=strengths, grow=st.integers(0, 1))


@given(cases(), settings_drawn)
def test_imbalance_falls_by_what_is_left_of_the_strength(case, settings):
    """Sums of fewer than 1e3 taps below 1e1 round to far less than 1e-11 in float64."""
    if not accepts("equalized", case, settings):
        return
    spec, left = case.spec, 1 - settings.strength
    new = EQUALIZED.fit(spec, settings, case.weight)
    old = EQUALIZED.fit(spec, replace(settings, strength=0.0), case.weight)
    departs = unequal(new, spec.stride, spec.dilation)
    want = left * unequal(old, spec.stride, spec.dilation)
    np.testing.assert_allclose(departs, want, rtol=0, atol=1e-11)
    # Not the sums alone: the whole component outside of the kernels with equal sums.
    basis = EQUALIZED.design(spec, settings).basis
    flat, flat_old = (each.reshape(*each.shape[:2], -1) for each in (new, old))
    outside = flat - flat @ basis @ basis.T
    want = left * (flat_old - flat_old @ basis @ basis.T)
    np.testing.assert_allclose(outside, want, rtol=0, atol=1e-11)
    np.testing.assert_allclose(flat @ basis, flat_old @ basis, rtol=0, atol=1e-11)


@given(cases(), st.integers(0, 1))
def test_strength_0_is_the_weight_bit_for_bit(case, grow):
    """Zeros with a sign too; a kernel that grows has zeros around it."""
    weight = np.where(case.weight == 0, -0.0, case.weight)
    settings = Settings(strength=0.0, grow=grow)
    new = EQUALIZED.fit(case.spec, settings, weight)
    inside = tuple(
        slice(grow, n - grow) if s > 1 and grow else slice(None)
        for n, s in zip(new.shape[2:], case.spec.stride, strict=True)
    )
    assert new[(..., *inside)].tobytes() == weight.tobytes()
    assert np.abs(new).sum() == np.abs(weight).sum()
    settled = EQUALIZED.settle(case.spec, settings, None)
    assert settled.exact, "also where a phase has no tap, or there is no weight"


@given(cases(), st.integers(0, 1))
def test_strength_1_is_the_whole_correction_bit_for_bit(case, grow):
    settings = Settings(grow=grow)
    if not accepts("equalized", case, settings):
        return
    extended = EQUALIZED.fit(case.spec, replace(settings, strength=0.0), case.weight)
    phases = phase_of_taps(extended.shape[2:], case.spec.stride, case.spec.dilation)
    sums = phase_sums(extended, phases, case.spec.stride)
    counts = phase_sums(np.ones((1, 1, *extended.shape[2:])), phases, case.spec.stride)
    axes = tuple(range(2, sums.ndim))
    common = (sums / counts).sum(axes, keepdims=True) / (1 / counts).sum(axes, keepdims=True)
    change = (common - sums) / counts
    for axis, phase in enumerate(phases, start=2):
        change = np.take(change, phase, axis)
    want = extended if math.prod(case.spec.stride) == 1 else extended + change
    assert np.array_equal(EQUALIZED.fit(case.spec, settings, case.weight), want)
    design = EQUALIZED.design(case.spec, settings)
    assert design.offset(want) is None


@given(cases(), settings_drawn)
def test_relative_size_of_the_change_is_told(case, settings):
    settled = EQUALIZED.settle(case.spec, settings, lambda: case.weight)
    if isinstance(settled, Refusal) or settled.exact:
        return
    old = EQUALIZED.fit(case.spec, replace(settings, strength=0.0), case.weight)
    new = EQUALIZED.fit(case.spec, settings, case.weight)
    size = np.linalg.norm(new - old) / np.linalg.norm(old)
    assert settled.relative_residual == pytest.approx(size, rel=1e-9)
    assert ("strength" in settled.note) == (settings.strength != 1)
