"""Distillation: what it may change, what it may not, and that it ends at its best."""

import itertools
import math

import pytest
import torch
from test_calibrated import error_of, ripples, smooth_batches
from torch import nn

import deconvfix
from deconvfix import Tuning
from deconvfix.errors import OptionError
from deconvfix.frontends.torch.inputs import as_inputs
from deconvfix.frontends.torch.samples import cut, join, split
from deconvfix.frontends.torch.tuning import descent as torch_descent


def decoder():
    """Two converted layers (a wide one, and a weight-normalised one with few outputs), and others."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ConvTranspose2d(3, 9, 4, stride=2, padding=1),
        nn.BatchNorm2d(9),
        nn.LeakyReLU(0.1),
        nn.Conv2d(9, 4, 3, padding=1),
        torch.nn.utils.parametrizations.weight_norm(
            nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1)
        ),
    ).eval()


def convert(model, tuning=None, **options):
    options = {"to": "equalized", "init": "tuned", **options}
    return deconvfix.convert(
        model, calibration=smooth_batches((4, 3, 5, 6)), tuning=tuning, **options
    )


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


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


@pytest.mark.parametrize("stop", [1, 3, 20])
@pytest.mark.parametrize("learning_rate", [None, 1e-3])
def test_an_interrupted_run_goes_on_to_the_same_end(stop, learning_rate, tmp_path):
    """In a trial of a learning rate or in the run itself: to the bit."""
    options = {"steps": 60, "learning_rate": learning_rate}
    want = state_of(convert(decoder(), Tuning(**options)).model)
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if len(seen) == stop + 1:
            raise KeyboardInterrupt

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        convert(decoder(), Tuning(**options, progress=interrupt, resume=path))
    assert path.exists()
    rest = []
    again = convert(decoder(), Tuning(**options, progress=rest.append, resume=path))
    got = state_of(again.model)
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert rest[0].fraction >= seen[-2].fraction, "it did not begin anew"


def test_a_run_goes_on_only_from_its_own_state(tmp_path):
    path = tmp_path / "run.safetensors"
    convert(decoder(), Tuning(steps=10, resume=path))
    with pytest.raises(OptionError, match="of another model, other inputs or other options"):
        convert(decoder(), Tuning(steps=10, seed=1, resume=path))
    path.write_bytes(b"nothing")
    with pytest.raises(OptionError, match="cannot go on from it"):
        convert(decoder(), Tuning(steps=10, resume=path))


def test_a_budget_in_seconds_ends():
    seen = []
    convert(decoder(), Tuning(seconds=0.3, progress=seen.append))
    assert seen
    assert seen[-1].step > 0


def test_wide_kernels_are_moved_by_muon(monkeypatch):
    """The first layer has 3 inputs of 13 free taps and 9 outputs; the second one only 2 outputs."""
    moved = []

    class Watched(torch.optim.Muon):
        def __init__(self, parameters, **options):
            moved.extend(tuple(each.shape) for each in parameters)
            super().__init__(parameters, **options)

    monkeypatch.setattr(torch.optim, "Muon", Watched)
    convert(decoder(), Tuning(steps=2, learning_rate=1e-3))
    assert moved == [(3 * 13, 9)]


@pytest.mark.parametrize(
    ("peak", "chosen", "trials"),
    [
        (3e-3, 3e-3, 3),
        (1.2e-2, 1.2e-2, 4),
        (7.5e-4, 7.5e-4, 5),
        (1.0, 9.6e-2, 6),
        (1e-6, 1.875e-4, 6),
    ],
)
def test_learning_rates_are_climbed(peak, chosen, trials):
    """By steps of two towards the largest gain, and no further than six trials lead."""
    tried = []
    rate, trying = torch_descent._next_rate(tried)
    while trying:
        tried.append((rate, -abs(math.log(rate / peak))))
        rate, trying = torch_descent._next_rate(tried)
    assert rate == pytest.approx(chosen)
    assert len(tried) == trials


@pytest.mark.parametrize(("last", "steps"), [(0.5, 40), (4.0, 21)])
def test_a_run_ends_early_only_if_it_gets_no_better_itself(last, steps):
    """Far from its start at first, as high rates are: what counts is whether it is on its way."""
    parameter, taken, seen = nn.Parameter(torch.zeros(1)), [], []

    def loss(batch):
        taken.append(batch)
        return parameter.sum()

    descent = torch_descent.Descent(
        parameters=[parameter],
        matrices=0,
        batches=itertools.repeat([]),
        loss=loss,
        heldout_loss=lambda: 3 + (last - 3) * len(taken) / 40 if taken else 1.0,
        tuning=Tuning(steps=40, learning_rate=1.0, progress=seen.append),
    )
    _, best = descent.run()
    assert seen[-1].step == len(taken) == steps
    assert best.loss == pytest.approx(min(last, 1.0))


@pytest.mark.parametrize("name", ["seconds", "steps", "learning_rate", "batch_size"])
def test_budgets_are_above_zero(name):
    with pytest.raises(OptionError, match=f"tuning.{name}: the value is 0; a number above 0"):
        Tuning(**{name: 0})


# --- samples ------------------------------------------------------------------------------------


def test_batches_are_cut_where_the_model_treats_samples_alone():
    model = decoder()
    batches = [as_inputs(each) for each in smooth_batches((4, 3, 5, 6), count=2)]
    samples, independent = cut(model, batches)
    assert independent
    assert len(samples) == 8
    [joined] = join(samples)
    assert torch.equal(joined.args[0], torch.cat([each.args[0] for each in batches]))


class _Mixes(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (_Mixes(), torch.randn(4, 3)),
        (nn.ConvTranspose2d(4, 2, 3), torch.randn(4, 5, 6)),
        (nn.Identity(), (torch.randn(4, 3), torch.tensor(1.0))),
        (nn.Identity(), torch.randn(1, 3)),
    ],
    ids=["a mean over samples", "unbatched", "a scalar", "a single sample"],
)
def test_other_batches_stay_whole(model, batch):
    if isinstance(batch, tuple):
        model = nn.Bilinear(3, 1, 2)
    samples, independent = cut(model, [as_inputs(batch)])
    assert not independent
    assert len(samples) == 1


def test_a_quarter_is_held_out():
    fitted, heldout = split([as_inputs(torch.tensor(i)) for i in range(9)])
    assert [int(each.args[0]) for each in heldout] == [3, 7]
    assert [int(each.args[0]) for each in fitted] == [0, 1, 2, 4, 5, 6, 8]
    few = [as_inputs(torch.tensor(0))]
    assert split(few) == (few, few)
