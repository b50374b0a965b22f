"""Second moments in NumPy: the same as torch's, bit for bit, for every geometry."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from strategies import cases
from test_calibrated import accepts, fitted_forms, settings_drawn

from deconvfix.fit import moments
from deconvfix.fit.solve import solve
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from deconvfix.frontends.torch_moments import Moments as TorchMoments
from deconvfix.spec import ConvTransposeSpec


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


@given(cases(), fitted_forms, settings_drawn)
def test_numpy_and_torch_agree_bit_for_bit(case, name, settings):
    """Sums of products of small integers, of their means and of half-pixel weights, are exact in binary
    where the strides are powers of two; nearest upsampling is exact for every stride."""
    if not accepts(name, case, settings):
        return
    if settings.interpolation == "linear" and set(case.spec.stride) - {1, 2, 4}:
        settings = replace(settings, interpolation="nearest")
    case, y = several(case)
    mine = moments_of(name, case, settings, y)
    theirs = TorchMoments(case.spec, name, settings)
    theirs.add(torch.from_numpy(case.x), torch.from_numpy(y))
    assert are_equal(mine, theirs, case.spec.groups)
    assert (mine.samples, mine.has_heldout) == (theirs.samples, theirs.has_heldout)


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


@pytest.mark.parametrize("name", ["equalized", "resize", "notch"])
def test_pieces_of_a_large_map_are_the_whole_map(monkeypatch, name):
    """Memory is bounded by working through samples and lines in pieces."""
    spec = ConvTransposeSpec(4, 6, (4, 3), (2, 2), ((1, 1), (1, 1)), (0, 1), (1, 1), 2, True)
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (6, 4, 7, 5)).astype(np.float32)
    y = rng.integers(-3, 4, (6, 6, *spec.output_size((7, 5)))).astype(np.float32)
    design = form(name).design(spec, Settings(reach=1))
    found = []
    largest = []
    for most in (2**22, 64):
        monkeypatch.setattr(moments, "_MOST_ELEMENTS", most)
        sums = moments.Moments(spec, design)
        original = sums._rows
        sizes = []

        def rows(*args, original=original, sizes=sizes):
            for z in original(*args):
                sizes.append(z.size)
                yield z

        sums._rows = rows
        sums.add(x, y)
        found.append(sums)
        largest.append(max(sizes))
    assert are_equal(*found, 2)
    assert largest[1] < largest[0] / 6


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
    from deconvfix.steps import run

    sums = moments.Moments(spec, form("equalized").design(spec, Settings()))
    sums.add(x, run((step,), x, target, bias))
    start = form("equalized").fit(spec, Settings(), rng.standard_normal((2, 3, 4)))
    solved = solve(sums, start, np.zeros(3))
    np.testing.assert_allclose(solved.kernel, target, rtol=0, atol=1e-6)
    np.testing.assert_allclose(solved.bias, bias, rtol=0, atol=1e-6)
    assert solved.error < 1e-10
