"""The checkers, mostly by what they must not let pass."""

import copy
import math

import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.frontends.torch.compare import compare_tensors, input_variants
from deconvfix.frontends.torch.inputs import as_inputs
from deconvfix.frontends.torch.modes import executed_transposed_convolutions
from deconvfix.frontends.torch.parity import compare_modules
from deconvfix.parity.bounds import LIMIT, Comparison, rounding_unit, summarize


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.ConvTranspose2d(3, 8, 4, 2, 1)
        self.second = nn.ConvTranspose2d(8, 5, 3, (2, 1), 1, (1, 0), groups=1)

    def forward(self, x):
        return torch.tanh(self.second(torch.relu(self.first(x))))


@pytest.fixture
def example():
    return (torch.randn(2, 3, 5, 6),)


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
    conversion = deconvfix.convert(model, to=form, example_inputs=example)
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


def test_outputs_that_ignore_the_layers_are_noted(example):
    class Deaf(Decoder):
        def forward(self, x):
            return x + 1e-30 * super().forward(x).mean()

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


def test_nothing_compared_is_not_ok():
    report = summarize([], [], "float64")
    assert not report.ok
    assert report.problems == ("Nothing was compared: give example inputs.",)


def comparison(got, want, rounding=1e-6):
    return compare_tensors("y", "x", torch.tensor(got), torch.tensor(want), rounding)


@pytest.mark.parametrize(
    ("got", "want", "ok"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.0 + 5e-6], [1.0, 2.0], True),
        ([1.0, 2.0 + 2e-5], [1.0, 2.0], False),
        ([1.0, math.nan], [1.0, math.nan], True),
        ([1.0, math.nan], [1.0, 2.0], False),
        ([1.0, 2.0], [1.0, math.nan], False),
        ([math.inf], [math.inf], True),
        ([math.inf], [-math.inf], False),
        ([math.inf], [3.0], False),
        ([1, 2], [1, 2], True),
        ([1, 2], [1, 3], False),
        ([[1.0]], [1.0], False),
    ],
    ids=str,
)
def test_comparisons(got, want, ok):
    assert comparison(got, want).ok is ok


def test_empty_tensors_agree():
    assert compare_tensors("y", "x", torch.zeros(0, 3), torch.zeros(0, 3), 1e-6).ok


def test_the_rounding_unit_grows_with_long_sums_only():
    assert rounding_unit(1e-7, 50) == 1e-7
    assert rounding_unit(1e-7, 40_000) == pytest.approx(20e-7)


def test_variants_are_noise_a_constant_and_zeros():
    ids = torch.arange(3)
    variants = dict(input_variants(as_inputs((torch.randn(2, 3), ids))))
    assert list(variants) == ["example inputs", "seeded noise", "a constant", "zeros"]
    assert all(each.args[1] is ids for each in variants.values())
    assert variants["a constant"].args[0].unique().numel() == 1


def test_the_first_departure_is_the_first_in_order():
    good = Comparison("a", "x", 0.0, 0.0, True)
    bad = [Comparison(name, "x", 1.0, 100.0, False) for name in ("b", "c")]
    assert summarize([good, *bad], [], "float32").first_departure == "b"


def test_the_watch_names_what_still_runs(example):
    model = Decoder()
    assert executed_transposed_convolutions(model, example) == ["first", "second"]
    half = deconvfix.convert(model, include="first").model
    assert executed_transposed_convolutions(half, example) == ["second"]


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, but models made with it exist
def test_the_watch_sees_into_torchscript(example):
    scripted = nn.Sequential(torch.jit.trace(copy.deepcopy(Decoder()), example))
    assert len(executed_transposed_convolutions(scripted, example)) == 2


def test_the_gradient_of_a_convolution_is_not_watched():
    """Its operator is a transposed convolution by arithmetic, not by name."""

    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            with torch.enable_grad():
                x = x.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(self.conv(x).square().sum(), x)
            return gradient

    assert executed_transposed_convolutions(Energy(), (torch.randn(1, 3, 5, 6),)) == []


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
@pytest.mark.parametrize("stride", [3, 5, 7])
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "weight norm"])
def test_a_kernel_that_divides_up_to_rounding_is_no_departure(stride, interpolation, normed):
    """Thirds are not exact in float32: float64 sees the rounding of the stored weights.

    A wrong kernel is still noticed, in the layer.
    """
    torch.manual_seed(0)
    size = 2 * stride - 1
    taps = 1 - (torch.arange(size) - (size - 1) / 2).abs() / stride
    layer = nn.ConvTranspose2d(2, 3, size, stride, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(2, 3, 1, 1) * torch.outer(taps, taps))
    if normed:
        layer = torch.nn.utils.parametrizations.weight_norm(layer)
    model, x = nn.Sequential(layer, nn.ReLU()), (torch.randn(1, 2, 5, 6),)
    got = deconvfix.convert(
        model, to="resize", interpolation=interpolation, padding_mode="zeros", example_inputs=x
    )
    assert got.report.layers[0].exact
    assert got.report.parity.ok
    assert "layer by layer" in got.report.parity.notes[-1]
    with torch.no_grad():
        got.model[0].conv.weight[0, 0, 0, 0] += 1e-5
    assert not compare_modules(model, got.model, [x], got.plan).ok
