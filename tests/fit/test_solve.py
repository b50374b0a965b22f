"""A layer solved from its moments: inputs that alone need no grid, and memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvfix.core.phases import phase_of_taps, phase_sums
from deconvfix.fit.regression import bytes_needed, solve
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from tests.support.fits import accepts, fitted_forms, moments_of, problem, settings_drawn
from tests.support.strategies import cases


@given(cases(), fitted_forms, settings_drawn)
def test_the_memory_that_is_told_is_that_of_what_is_kept(case, name, settings):
    if not accepts(name, case, settings):
        return
    sums = moments_of(name, case, settings, case.expected)
    system, _ = problem(name, case, settings, sums)
    moments = case.spec.groups * sum(h.nbytes for part in sums.of_group(0) for h in part)
    assert bytes_needed(sums.design, case.spec) == moments + 4 * system.normal.nbytes


@given(cases(), st.integers(0, 1))
def test_all_directions_are_the_whole_sum_rule(case, grow):
    """Two ways to the same minimum: all channels kept even, and kernels of the basis."""
    settings = Settings(init="calibrated", grow=grow)
    if not accepts("equalized", case, settings):
        return
    sums = moments_of("equalized", case, settings, case.expected)
    start = form("equalized").fit(case.spec, settings, case.weight)
    width = case.spec.in_channels // case.spec.groups
    along = np.stack([np.eye(width)] * case.spec.groups)
    want = solve(sums, start, case.bias)
    got = solve(sums, start, case.bias, along)
    # Integers below 1e3 and ridges of 1e-7 of the diagonal: condition numbers up to 1e8 or so, of
    # which float64 leaves 1e-8 and the errors of two solutions differ by less than this of the power.
    assert got.error == pytest.approx(want.error, abs=1e-6)
    phases = phase_of_taps(start.shape[2:], case.spec.stride, case.spec.dilation)
    spread = np.ptp(
        phase_sums(got.kernel, phases, case.spec.stride).reshape(*start.shape[:2], -1), axis=-1
    ).max(initial=0)
    assert spread <= 1e-9 * max(1.0, np.abs(got.kernel).sum())
