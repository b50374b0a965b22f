"""The notch form by its definition: the grid of local means is taken out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvfix.core.rearrange import rearrange
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import run
from deconvfix.errors import Refusal
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from deconvfix.plan import Match, Options
from deconvfix.planning import make_plan
from tests.support import oracle
from tests.support.forms import bilinear, run_form
from tests.support.strategies import cases

reaches = st.builds(
    Settings,
    init=st.just("fit"),
    reach=st.integers(1, 3),
    grow=st.integers(0, 1),
    strength=st.sampled_from([1.0, 0.25]),
)


def has_all_phases(case):
    settled = form("equalized").settle(case.spec, Settings(), lambda: case.weight)
    return not isinstance(settled, Refusal)


@given(cases(), reaches)
def test_notch_takes_out_the_grid_of_local_means(case, settings):
    """By definition: y = x (*) W - h*x (*) sI, I the part of W with unequal phase sums.

    Exact in real numbers; float64 rounds values below 1e4 to far less than 1e-9.
    """
    if not has_all_phases(case):
        return
    full = replace(settings, strength=1.0)
    spec, even = form("equalized").equivalent(case.spec, full, case.weight)
    margins = [
        ((new - old) // 2,) * 2
        for new, old in zip(spec.kernel_size, case.spec.kernel_size, strict=True)
    ]
    uneven = settings.strength * (np.pad(case.weight, [(0, 0), (0, 0), *margins]) - even)
    geometry = (spec.stride, spec.padding, spec.output_padding, spec.dilation, spec.groups)
    means = oracle.local_mean(case.x, [settings.reach if s > 1 else 0 for s in spec.stride])
    grid = oracle.conv_transpose(means, uneven, None, *geometry)
    np.testing.assert_allclose(
        run_form("notch", case, settings), case.expected - grid, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("name", ["notch", "subpixel"])
def test_notch_has_no_grid_on_constants(name):
    """In the interior; the sub-pixel form, the same function as the layer, is the control."""
    spec = ConvTransposeSpec.create(4, 6, (3, 5), stride=(2, 3), padding=(1, 2), groups=2)
    rng = np.random.default_rng(3)
    weight = rng.standard_normal(spec.weight_shape)
    x = rng.standard_normal((1, 4, 1, 1)) + np.zeros((12, 10))
    compiled = form(name).compile(spec, Settings())
    kernel = form(name).fit(spec, Settings(), weight)
    y = run(compiled.steps, x, rearrange(compiled.weight, kernel, 2))[0, :, 2:-2, 3:-3]
    assert (float(np.ptp(y.reshape(6, -1), axis=1).max()) < 1e-12) == (name == "notch")


def test_a_layer_without_a_grid_becomes_its_subpixel_form():
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    match = Match("up", "op", spec, "float32", read_weight=lambda: bilinear(spec))
    (decision,) = make_plan([match], Options(to="notch", init="calibrated")).decisions
    assert (decision.form, decision.exact, decision.settings.init) == ("subpixel", True, "exact")


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.25])
def test_the_columns_of_the_design_are_orthonormal(strength):
    """Then a ridge treats all kernels of the form alike."""
    spec = ConvTransposeSpec.create(2, 3, (5,), stride=2, padding=2)
    basis = form("notch").design(spec, Settings(reach=2, strength=strength)).basis
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
