"""Calibrated fits: closer than fits to the weights, and equal however the data comes."""

import math

import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.errors import OptionError
from deconvfix.frontends.torch.calibrate import FittableModule
from deconvfix.frontends.torch.checkpoint import load, write
from deconvfix.frontends.torch.inputs import as_inputs
from deconvfix.plan import Plan
from tests.support.networks import Net, error_of, layers_of_every_kind, ripples, smooth_batches


@pytest.mark.parametrize("options", [{"to": "equalized"}, {"to": "resize"},
                                     {"to": "resize", "interpolation": "linear"},
                                     {"to": "equalized", "grow": 1}, {"to": "notch"},
                                     {"to": "notch", "reach": 1}], ids=str)  # fmt: skip
def test_a_calibrated_model_is_closer_than_one_fitted_to_its_weights(options, tmp_path):
    torch.manual_seed(0)
    model = Net().eval()
    batches, fresh = smooth_batches((4, 4, 6, 8)), smooth_batches((4, 4, 6, 8), seed=1)
    weights_only = deconvfix.convert(model, init="fit", **options)
    got = deconvfix.convert(model, init="calibrated", calibration=batches, **options)
    # On inputs that it was not fitted to. Not by much: random weights have a large ripple, which no
    # kernel of these forms can follow.
    assert error_of(got.model, model, fresh) < error_of(weights_only.model, model, fresh)
    assert any(note.startswith("never did not run") for note in got.report.notes)
    assert got.plan["never"].reason == weights_only.plan["never"].reason
    assert got.plan["up"].reason.startswith("calibrated; ")
    if options["to"] == "equalized":
        # float32 rounds each tap by 6e-8 of its size: -144 dB, and sums of up to 36 of them.
        assert max(ripples(got.model)) < -120 < -40 < max(ripples(model))
    assert Plan.from_json(got.plan.to_json()) == got.plan
    write(tmp_path / "new.safetensors", got.model, got.plan)
    rebuilt = load(tmp_path / "new.safetensors", Net()).eval()
    assert torch.equal(rebuilt(fresh[0]), got.model(fresh[0]))


@pytest.mark.parametrize("to", ["equalized", "resize", "notch"])
@layers_of_every_kind
def test_layers_of_every_kind_are_calibrated(layer, to):
    """Unbatched inputs too: the first axis is a sample's own."""
    shape = (3, layer.in_channels, *(9, 8, 7)[: len(layer.kernel_size)])
    batches = smooth_batches(shape)
    got = deconvfix.convert(layer, to=to, init="calibrated", calibration=batches)
    worse = deconvfix.convert(layer, to=to, init="fit")
    assert error_of(got.model, layer, batches) < error_of(worse.model, layer, batches)
    assert got.report.parity.ok
    if to == "equalized":
        assert max(ripples(got.model)) < -120
    # So few that none is held out, whatever they are counted as.
    one_by_one = [x for batch in batches[:2] for x in batch]
    few, same = (
        deconvfix.convert(layer, to=to, init="calibrated", calibration=given).model
        for given in (batches[:2], one_by_one)
    )
    for one, other in zip(few.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_layer_that_is_free_of_artifacts_is_kept_or_exact():
    layer = nn.ConvTranspose1d(1, 1, 4, stride=2, padding=1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.25, 0.75, 0.75, 0.25]))
    batches = smooth_batches((2, 1, 9))
    kept = deconvfix.convert(layer, to="equalized", init="calibrated", calibration=batches)
    exact = deconvfix.convert(layer, to="resize", init="calibrated", calibration=batches)
    assert kept.plan[""].decision == "kept"
    assert exact.plan[""].exact


def test_the_border_is_the_one_that_fits_best():
    """A zero border is right for a layer with zero padding on inputs with a high mean."""
    torch.manual_seed(1)
    layer = nn.ConvTranspose1d(2, 2, 4, stride=2, padding=1)
    batches = [x + 5 for x in smooth_batches((4, 2, 6))]
    errors = {}
    for mode in ("reflect", "replicate", "zeros", None):
        got = deconvfix.convert(
            layer, to="resize", init="calibrated", calibration=batches, padding_mode=mode
        )
        errors[mode] = error_of(got.model, layer, batches)
        assert got.plan[""].settings.padding_mode == (mode or "zeros")
    assert errors[None] == errors["zeros"] < errors["reflect"]


def test_drawn_inputs_have_the_shapes_of_the_example():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 6), nn.Unflatten(1, (2, 3)), nn.ConvTranspose1d(2, 2, 4, 2, 1)
    )
    results = [
        deconvfix.convert(
            model,
            to="equalized",
            init="calibrated",
            calibration=name,
            example_inputs=(torch.zeros(4, 5),),
        )
        for name in ("normal", "uniform", "normal")
    ]
    weights = [each.model[2].weight for each in results]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "calibration: there are no calibration inputs; init 'calibrated' and 'tuned' fit"),
        ({"calibration": []}, "calibration: it is empty; init 'calibrated' and 'tuned' fit"),
        ({"calibration": "gamma"}, "calibration: the value is 'gamma'; one of 'normal', 'uniform'"),
        ({"calibration": "normal"}, "it is 'normal' and there are no example inputs; example"),
        ({"calibration": [torch.ones(1, 4, 5, 5)], "grow": -1}, "grow: the value is -1; a number"),
    ],
    ids=["none", "empty", "unknown", "no shapes", "grow"],
)
def test_what_is_wrong_is_said(options, text):
    with pytest.raises(OptionError, match=text.replace("(", r"\(")) as caught:
        deconvfix.convert(Net(), to="resize", init="calibrated", **options)
    assert caught.value.todo


def test_inputs_that_are_not_finite_are_refused():
    batches = [*smooth_batches((4, 4, 6, 8)), torch.full((1, 4, 6, 8), math.nan)]
    with pytest.raises(deconvfix.ModelError, match="up: its inputs or outputs are not finite"):
        deconvfix.convert(Net(), to="equalized", init="calibrated", calibration=batches)


def test_traced_models_are_calibrated_too():
    """Their layers are modules, whatever calls them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 4, 2), nn.Tanh(), nn.ConvTranspose1d(3, 2, 3, 2))
    batches = smooth_batches((4, 2, 9))
    results = [
        deconvfix.convert(each, to="equalized", init="calibrated", calibration=batches).model
        for each in (model, torch.fx.symbolic_trace(model))
    ]
    assert torch.equal(results[0](batches[0]), results[1](batches[0]))


def test_a_dry_run_needs_no_data():
    """The plan of a calibrated conversion is pure, and rebuilds the architecture."""
    from deconvfix.frontends.torch.frontend import FRONTEND
    from deconvfix.plan import Options
    from deconvfix.planning import make_plan

    model = Net()
    options = Options(to="equalized", init="calibrated", grow=1)
    plan = make_plan(FRONTEND.find(model, None).matches, options)
    rebuilt = FRONTEND.apply(model, Plan.from_json(plan.to_json()))
    assert rebuilt.up.kernel_size == (6, 6)
    assert rebuilt.up.padding == (2, 2)


class InPlace(nn.Module):
    """A layer that runs twice; what follows changes its output, and its input, in place."""

    def __init__(self, inplace):
        super().__init__()
        self.up = nn.ConvTranspose1d(3, 3, 4, stride=2, padding=1)
        self.act = nn.LeakyReLU(-2.0, inplace=inplace)

    def forward(self, x):
        x = x * 2
        for _ in range(2):
            old, x = x, self.act(self.up(x))
            if self.act.inplace:
                old.zero_()
        return x


@pytest.mark.parametrize("most", [2**30, 0])
def test_what_follows_may_change_outputs_in_place(most, monkeypatch):
    """Features are seen as the layer saw them; whether its outputs are kept or computed again."""
    monkeypatch.setattr("deconvfix.frontends.calibrate._MOST_KEPT", most)
    batches = smooth_batches((4, 3, 9))
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        got = deconvfix.convert(
            InPlace(inplace), to="equalized", init="calibrated", calibration=batches
        )
        found.append(got.model.up.weight)
    assert torch.equal(*found)


@pytest.mark.parametrize("memory", [8.0, 0.5 / 1024], ids=["both are fitted", "the second one is"])
def test_inputs_that_are_kept_are_those_of_the_converted_model(memory, monkeypatch):
    """Of the first layer the original's, in which nothing before it is another; not of one after it."""
    batches = smooth_batches((4, 16, 5, 6))
    found = []
    for most in (2**30, 0):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Tanh(),
            nn.ConvTranspose2d(16, 3, 4, 2, 1),
            nn.LeakyReLU(-2.0, inplace=True),
            nn.ConvTranspose2d(3, 2, 4, 2, 1),
        )
        monkeypatch.setattr("deconvfix.frontends.calibrate._MOST_KEPT", most)
        options = {"to": "equalized", "grow": 1, "init": "calibrated", "memory": memory}
        got = deconvfix.convert(model, calibration=batches, **options)
        assert ("GiB" in " ".join(got.report.notes)) == (memory < 1)
        found.append([got.model[1].weight, got.model[3].weight])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(("to", "grow"), [("equalized", 1), ("resize", 0), ("notch", 0)])
def test_a_regression_that_takes_too_much_memory_is_left_out(to, grow):
    """The layer keeps its fit to the weights, to the bit, and a note says what it would take."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh(), nn.ConvTranspose2d(3, 2, 4, 2, 1)
    )
    batches = smooth_batches((4, 16, 5, 6))
    options = {"to": to, "grow": grow, "calibration": batches, "init": "calibrated"}
    weights_only = deconvfix.convert(model, to=to, grow=grow, init="fit")
    whole = deconvfix.convert(model, **options)
    # 0.5 MiB: more than the second layer needs, less than the first.
    got = deconvfix.convert(model, memory=0.5 / 1024, **options)
    [note] = [each for each in got.report.notes if "GiB" in each]
    assert note.startswith("0: it keeps its fit to the weights, because its regression takes 0.0")
    for name, value in weights_only.model[0].state_dict().items():
        assert torch.equal(value, got.model[0].state_dict()[name])
    assert got.plan["0"].reason == weights_only.plan["0"].reason
    assert got.plan["2"].reason.startswith("calibrated; ")
    assert not any("GiB" in each for each in whole.report.notes)
    with pytest.raises(OptionError, match="memory: the value is 0"):
        deconvfix.convert(model, memory=0, **options)


class Repeats(nn.Module):
    """A layer that runs once on short inputs and twice on long ones."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose1d(3, 3, 4, stride=2, padding=1)

    def forward(self, x):
        y = self.up(x)
        return self.up(y * 3) if x.shape[-1] > 10 else y


@pytest.mark.parametrize("most", [2**30, 0], ids=["kept", "computed again"])
def test_a_second_call_in_a_later_batch_is_seen(most, monkeypatch):
    """The first batch tells the order, but not how often a layer runs."""
    monkeypatch.setattr("deconvfix.frontends.calibrate._MOST_KEPT", most)
    batches = [*smooth_batches((4, 3, 9)), *smooth_batches((4, 3, 12))]
    torch.manual_seed(0)
    model = Repeats()
    given = [as_inputs(batch) for batch in batches]
    fittable = FittableModule(
        model, model, deconvfix.convert(model, to="equalized", init="fit").plan, given, (), 8.0
    )
    assert fittable.order(["up"]) == {"up": 2}
    seen = list(fittable.seen(deconvfix.convert(model, to="equalized", init="fit").plan["up"]))
    assert len(seen) == len(smooth_batches((4, 3, 9))) + 2 * len(smooth_batches((4, 3, 12)))
