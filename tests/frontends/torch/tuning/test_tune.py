"""Distillation: what it may change, what it may not, and that it ends at its best."""

import pytest
import torch
from torch import nn

import deconvfix
from deconvfix import Tuning
from tests.support.networks import error_of, ripples, smooth_batches
from tests.support.tuned import convert, decoder, state_of


@pytest.mark.parametrize("to", ["equalized", "resize", "notch"])
def test_tuning_is_closer_than_calibration_and_stays_in_the_form(to):
    model = decoder()
    fresh = smooth_batches((4, 3, 5, 6), seed=1)
    calibrated = convert(model, to=to, init="calibrated")
    tuned = convert(model, Tuning(steps=150), to=to)
    assert error_of(tuned.model, model, fresh) < error_of(calibrated.model, model, fresh)
    assert tuned.report.parity.ok
    assert tuned.plan.replaced[0].reason.endswith(", then tuned")
    assert all(each < -120 for each in ripples(tuned.model))  # as for calibrated ones
    assert list(tuned.model.state_dict()) == list(calibrated.model.state_dict())
    assert all(not hasattr(each, "basis") for each in tuned.model.modules())


def test_only_the_converted_layers_move():
    model = decoder()
    before = state_of(model)
    after = state_of(convert(model, Tuning(steps=5)).model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith(("0.", "4.")) for name in moved)
    assert {"0.weight", "0.bias", "4.bias"} <= moved
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_all_parameters_follow_on_request():
    """Running statistics do not: the models run in eval mode."""
    model = decoder()
    before = state_of(model)
    after = state_of(convert(model, Tuning(steps=20, train_all=True)).model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"1.weight", "3.weight", "3.bias"} <= moved
    assert not {"1.running_mean", "1.running_var"} & moved
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "the input is not changed"


def test_steps_and_a_seed_determine_the_result():
    results = [
        state_of(convert(decoder(), Tuning(steps=12, seed=seed)).model) for seed in (3, 3, 4)
    ]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert not all(torch.equal(results[0][name], results[2][name]) for name in results[0])


def test_the_best_state_is_kept():
    """A learning rate that destroys the model leaves the calibrated one, to the bit."""
    calibrated = state_of(convert(decoder(), init="calibrated", to="resize").model)
    seen = []
    tuning = Tuning(steps=8, learning_rate=1e3, progress=seen.append)
    ruined = convert(decoder(), tuning, to="resize")
    assert all(
        torch.equal(value, calibrated[name]) for name, value in ruined.model.state_dict().items()
    )
    assert min(each.loss for each in seen) > seen[0].best
    assert any("in 0 steps at" in each for each in ruined.report.notes)


def test_progress_and_a_loss_of_ones_own():
    seen, calls = [], []

    def loss(new, old):
        calls.append(new.requires_grad)
        return (new - old).abs().mean()

    convert(decoder(), Tuning(steps=10, loss=loss, progress=seen.append))
    assert any(calls)
    assert [each.fraction for each in seen] == sorted(each.fraction for each in seen)
    assert seen[-1].fraction == 1.0
    assert seen[-1].best <= seen[0].loss


def test_outputs_of_the_original_are_computed_once_where_they_fit(monkeypatch):
    """Kept or computed anew, they are the same: batches of one sample round as one sample does."""
    runs = []
    original = decoder()
    original[3].register_forward_hook(lambda module, args, output: runs.append(len(output)))
    tuning = Tuning(steps=6, batch_size=1, learning_rate=1e-3)
    kept = state_of(convert(original, tuning).model)
    few = len(runs)
    monkeypatch.setattr("deconvfix.frontends.calibrate._MOST_KEPT", 0)
    again = state_of(convert(original, tuning).model)
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert len(runs) - few > few


@pytest.mark.parametrize(
    ("pixels", "batch_size", "wanted"), [(6, None, 64), (32, None, 20), (6, 20, 20), (6, 3, 4)]
)
def test_of_a_distribution_a_step_sees_more_than_the_example(
    pixels, batch_size, wanted, monkeypatch
):
    """Four at once here, for the example has four; fewer of large outputs, unless a number is given."""
    monkeypatch.setattr("deconvfix.frontends.torch.tuning.tune._MOST_VALUES", 2**16)
    seen = []

    def loss(new, old):
        if new.requires_grad:
            seen.append(len(new))
        return (new - old).square().mean()

    layer = nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1)
    deconvfix.convert(
        layer,
        to="equalized",
        init="tuned",
        tuning=Tuning(steps=2, learning_rate=1e-4, loss=loss, batch_size=batch_size),
        calibration="normal",
        example_inputs=torch.randn(4, 2, pixels // 2, pixels // 2 + 1),
    )
    assert set(seen) == {wanted}


def test_a_budget_in_seconds_ends():
    seen = []
    convert(decoder(), Tuning(seconds=0.3, progress=seen.append))
    assert seen
    assert seen[-1].step > 0
