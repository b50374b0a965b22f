"""Models with inputs and outputs of all kinds."""

import dataclasses

import pytest
import torch
from torch import nn

import deconvfix
from tests.support.forms import options_of
from tests.support.modules import (
    Containers,
    Nested,
    X,
    convert,
    decisions,
    drawn,
    fill,
    fingerprint,
    up,
)


@dataclasses.dataclass
class Output:
    picture: torch.Tensor
    name: str = "picture"


@dataclasses.dataclass
class Wrapped:
    output: Output


class Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.up = up()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.up(x))


OUTPUTS = {
    "tensor": lambda y: y,
    "tuple": lambda y: (y, y + 1),
    "list": lambda y: [y],
    "dict": lambda y: {"y": y, "n": 3},
    "nested": lambda y: {"a": [(y, None)]},
    "dataclass": Output,
    "integers": lambda y: y.argmax(1),
    "complex": lambda y: torch.fft.rfft2(y),
    "none": lambda y: None,
    "string": lambda y: "done",
}


@pytest.mark.parametrize("wrap", OUTPUTS.values(), ids=list(OUTPUTS))
def test_model_may_return_anything(wrap):
    assert convert(Returns(wrap), X).report.ok


@pytest.mark.parametrize(
    "wrap",
    [
        *(wrap for key, wrap in OUTPUTS.items() if key in ("tuple", "nested", "dataclass")),
        pytest.param(
            lambda y: Wrapped(Output(y)),
        ),
    ],
    ids=["tuple", "nested", "dataclass", "dataclass in a dataclass"],
)
def test_tensors_in_the_output_are_compared(wrap):
    """Negative control: a model with other weights must not pass for the same."""
    model = Returns(wrap)
    other = convert(model, X).model
    with torch.no_grad():
        other.up.conv.bias += 1
    report = deconvfix.verify(model, other, (X,))
    assert not report.ok
    assert any(each.what.startswith("output") and not each.ok for each in report.comparisons)


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = up()

    def forward(self, *, picture, scale=1.0):
        return self.up(picture) * scale


@pytest.mark.parametrize(
    "inputs", [((), {"picture": X, "scale": 2.0}), {"picture": X}], ids=["pair", "dict"]
)
def test_model_may_take_keywords_only(inputs):
    model = Keywords()
    converted = deconvfix.convert(model, example_inputs=inputs).model
    assert torch.equal(converted(picture=X), model(picture=X))


@pytest.mark.parametrize(
    "inputs", [X, [X], (X,), ((X,), {})], ids=["tensor", "list", "tuple", "pair"]
)
def test_example_inputs_in_every_shape(inputs):
    assert deconvfix.convert(nn.Sequential(up()), example_inputs=inputs).report.still_running == ()


def test_example_inputs_are_not_changed():
    x = X.clone()
    deconvfix.convert(nn.Sequential(nn.ReLU(inplace=True), up()), example_inputs=(x,))
    assert torch.equal(x, X)


def test_batch_statistics_and_random_state_are_left_alone():
    torch.manual_seed(5)
    model = nn.Sequential(up(), nn.BatchNorm2d(4), nn.Dropout(0.5), up(4, 2)).train()
    before = fingerprint(model)
    state = torch.get_rng_state()
    converted = convert(model, X).model
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert int(converted[1].num_batches_tracked) == 0
    assert converted[2].training


def test_dropout_in_train_mode_is_compared():
    model = nn.Sequential(up(), nn.Dropout(0.5), up(4, 2)).train()
    report = convert(model, X).report
    assert any(each.what == "output 0" for each in report.parity.comparisons)


def test_model_without_transposed_convolution_is_left_as_it_is():
    model = fill(nn.Conv2d(3, 4, 3))
    conversion = convert(model, X)
    assert conversion.plan.decisions == ()
    assert conversion.report.ok
    assert torch.equal(conversion.model(X), model(X))


@pytest.mark.parametrize("to", ["subpixel", "resize", "equalized"])
def test_bare_layer_is_exchanged(to):
    layer = drawn()
    conversion = convert(layer, X, **options_of(to))
    assert decisions(conversion) == {"": "replaced"}
    assert conversion.model(X).shape == layer(X).shape


def test_bare_layer_can_be_excluded():
    layer = up()
    conversion = convert(layer, X, exclude="*")
    assert type(conversion.model) is nn.ConvTranspose2d
    assert torch.equal(conversion.model(X), layer(X))


def test_model_keeps_its_class_and_other_modules():
    model = Containers()
    converted = convert(model, X).model
    assert type(converted) is Containers
    assert type(converted.items) is nn.ModuleList
    assert list(converted.table) == ["a", "b"]


def test_example_inputs_with_an_empty_batch():
    """Nothing can be compared end to end, but the layers are proven on inputs made up."""
    assert convert(nn.Sequential(up()), X[:0]).report.parity.ok


def test_wrong_conversion_is_caught():
    """Negative control of the parity check on a rerouted and on an exchanged layer."""
    model = Nested(0)
    converted = convert(model, X).model
    with torch.no_grad():
        converted.up.conv.weight[0, 0, 0, 0] += 1e-5
    assert not deconvfix.verify(model, converted, (X,)).ok
