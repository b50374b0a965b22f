"""Second moments in NumPy, as they are defined, for every geometry."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import run
from deconvfix.fit import moments, products
from deconvfix.fit.regression import HELDOUT_EVERY, solve
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from tests.support.fits import accepts, are_equal, fitted_forms, moments_of, settings_drawn, several
from tests.support.strategies import cases


def by_definition(design, x, y, groups):
    """H_f of each phase and group: the rows z = (u, 1, y), pixel by pixel, and z^T z."""
    extended = run(design.steps, x, np.zeros(()))
    # (N, g * copies * C, *L) -> (g, copies, C, N, *L)
    split = extended.reshape(len(x), groups, design.copies, -1, *extended.shape[2:])
    seen = np.moveaxis(split, 0, 3)
    outputs = np.moveaxis(y.reshape(len(y), groups, -1, *y.shape[2:]), 0, 2)
    found = []
    for group in range(groups):
        phases = []
        for phase in design.phases:
            last = zip(y.shape[2:], phase.first, phase.step, strict=True)
            counts = [len(range(first, size, step)) for size, first, step in last]
            rows = []
            for t in np.ndindex(*counts):
                copies = phase.copies or (0,) * len(phase.taps)
                u = [
                    seen[(group, copy, channel, slice(None), *np.add(start, t))]
                    for copy, start in zip(copies, phase.starts, strict=True)
                    for channel in range(seen.shape[2])
                ]
                pixel = [f + s * i for f, s, i in zip(phase.first, phase.step, t, strict=True)]
                v = [each[(slice(None), *pixel)] for each in outputs[group]]
                rows.append(np.stack([*u, np.ones(len(x)), *v], 1))
            size = seen.shape[2] * len(phase.taps) + 1 + outputs.shape[1]
            z = np.concatenate([*rows, np.zeros((0, size))])
            phases.append(z.T @ z)
        found.append(phases)
    return found


@given(cases(), fitted_forms, settings_drawn)
def test_moments_are_what_they_are_defined_as(case, name, settings):
    """Bit for bit: sums of products of small integers are exact in any order."""
    if not accepts(name, case, settings) or settings.interpolation == "linear":
        return
    case, y = several(case)
    settings = replace(settings, reach=1)  # means over 4 pixels an axis
    sums = moments_of(name, case, settings, y)
    kept = np.arange(len(y)) % HELDOUT_EVERY != HELDOUT_EVERY - 1
    for chosen, part in ((kept, 0), (~kept, 1)):
        wanted = by_definition(sums.design, case.x[chosen], y[chosen], case.spec.groups)
        for group, phases in enumerate(wanted):
            for mine, other in zip(sums.of_group(group)[part], phases, strict=True):
                np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("broken", ["window", "mirror", "rows"])
def test_the_definition_sees_a_wrong_product(broken, monkeypatch):
    """A window that is too short, the product of two taps left out on one side, a pixel too far away."""
    spec = ConvTransposeSpec.create(2, 3, 4, ndim=1, stride=2, padding=1)
    rng = np.random.default_rng(0)
    x, y = rng.integers(-3, 4, (3, 2, 5)), rng.integers(-3, 4, (3, 3, 10))
    pairs = products._pairs

    def wrong(*args):
        found = pairs(*args)
        for distance, each in found.items():
            if broken == "window":
                shorter = tuple((begin, end - 2) for begin, end in each[0].window)
                each[0] = each[0]._replace(window=shorter)
            elif any(distance.pixels):
                each[0] = each[0]._replace(taps=(each[0].taps[0],) * 2)
        return found

    design = form("equalized").design(spec, Settings())
    sums = moments.Moments(spec, design)
    sums.add(x, y)
    [wanted] = by_definition(design, x.astype(float), y, 1)
    assert all(map(np.array_equal, sums.of_group(0)[0], wanted))
    if broken == "rows":
        shift = products._shift
        monkeypatch.setattr(products, "_shift", lambda *args: shift(*args) + 1)
    else:
        monkeypatch.setattr(products, "_pairs", wrong)
    sums = moments.Moments(spec, design)
    sums.add(x, y)
    assert not all(map(np.array_equal, sums.of_group(0)[0], wanted))


@given(cases(), fitted_forms, settings_drawn)
def test_moments_are_sums(case, name, settings):
    """Batches one after the other are the whole batch, with the same samples held out."""
    if not accepts(name, case, settings) or settings.interpolation == "linear":
        return
    case, y = several(case)
    whole = moments_of(name, case, settings, y)
    assert are_equal(whole, moments_of(name, case, settings, y, pieces=3), case.spec.groups)


@pytest.mark.parametrize("change", ["x", "y", "order"])
def test_the_comparison_can_fail(change):
    """A single pixel, or a sample that is held out instead of another, makes other moments."""
    spec = ConvTransposeSpec.create(4, 6, 3, ndim=1, stride=2, groups=2)
    rng = np.random.default_rng(0)
    x, y = rng.integers(-3, 4, (4, 4, 3)), rng.integers(-3, 4, (4, 6, 7))
    found = []
    for changed in (False, True):
        x, y = x.copy(), y.copy()
        if changed and change == "order":
            x, y = x[::-1], y[::-1]
        elif changed:
            {"x": x, "y": y}[change][3, 3, 1] += 1
        found.append(moments.Moments(spec, form("equalized").design(spec, Settings())))
        found[-1].add(x, y)
    assert not are_equal(*found, 2)


def test_the_size_of_the_outputs_is_checked():
    spec = ConvTransposeSpec.create(2, 3, 4, ndim=1, stride=2, padding=1)
    sums = moments.Moments(spec, form("equalized").design(spec, Settings()))
    with pytest.raises(ValueError, match=r"the shape \(1, 3, 9\), its geometry gives \(1, 3, 10\)"):
        sums.add(np.zeros((1, 2, 5)), np.zeros((1, 3, 9)))


def test_an_empty_batch_adds_nothing():
    spec = ConvTransposeSpec.create(2, 3, 4, ndim=1, stride=2, padding=1)
    sums = moments.Moments(spec, form("equalized").design(spec, Settings()))
    sums.add(np.zeros((0, 2, 5)), np.zeros((0, 3, 10)))
    assert not any(each.any() for part in sums.of_group(0) for each in part)


def test_what_the_form_can_do_comes_out():
    """Outputs of another kernel of the form, without noise: that kernel and its bias are found.

    The error is that of the smallest ridge, 1e-7 of the power of a feature, in float64.
    """
    rng = np.random.default_rng(0)
    spec = ConvTransposeSpec.create(2, 3, 4, ndim=1, stride=2, padding=1)
    target = form("equalized").fit(spec, Settings(), rng.standard_normal((2, 3, 4)))
    bias = rng.standard_normal(3)
    x = rng.standard_normal((40, 2, 16))
    (step,) = form("equalized").compile(spec, Settings()).steps
    sums = moments.Moments(spec, form("equalized").design(spec, Settings()))
    sums.add(x, run((step,), x, target, bias))
    start = form("equalized").fit(spec, Settings(), rng.standard_normal((2, 3, 4)))
    solved = solve(sums, start, np.zeros(3))
    np.testing.assert_allclose(solved.kernel, target, rtol=0, atol=1e-6)
    np.testing.assert_allclose(solved.bias, bias, rtol=0, atol=1e-6)
    assert solved.error < 1e-10
