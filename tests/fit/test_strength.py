"""Fits to data beside a part of the imbalance that stays."""

import math
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deconvfix.core.steps import run
from deconvfix.fit.regression import beside, equations, ridge_fit, squared_error
from deconvfix.forms.base import Settings
from tests.support.fits import accepts, first_group, moments_of
from tests.support.strategies import cases
from tests.support.strength import EQUALIZED


@given(cases(), st.integers(0, 1))
def test_moments_beside_a_fixed_kernel_are_those_of_the_rest(case, grow):
    """Integers, so to the bit."""
    settings = Settings(init="calibrated", grow=grow)
    if not accepts("equalized", case, settings):
        return
    [step] = EQUALIZED.compile(case.spec, settings).steps
    rng = np.random.default_rng(0)
    fixed = rng.integers(-3, 4, step.spec.weight_shape).astype(np.float64)
    rest = case.expected - run((step,), case.x, fixed, None)
    sums = moments_of("equalized", case, settings, case.expected)
    want = moments_of("equalized", case, settings, rest)
    flat = fixed.reshape(case.spec.groups, -1, *fixed.shape[1:2], math.prod(fixed.shape[2:]))
    for group in range(case.spec.groups):
        kernels = [flat[group][..., list(phase.taps)] for phase in sums.design.phases]
        for moments, wanted in zip(sums.of_group(group), want.of_group(group), strict=True):
            assert all(map(np.array_equal, beside(moments, kernels), wanted))


def fitted(case, settings, y, ridge):
    """Whole kernel and bias of the first group, and the moments: as `torch_calibrate` does it."""
    sums = moments_of("equalized", case, settings, y)
    total = [a + b for a, b in zip(*sums.of_group(0), strict=True)]
    design = sums.design
    basis = [design.basis[list(phase.taps)] for phase in design.phases]
    start = EQUALIZED.fit(case.spec, settings, case.weight)
    offset = design.offset(start)
    many = case.spec.in_channels // case.spec.groups
    start = start.reshape(*start.shape[:2], -1)[:many]
    offset = np.zeros_like(start) if offset is None else offset[:many]
    left = beside(total, [offset[..., list(phase.taps)] for phase in design.phases])
    numbers = start @ design.basis
    system = equations(left, basis, numbers.shape)
    w, b = ridge_fit(system, numbers, first_group(case), ridge)
    return w @ design.basis.T + offset, b, total, design


def whole_error(total, design, kernel, bias):
    """Of a kernel that need not be in any form: the basis is that of all kernels."""
    everything = np.eye(kernel.shape[-1])
    basis = [everything[list(phase.taps)] for phase in design.phases]
    return squared_error(equations(total, basis, kernel.shape), kernel, bias)


def penalty_of(total, design, many, ridge):
    """What the ridge is relative to: the mean of the diagonal of the normal equations."""
    trace = 0.0
    for phase, h in zip(design.phases, total, strict=True):
        z = design.basis[list(phase.taps)]
        for begin in range(0, many * len(z), len(z)):
            own = slice(begin, begin + len(z))
            trace += np.trace(z.T @ h[own, own] @ z)
    return ridge * trace / (many * design.basis.shape[1]) or 1.0


@given(cases(), st.sampled_from([0.25, 0.5, 0.9]), st.integers(0, 1), st.booleans())
def test_calibration_is_no_worse_than_a_mixture_of_the_ends(case, strength, grow, own_output):
    """Of the original and the fit at strength 1, on the same data: the mixture is one of its kernels.

    Up to the ridge, which counts |w - w_0|^2 in both; and where the output to follow is the layer's own,
    the fit *is* that mixture, for all of it is linear.
    """
    settings = Settings(init="calibrated", grow=grow, strength=strength)
    if not accepts("equalized", case, settings):
        return
    ridge, y = 1e-3, case.expected
    if not own_output:
        y = y + np.random.default_rng(0).integers(-3, 4, y.shape)
    kernel, bias, total, design = fitted(case, settings, y, ridge)
    end, end_bias, _, _ = fitted(case, replace(settings, strength=1.0), y, ridge)
    many = case.spec.in_channels // case.spec.groups
    old = EQUALIZED.fit(case.spec, replace(settings, strength=0.0), case.weight)[:many]
    old = old.reshape(end.shape)
    mixture = (1 - strength) * old + strength * end
    old_bias = first_group(case)
    mixed_bias = None if bias is None else (1 - strength) * old_bias + strength * end_bias
    scale = max(1.0, np.abs(old).max())
    if own_output:
        np.testing.assert_allclose(kernel, mixture, rtol=0, atol=1e-8 * scale)
    power = whole_error(total, design, np.zeros_like(old), None)
    rounding = 1e-11 * (power + whole_error(total, design, mixture, mixed_bias))
    basis = design.basis
    penalty = penalty_of(total, design, many, ridge)

    def objective(k, b):
        return whole_error(total, design, k, b) + penalty * np.sum(((k - old) @ basis) ** 2)

    assert objective(kernel, bias) <= objective(mixture, mixed_bias) + rounding
