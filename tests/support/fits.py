"""Fits to data in NumPy: settings that are drawn, moments and normal equations of a case."""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from deconvfix.errors import Refusal
from deconvfix.fit import moments
from deconvfix.fit.regression import equations
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from tests.support.forms import interpolations, padding_modes

settings_drawn = st.builds(
    Settings,
    interpolation=interpolations,
    padding_mode=padding_modes,
    init=st.just("calibrated"),
    grow=st.integers(0, 1),
    reach=st.sampled_from([1, 3]),  # means of integers are exact in binary
)

fitted_forms = st.sampled_from(["resize", "equalized", "notch"])


def accepts(name, case, settings):
    return name == "resize" or not isinstance(
        form(name).settle(case.spec, settings, lambda: case.weight), Refusal
    )


def problem(name, case, settings, sums):
    """The normal equations, and the weights-only fit w_0, of the first group of these moments."""
    basis = [sums.design.basis[list(phase.taps)] for phase in sums.design.phases]
    kernel = form(name).fit(case.spec, settings, case.weight)
    w_0 = sums.design.numbers(kernel, case.spec.groups)
    fitted, heldout = sums.of_group(0)
    total = [one + other for one, other in zip(fitted, heldout, strict=True)]
    w_0 = w_0[: case.spec.in_channels // case.spec.groups]
    return equations(total, basis, w_0.shape), w_0


def first_group(case):
    return None if case.bias is None else case.bias[: case.spec.out_channels // case.spec.groups]


def moments_of(name, case, settings, y, pieces=1):
    sums = moments.Moments(case.spec, form(name).design(case.spec, settings))
    for x_part, y_part in zip(
        np.array_split(case.x, pieces), np.array_split(y, pieces), strict=True
    ):
        sums.add(x_part, y_part)
    return sums


def are_equal(one, other, groups):
    return all(
        np.array_equal(a, b)
        for group in range(groups)
        for mine, theirs in zip(one.of_group(group), other.of_group(group), strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )


def several(case, samples=5):
    """More samples, so that some are held out."""
    rng = np.random.default_rng(0)
    shape = (samples, *case.x.shape[1:])
    x = rng.integers(-3, 4, shape).astype(np.float64)
    y_shape = (samples, case.spec.out_channels, *case.spec.output_size(shape[2:]))
    return replace(case, x=x), rng.integers(-3, 4, y_shape).astype(np.float64)
