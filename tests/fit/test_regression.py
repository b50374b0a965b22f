"""Ridge regression from second moments: the ridge that is chosen, the layer that is solved, and memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvfix.core.phases import phase_of_taps, phase_sums
from deconvfix.core.steps import run
from deconvfix.fit.regression import (
    RIDGES,
    best_ridge,
    bytes_needed,
    equations,
    ridge_fit,
    solve,
    squared_error,
)
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from tests.support.fits import (
    accepts,
    first_group,
    fitted_forms,
    moments_of,
    problem,
    settings_drawn,
)
from tests.support.forms import run_form
from tests.support.strategies import cases


@given(cases(), fitted_forms, settings_drawn, st.sampled_from([1e-7, 1e-4, 1e-2]))
def test_a_calibrated_fit_is_no_worse_than_the_fit_to_the_weights(case, name, settings, ridge):
    """On the data it is fitted to; the penalty is zero at the start, so no ridge can spoil it."""
    if not accepts(name, case, settings):
        return
    system, w_0 = problem(name, case, settings, moments_of(name, case, settings, case.expected))
    bias = first_group(case)
    w, b = ridge_fit(system, w_0, bias, ridge)
    power = squared_error(system, np.zeros_like(w), None)
    # Errors are differences of moments: they round at 1e-16 of the power, a few hundred terms.
    rounding = 1e-12 * (power + squared_error(system, w_0, None))
    assert squared_error(system, w, b) <= (squared_error(system, w_0, bias) + rounding)


@given(cases(), fitted_forms, settings_drawn)
def test_what_the_form_can_do_is_left_as_it_is(case, name, settings):
    """Outputs that the start makes already: the fit stays, to the rounding of the solve.

    The condition number of the normal equations is at most 1/ridge, times their size.
    """
    if not accepts(name, case, settings):
        return
    y = case.expected if name == "equalized" else run_form(name, case, settings)
    if name == "equalized":
        [step] = form(name).compile(case.spec, settings).steps
        y = run((step,), case.x, form(name).fit(case.spec, settings, case.weight), case.bias)
    system, w_0 = problem(name, case, settings, moments_of(name, case, settings, y))
    w, _ = ridge_fit(system, w_0, first_group(case), 1e-3)
    np.testing.assert_allclose(w, w_0, rtol=0, atol=1e-8 * max(1.0, np.abs(w_0).max()))


def noisy_equations(rng, truth, count, noise):
    u = rng.normal(size=(count, len(truth)))
    y = u @ truth[:, 0] + noise * rng.normal(size=(count, 1))
    z = np.concatenate([u, np.ones((count, 1)), y], 1)
    return equations([z.T @ z], [np.ones((1, 1))], truth.shape)


def test_the_ridge_is_chosen_on_samples_that_were_not_fitted():
    """Few noisy samples want a strong ridge, many exact ones a weak one."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(30, 1, 1))
    start = np.zeros_like(truth)
    chosen = []
    for count, noise in ((32, 10.0), (300, 0.0)):
        heldout = noisy_equations(rng, truth, 200, noise)
        fitted = noisy_equations(rng, truth, count, noise)
        chosen.append(best_ridge(fitted, heldout, start, None)[0])
    assert chosen[0] > chosen[1]


@pytest.mark.parametrize("count", [32, 40, 60, 300])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3, 10.0])
def test_the_ridge_is_the_best_of_all_candidates(count, noise):
    """The search leaves some of them out."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(30, 1, 1))
    start = np.zeros_like(truth)
    fitted = noisy_equations(rng, truth, count, noise)
    heldout = noisy_equations(rng, truth, 200, noise)
    errors = [squared_error(heldout, *ridge_fit(fitted, start, None, ridge)) for ridge in RIDGES]
    ridge, error = best_ridge(fitted, heldout, start, None)
    assert error == errors[RIDGES.index(ridge)] == min(errors)


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
