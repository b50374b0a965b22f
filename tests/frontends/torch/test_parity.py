"""The comparison of two models, mostly by what it must not let pass."""

import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.frontends.torch import first_run
from deconvfix.frontends.torch import parity as torch_parity
from deconvfix.frontends.torch.parity import compare_modules
from deconvfix.parity.bounds import LIMIT
from tests.support.decoders import Decoder


def swap_phases(layer):
    layer.conv.weight.data = layer.conv.weight.data[[1, 0, *range(2, len(layer.conv.weight))]]


def depth_major_channels(layer):
    """DepthToSpace mode DCR where CRD is meant."""
    order = torch.arange(len(layer.conv.weight)).reshape(layer.out_channels, -1).T.flatten()
    layer.conv.weight.data = layer.conv.weight.data[order]


def shift_crop(layer):
    (begin, end), *others = layer.crop.amounts
    layer.crop.amounts = ((begin - 1, end + 1), *others)


def drop_bias(layer):
    layer.conv.bias.data.zero_()


def one_weight_by_a_thousandth(layer):
    layer.conv.weight.data[0, 0, 0, 0] *= 1.001


MISTAKES = [swap_phases, depth_major_channels, shift_crop, drop_bias, one_weight_by_a_thousandth]


def test_a_correct_conversion_passes(example):
    model = Decoder()
    report = deconvfix.verify(model, deconvfix.convert(model).model, example)
    assert report.ok
    assert report.dtype == "float64"
    assert 0 < report.max_error_ratio <= LIMIT
    assert report.first_departure is None


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("layer", ["first", "second"])
def test_mistakes_fail_and_the_layer_is_named(mistake, layer, example):
    model = Decoder()
    converted = deconvfix.convert(model).model
    mistake(getattr(converted, layer))
    report = deconvfix.verify(model, converted, example)
    assert not report.ok
    assert report.first_departure == layer
    # In float64 a mistake is many orders of magnitude beyond rounding.
    assert report.max_error_ratio > 1e9


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda f: f.__name__)
def test_mistakes_fail_without_example_inputs(mistake):
    model = Decoder()
    conversion = deconvfix.convert(model)
    mistake(conversion.model.first)
    report = compare_modules(model, conversion.model, [], conversion.plan)
    assert not report.ok


def test_a_mistake_outside_the_layers_fails_end_to_end(example):
    model = Decoder()
    converted = deconvfix.convert(model).model
    converted.forward = lambda x: torch.tanh(converted.second(converted.first(x)))
    report = deconvfix.verify(model, converted, example)
    assert not report.ok
    assert report.first_departure is None


@pytest.mark.parametrize("form", ["resize", "equalized"])
def test_a_fitted_form_is_held_against_its_definition(form, example):
    model = Decoder()
    conversion = deconvfix.convert(model, to=form, init="fit", example_inputs=example)
    assert conversion.report.parity.ok
    if form == "resize":
        conversion.model.first.conv.weight.data[0, 0, 0, 0] += 1e-3
        conversion.model.first.pad.amounts = ((0, 2), (1, 1))
        report = compare_modules(model, conversion.model, [example], conversion.plan)
        assert not report.ok


def test_constant_outputs_are_no_evidence(example):
    class Constant(Decoder):
        def forward(self, x):
            return super().forward(x).mean() * 0 + torch.ones(4)

    report = deconvfix.verify(Constant(), Constant(), example)
    assert not report.ok
    assert "constant" in report.problems[0]


class Deaf(Decoder):
    """Its outputs hardly depend on its layers."""

    def forward(self, x):
        return x + 1e-30 * super().forward(x).mean()


def test_outputs_that_ignore_the_layers_are_noted(example):
    model = Deaf()
    report = deconvfix.verify(model, deconvfix.convert(model).model, example)
    assert report.ok
    assert any("hardly depend" in note for note in report.notes)


def test_a_random_model_is_noted(example):
    class Noisy(Decoder):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return super().forward(x) + type(self).calls

    model = Noisy()
    report = deconvfix.verify(model, deconvfix.convert(model).model, example)
    assert any("other outputs when it is run again" in note for note in report.notes)


def test_a_model_with_its_own_seeded_noise_is_compared(example):
    class Dropped(Decoder):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5, training=True)

    model = Dropped()
    report = deconvfix.verify(model, deconvfix.convert(model).model, example)
    assert report.ok
    assert not report.notes


def test_another_number_of_outputs_fails(example):
    model = Decoder()
    converted = deconvfix.convert(model).model
    plain = converted.forward
    converted.forward = lambda x: (plain(x), x)
    report = deconvfix.verify(model, converted, example)
    assert not report.ok
    assert "2 tensors instead of 1" in report.problems[0]


def test_models_that_do_not_widen_are_compared_in_their_own_dtype(example):
    class Half(Decoder):
        def forward(self, x):
            return super().forward(x.float())

    model = Half()
    report = deconvfix.verify(model, deconvfix.convert(model).model, example)
    assert report.ok
    assert report.dtype == "float32"


@pytest.fixture
def dear(monkeypatch):
    """Each run counts as a long one; the list of runs by the class of the model."""
    monkeypatch.setattr(first_run, "_MOST_OPERATIONS", 0)
    runs = []
    for module in (first_run, torch_parity):
        plain = module.run_model

        def counted(model, inputs, plain=plain):
            runs.append(type(model).__name__)
            return plain(model, inputs)

        monkeypatch.setattr(module, "run_model", counted)
    return runs


def test_long_models_run_once_each_and_once_disturbed(dear, example):
    model = Decoder()
    conversion = deconvfix.convert(model, example_inputs=example)
    report = conversion.report.parity
    assert report.ok
    assert report.dtype == "float32"
    assert report.ran
    assert len(dear) <= 5
    assert any("Each run is long" in note for note in report.notes)
    layers = [each for each in report.comparisons if each.what in ("first", "second")]
    assert [each.inputs.split(",")[0] for each in layers] == ["example inputs", "seeded noise"] * 2
    assert all("cropped to" in each.inputs for each in layers)
    # The layers are in float64 all the same.
    assert all(each.max_abs < 1e-13 for each in layers)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("layer", ["first", "second"])
def test_mistakes_in_long_models_fail_and_the_layer_is_named(dear, mistake, layer, example):
    model = Decoder()
    conversion = deconvfix.convert(model)
    mistake(getattr(conversion.model, layer))
    for plan in (None, conversion.plan):
        report = compare_modules(model, conversion.model, [example], plan)
        assert not report.ok
        assert report.first_departure == layer
        assert report.max_error_ratio > 1e9


def test_a_mistake_outside_the_layers_of_a_long_model_fails(dear, example):
    model = Decoder()
    converted = deconvfix.convert(model).model
    converted.forward = lambda x: torch.tanh(converted.second(converted.first(x)))
    report = deconvfix.verify(model, converted, example)
    assert not report.ok
    assert report.first_departure is None


def test_outputs_of_a_long_model_that_ignore_the_layers_are_noted(dear, example):
    model = Deaf()
    report = deconvfix.verify(model, deconvfix.convert(model).model, example)
    assert report.ok
    assert any("hardly depend" in note for note in report.notes)


@pytest.mark.parametrize(
    "norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
@pytest.mark.parametrize("training", [False, True])
def test_computed_weights_of_long_models_are_compared(dear, norm, training, example):
    model = Decoder().train(training)
    norm(model.first)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    conversion = deconvfix.convert(model, example_inputs=example)
    assert conversion.report.parity.ok
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
