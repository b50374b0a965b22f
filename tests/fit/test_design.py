"""Designs: each form as a linear model of its kernel."""

import math

import numpy as np
from hypothesis import given

from deconvfix.core.steps import run
from deconvfix.forms import form
from tests.support.fits import accepts, fitted_forms, settings_drawn
from tests.support.forms import run_form
from tests.support.strategies import cases


def run_design(design, x, kernel, bias, shape, groups):
    """The linear model that a `Design` describes, as its text says it."""
    y = (
        np.zeros(shape)
        if bias is None
        else np.zeros(shape) + bias.reshape(-1, *(1,) * (x.ndim - 2))
    )
    extended = run(design.steps, x, np.zeros(()), None)
    # (copies*C_in, C_out/g, *taps) -> (g, C_in/g, C_out/g, copies*taps)
    flat = kernel.reshape(groups, design.copies, -1, kernel.shape[1], math.prod(kernel.shape[2:]))
    flat = np.concatenate(list(np.moveaxis(flat, 1, 0)), -1)
    for phase in design.phases:
        grid = (..., *(slice(f, None, s) for f, s in zip(phase.first, phase.step, strict=True)))
        counts = y[grid].shape[2:]
        copies = phase.copies or (0,) * len(phase.taps)
        for tap, starts, copy in zip(phase.taps, phase.starts, copies, strict=True):
            window = (..., *(slice(s, s + n) for s, n in zip(starts, counts, strict=True)))
            seen = extended[window]
            # (N, copies*C_in, *count) -> (N, g, C_in/g, *count)
            seen = seen.reshape(len(x), groups, design.copies, x.shape[1] // groups, *counts)[
                :, :, copy
            ]
            part = np.einsum("ngi...,gio->ngo...", seen, flat[..., tap])
            y[grid] += part.reshape(y[grid].shape)
    return y


@given(cases(), fitted_forms, settings_drawn)
def test_a_design_is_the_form_as_a_linear_model(case, name, settings):
    """Fits of integers below 1e3 round to far less than 1e-9 in float64."""
    if not accepts(name, case, settings):
        return
    chosen = form(name)
    kernel = chosen.fit(case.spec, settings, case.weight)
    if name != "equalized":
        want = run_form(name, case, settings)
    else:
        [step] = chosen.compile(case.spec, settings).steps
        want = run((step,), case.x, kernel, case.bias)
    design = chosen.design(case.spec, settings)
    got = run_design(design, case.x, kernel, case.bias, want.shape, case.spec.groups)
    assert want.shape == case.expected.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


@given(cases(), fitted_forms, settings_drawn)
def test_a_design_knows_all_kernels_of_its_form(case, name, settings):
    """The fit lies in the span of the basis, whose columns are orthonormal."""
    if not accepts(name, case, settings):
        return
    basis = form(name).design(case.spec, settings).basis
    kernel = form(name).fit(case.spec, settings, case.weight)
    design = form(name).design(case.spec, settings)
    numbers = design.numbers(kernel, case.spec.groups)
    back = design.kernel(numbers, case.spec.groups).reshape(kernel.shape)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(back, kernel, rtol=0, atol=1e-9)
    if name == "equalized":
        phases = math.prod(case.spec.stride)
        assert basis.shape[1] == math.prod(kernel.shape[2:]) - phases + 1
    if name == "notch":
        assert basis.shape[1] == math.prod(kernel.shape[2:])
