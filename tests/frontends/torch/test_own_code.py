"""Weights that are corrected in place, in layers and calls that code of the user's own runs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deconvfix
from deconvfix.frontends.torch import surgery
from deconvfix.frontends.torch.frontend import FRONTEND
from deconvfix.plan import Plan


class Causal(nn.ConvTranspose1d):
    """Cuts off what lies ahead, as decoders of speech do."""

    def forward(self, x):
        return super().forward(x)[..., : -self.stride[0]]


class Scaled(nn.ConvTranspose1d):
    """Does not use its weight as it is stored."""

    def forward(self, x):
        return F.conv_transpose1d(x, self.weight * 2, self.bias, self.stride)


class Calls(nn.Module):
    """A function call with a parameter; `uses` says what else is done with it."""

    def __init__(self, uses=lambda weight: 0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 4, 5))
        self.bias = nn.Parameter(torch.randn(3))
        self.uses = uses

    def forward(self, x):
        assert x.shape[1] == self.weight.shape[0]
        y = F.conv_transpose2d(x, self.weight, self.bias, stride=(2, 3), padding=1)
        return y + self.uses(self.weight)


class Two(Calls):
    def __init__(self):
        super().__init__()
        self.other = nn.Parameter(torch.zeros(4, 3, 4, 5))


def network(kind):
    torch.manual_seed(0)
    if kind is Calls:
        return nn.Sequential(Calls(), nn.ReLU()), (torch.randn(1, 4, 5, 6),)
    return nn.Sequential(Causal(4, 3, 4, 2), nn.ReLU()), (torch.randn(1, 4, 9),)


KINDS = [Causal, Calls]


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_weight_changes(kind):
    model, x = network(kind)
    conversion = deconvfix.convert(model, to="equalized", init="fit", example_inputs=x, strict=True)
    assert type(conversion.model[0]) is kind
    before, after = model.state_dict(), conversion.model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["0.weight"]
    (found,) = deconvfix.inspect(conversion.model, x).layers
    assert found.ripple_db < -120 < deconvfix.inspect(model, x).layers[0].ripple_db
    # The same from a recipe, as it is applied to a checkpoint.
    again = FRONTEND.apply(network(kind)[0], Plan.from_json(conversion.plan.to_json()))
    assert torch.equal(again[0].weight, conversion.model[0].weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"grow": 1}, {"init": "calibrated"}], ids=str)
def test_what_needs_a_plain_layer_is_refused(kind, options):
    model, x = network(kind)
    if "init" in options:
        options = {**options, "calibration": [x]}
    (decision,) = deconvfix.convert(
        model, to="equalized", example_inputs=x, **options
    ).plan.decisions
    assert decision.decision == "refused"


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: Scaled(4, 3, 4, 2), torch.ones(1, 4, 9)),
        (lambda: Calls(lambda weight: weight.square().sum()), torch.ones(1, 4, 5, 6)),
        (Two, torch.ones(1, 4, 5, 6)),
    ],
    ids=["another weight", "a second use", "two of the shape"],
)
def test_weights_with_another_meaning_are_refused(make, x):
    torch.manual_seed(0)
    model = nn.Sequential(make())
    (decision,) = deconvfix.convert(
        model, to="equalized", init="fit", example_inputs=(x,)
    ).plan.decisions
    assert decision.decision == "refused"


def test_without_a_run_nothing_is_known_of_own_code():
    model, _ = network(Causal)
    (decision,) = deconvfix.convert(model, to="equalized", init="fit").plan.decisions
    assert decision.decision == "refused"


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_weight_is_noticed(kind, monkeypatch):
    correct = surgery._assign

    def wrong(parameter, value):
        correct(parameter, value * 1.001)

    monkeypatch.setattr(surgery, "_assign", wrong)
    model, x = network(kind)
    with pytest.raises(deconvfix.DeconvfixError, match="differs by"):
        deconvfix.convert(model, to="equalized", init="fit", example_inputs=x)
