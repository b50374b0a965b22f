"""The equalized form: no ripple, by the smallest correction."""

import math

import numpy as np
import pytest
from hypothesis import given

from deconvfix.core.phases import phase_sums
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.errors import Refusal
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from tests.support.forms import bilinear, phases_of, spread_of_phases
from tests.support.strategies import cases


@given(cases())
def test_equalized_has_no_ripple_or_is_refused(case):
    settled = form("equalized").settle(case.spec, Settings(), lambda: case.weight)
    counts = [
        np.bincount(phase, minlength=s)
        for phase, s in zip(phases_of(case.spec), case.spec.stride, strict=True)
    ]
    assert isinstance(settled, Refusal) == any(0 in count for count in counts)
    if not isinstance(settled, Refusal):
        new = form("equalized").fit(case.spec, settled.settings, case.weight)
        assert spread_of_phases(case.spec, new) <= 1e-12 * max(1.0, np.abs(new).sum())


@given(cases())
def test_equalized_is_the_smallest_correction(case):
    """Against numpy's minimum-norm solution of the constraints 'all phase sums are equal'."""
    spec = case.spec
    if isinstance(form("equalized").settle(spec, Settings(), lambda: case.weight), Refusal):
        return
    size, phases = math.prod(spec.kernel_size), math.prod(spec.stride)
    member = np.stack(
        [
            phase_sums(unit.reshape(1, 1, *spec.kernel_size), phases_of(spec), spec.stride).ravel()
            for unit in np.eye(size)
        ],
        axis=1,
    )
    differences = member[1:] - member[:1]
    flat = case.weight.reshape(-1, size)
    change = -np.linalg.pinv(differences) @ differences @ flat.T if phases > 1 else 0 * flat.T
    want = (flat + change.T).reshape(case.weight.shape)
    new = form("equalized").fit(spec, Settings(), case.weight)
    np.testing.assert_allclose(new, want, rtol=0, atol=1e-9)


def test_equalized_leaves_even_kernels_alone():
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    settled = form("equalized").settle(spec, Settings(), lambda: bilinear(spec))
    assert settled.exact
    assert "already equal" in settled.note


def test_even_kernels_are_kept():
    spec = ConvTransposeSpec.create(2, 2, (4,), stride=2, padding=1, groups=2)
    settled = form("equalized").settle(spec, Settings(), lambda: bilinear(spec))
    assert (settled.form, settled.exact) == ("keep", True)
    assert settled.note == "phase sums are already equal"


def test_a_strength_of_zero_keeps_the_layer():
    spec = ConvTransposeSpec.create(2, 3, (3,), stride=2)
    settled = form("equalized").settle(spec, Settings(strength=0.0), None)
    assert (settled.form, settled.settings.init, settled.note) == (
        "keep", "exact", "strength 0: left unchanged",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "weight", "words"),
    [
        (
            Settings(),
            None,
            "its weight is computed while the model runs; a stored weight is needed",
        ),
        (
            Settings(init="exact"),
            np.arange(18.0).reshape(2, 3, 3),
            "needs equal phase sums. Use init",
        ),
        (
            Settings(init="random"),
            np.ones((2, 3, 3)),
            "Use init 'calibrated', or the form 'resize'",
        ),
    ],
)
def test_refusals_say_what_to_do(settings, weight, words):
    spec = ConvTransposeSpec.create(2, 3, (3,), stride=2)
    refusal = form("equalized").settle(spec, settings, None if weight is None else lambda: weight)
    assert words in refusal.sentence("up")
    assert "None" not in refusal.sentence("up")
