"""Layers and networks that keep a part of their imbalance."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import deconvfix
from deconvfix import Tuning
from deconvfix.errors import Refusal
from deconvfix.forms.base import Settings
from deconvfix.frontends.torch.checkpoint import load, write
from deconvfix.frontends.torch.layers import read_weight, spec_of
from deconvfix.plan import Plan
from tests.support.networks import Net, error_of, layers_of_every_kind, smooth_batches
from tests.support.strength import EQUALIZED, unequal
from tests.support.tuned import decoder

# --- models -------------------------------------------------------------------------------------


def check_imbalance(layer, old, left):
    """`layer` has what is left of the imbalance of `old`; its weights round in float32.

    Each of the n taps of a phase by 2^-24 of its size, and the parts that it was put together from by
    as much: 4 n 2^-24 of the largest.
    """
    spec, old_spec = spec_of(layer), spec_of(old)
    kernel = read_weight(layer.weight)
    got = unequal(kernel, spec.stride, spec.dilation)
    was = unequal(read_weight(old.weight), old_spec.stride, old_spec.dilation)
    if kernel.shape != tuple(old.weight.shape):
        more = [
            (new - k) // 2 * d
            for new, k, d in zip(
                spec.kernel_size, old_spec.kernel_size, old_spec.dilation, strict=True
            )
        ]  # the phases count from a tap that is so much further
        axes = tuple(range(2, was.ndim))
        was = np.roll(was, more, axes)
    bound = 4 * math.prod(kernel.shape[2:]) * 2.0**-24 * float(np.abs(kernel).max())
    np.testing.assert_allclose(got, left * was, rtol=0, atol=bound)
    return float(np.abs(was).max()) / bound


@pytest.mark.parametrize("grow", [0, 1])
@pytest.mark.parametrize("init", ["fit", "calibrated"])
@layers_of_every_kind
def test_layers_of_every_kind_keep_a_part_of_their_ripple(layer, init, grow):
    if grow and torch.nn.utils.parametrize.is_parametrized(layer):
        return  # weights of another shape are refused there
    shape = (3, layer.in_channels, *(9, 8, 7)[: len(layer.kernel_size)])
    batches = smooth_batches(shape)
    errors = []
    for strength in (0.25, 0.75, 1.0):
        got = deconvfix.convert(
            layer, to="equalized", init=init, calibration=batches, grow=grow, strength=strength
        )
        # There is much more to see than the bound allows, so that a wrong factor would be seen.
        assert check_imbalance(got.model, layer, 1 - strength) > 1e3
        assert got.report.parity.ok
        errors.append(error_of(got.model, layer, batches))
    assert errors == sorted(errors)
    assert errors[0] < errors[2]


def test_a_wrong_factor_is_noticed():
    layer = nn.ConvTranspose2d(3, 2, 4, stride=2)
    got = deconvfix.convert(layer, to="equalized", init="fit", strength=0.5)
    with pytest.raises(AssertionError):
        check_imbalance(got.model, layer, 0.499)


def test_calibrated_models_move_less_at_less_strength(tmp_path):
    model = Net().eval()
    batches, fresh = smooth_batches((4, 4, 6, 8)), smooth_batches((4, 4, 6, 8), seed=1)
    errors = []
    for strength in (0.3, 0.6, 1.0):
        got = deconvfix.convert(
            model, to="equalized", init="calibrated", calibration=batches, strength=strength
        )
        errors.append(error_of(got.model, model, fresh))
        for name in ("up", "side", "twice", "never"):
            check_imbalance(got.model.get_submodule(name), model.get_submodule(name), 1 - strength)
        told = got.plan["up"].reason
        assert told.endswith(f", strength {strength:g}") == (strength != 1)
    assert errors == sorted(errors)
    assert got.plan["up"].settings.strength == 1.0
    half = deconvfix.convert(model, to="equalized", init="fit", strength=0.5)
    assert Plan.from_json(half.plan.to_json()) == half.plan
    write(tmp_path / "new.safetensors", half.model, half.plan)
    rebuilt = load(tmp_path / "new.safetensors", Net()).eval()
    assert torch.equal(rebuilt(fresh[0]), half.model(fresh[0]))


def test_the_default_strength_is_1():
    model, batches = Net(), smooth_batches((4, 4, 6, 8))
    for init in ("fit", "calibrated"):
        results = [
            deconvfix.convert(
                model, to="equalized", init=init, calibration=batches, **options
            ).model.state_dict()
            for options in ({}, {"strength": 1})
        ]
        assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize("train_all", [False, True])
def test_tuned_kernels_stay_beside_what_is_left_of_the_imbalance(train_all):
    model = decoder()
    batches, fresh = smooth_batches((4, 3, 5, 6)), smooth_batches((4, 3, 5, 6), seed=1)
    options = {"to": "equalized", "calibration": batches, "strength": 0.5}
    calibrated = deconvfix.convert(model, init="calibrated", **options)
    tuning = Tuning(steps=60, train_all=train_all)
    tuned = deconvfix.convert(model, init="tuned", tuning=tuning, **options)
    assert error_of(tuned.model, model, fresh) < error_of(calibrated.model, model, fresh)
    for name in ("0", "4"):
        new, old = tuned.model.get_submodule(name), model.get_submodule(name)
        assert not torch.equal(new.weight, calibrated.model.get_submodule(name).weight)
        assert check_imbalance(new, old, 0.5) > 1e3
    assert list(tuned.model.state_dict()) == list(calibrated.model.state_dict())


# --- strength 0 ---------------------------------------------------------------------------------


class Difficult(nn.Module):
    """Layers that the equalized form refuses: an empty phase, a frozen weight, a computed one."""

    def __init__(self):
        super().__init__()
        self.gaps = nn.ConvTranspose2d(2, 2, 1, stride=2)
        self.normed = torch.nn.utils.parametrizations.spectral_norm(
            nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1)
        )
        self.kernel = nn.Parameter(torch.ones(2, 2, 4, 4))

    def forward(self, x):
        x = self.normed(self.gaps(x))
        return nn.functional.conv_transpose2d(x, self.kernel * 2, stride=2)


@pytest.mark.parametrize("init", [None, "exact", "fit", "calibrated", "tuned"])
def test_strength_0_changes_nothing_and_refuses_nothing(init):
    model = Difficult().eval()
    x = torch.randn(1, 2, 3, 4)
    refused = deconvfix.convert(model, to="equalized", init="fit", example_inputs=(x,))
    assert len(refused.plan.refused) >= 2
    got = deconvfix.convert(
        model, to="equalized", init=init, example_inputs=(x,), strength=0, grow=1, strict=True
    )
    assert {each.decision for each in got.plan.decisions} == {"kept"}
    assert all(each.exact and "strength 0" in each.reason for each in got.plan.decisions)
    assert got.report.fidelity is None
    state = got.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(got.model(x), model(x))
    slight = deconvfix.convert(
        model, to="equalized", init="fit", example_inputs=(x,), strength=1e-3
    )
    assert [each.name for each in slight.plan.refused] == [
        each.name for each in refused.plan.refused
    ]


def test_random_weights_are_no_part_of_the_layer_whatever_the_strength():
    settings = Settings(init="random", strength=0.0)
    spec = spec_of(nn.ConvTranspose2d(2, 2, 4, stride=2))
    assert isinstance(EQUALIZED.settle(spec, settings, None), Refusal)


# --- the notch form -----------------------------------------------------------------------------


def test_notch_at_half_strength_has_half_the_ripple():
    """20 log10(1/2) = -6.02 dB for the fit to the weights; one unit of float32 is far below 1e-4 dB."""
    model, x = decoder(), smooth_batches((2, 3, 5, 6))[0]
    half = deconvfix.convert(model, to="notch", init="fit", strength=0.5, example_inputs=(x,))
    even = half.report.layers[0]  # k4 s2: the mean level of the phases stays, too
    change = even.ripple_db_after - even.ripple_db_before
    assert change == pytest.approx(20 * math.log10(0.5), abs=1e-4)
    none = deconvfix.convert(model, to="notch", init="fit", strength=0.0, example_inputs=(x,))
    assert all(each.exact for each in none.report.layers)
    assert error_of(none.model, model, [x]) < error_of(half.model, model, [x]) * 1e-6
