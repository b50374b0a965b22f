"""Diagnosis: grids by the weights, in answers to constants and in real outputs, and whose they are."""

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import oracle
import pytest
import strategies
import torch
from click.testing import CliRunner
from hypothesis import assume, given, settings
from test_fidelity import cancelling
from test_fixtures import heldout, load
from torch import nn

import deconvfix
from deconvfix.cli.main import main
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.forms import EQUALIZED
from deconvfix.forms.base import Settings
from deconvfix.grid import flat_field, spectra, variance
from deconvfix.grid import kernel as artifacts
from deconvfix.grid import periods as grids

NOTHING_DB = -250.0


def box_filtered(spec, rng):
    """A random kernel divided by the box of the stride: the sum rule holds for it."""
    shape = tuple(s * 2 for s in spec.stride)
    weight = rng.standard_normal((spec.in_channels, spec.out_channels // spec.groups, *shape))
    weight[...] = 0
    core = rng.standard_normal((*weight.shape[:2], *(s + 1 for s in spec.stride)))
    for offset in itertools.product(*map(range, spec.stride)):
        at = tuple(slice(o, o + n) for o, n in zip(offset, core.shape[2:], strict=True))
        weight[(..., *at)] += core
    return weight


def layer(*stride, kernel=None, channels=(3, 2)):
    kernel = kernel or tuple(2 * s for s in stride)
    return ConvTransposeSpec.create(*channels, kernel, stride=stride)


# --- from the weights ---------------------------------------------------------------------------


def inner_period(spec, y):
    """The first whole period that all taps reach."""
    for axis, (big, s) in enumerate(zip(spec.effective_kernel_size, spec.stride, strict=True)):
        begin = math.ceil((big - 1) / s) * s
        y = np.take(y, range(begin, begin + s), axis=axis + 2)
    return y


def measured_phases(spec, weight):
    """Phase tables of the definition's answers to one in one channel, (C_in, C_out/g, *s)."""
    sizes = [
        (big - 1) // s + 2 for big, s in zip(spec.effective_kernel_size, spec.stride, strict=True)
    ]
    work = math.prod(sizes) * math.prod(weight.shape) * spec.in_channels
    assume(work < 40_000)
    n = spec.ndim
    # One sample for each input channel, which alone is one.
    x = np.eye(spec.in_channels).reshape(spec.in_channels, spec.in_channels, *[1] * n)
    x = np.broadcast_to(x, (*x.shape[:2], *sizes))
    more = tuple(s - 1 for s in spec.stride)  # phases past the last tap, where s > K
    y = oracle.conv_transpose(
        x, weight, None, spec.stride, ((0, 0),) * n, more, spec.dilation, spec.groups
    )
    y = inner_period(spec, y)
    per = spec.out_channels // spec.groups
    group = np.arange(spec.in_channels) // (spec.in_channels // spec.groups)
    return np.stack([y[ci, g * per : (g + 1) * per] for ci, g in enumerate(group)])


@given(strategies.specs())
@settings(max_examples=60)
def test_ripple_of_each_frequency_by_definition(spec):
    weight = np.random.default_rng(0).standard_normal(spec.weight_shape)
    tables = measured_phases(spec, weight)
    lines = np.fft.fftn(tables, axes=range(2, tables.ndim)) / math.prod(spec.stride)
    power = (np.abs(lines) ** 2).mean((0, 1))
    level = power[(0,) * spec.ndim]
    found = artifacts.frequency_ripples_db(spec, weight)
    assert found.shape == spec.stride
    for u in itertools.product(*map(range, spec.stride)):
        opposite = tuple(-j % s for j, s in zip(u, spec.stride, strict=True))
        tone = power[u] if u == opposite else power[u] + power[opposite]
        if any(u):
            np.testing.assert_allclose(10 ** (found[u] / 10), tone / level, rtol=1e-6, atol=1e-12)


@given(strategies.specs())
@settings(max_examples=60)
def test_powers_of_the_tones_add_up_to_the_ripple(spec):
    weight = np.random.default_rng(1).standard_normal(spec.weight_shape)
    tones = artifacts.frequency_ripples_db(spec, weight)
    once = {
        min(u, tuple(-j % s for j, s in zip(u, spec.stride, strict=True)))
        for u in itertools.product(*map(range, spec.stride))
        if any(u)
    }
    total = sum(10 ** (tones[u] / 10) for u in once)
    whole = 10 ** (artifacts.ripple_db(spec, weight) / 10)
    assert total == pytest.approx(whole, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("stride", [(8,), (2, 3), (2, 1, 2)], ids=str)
def test_box_filtered_kernel_has_no_ripple(stride):
    spec = layer(*stride)
    weight = box_filtered(spec, np.random.default_rng(0))
    assert artifacts.frequency_ripples_db(spec, weight).max() < NOTHING_DB
    assert artifacts.sum_rule_holds(spec, weight, "float64")
    weight[0, 0, 0] += 1e-3
    assert not artifacts.sum_rule_holds(spec, weight, "float32")


@given(strategies.specs())
@settings(max_examples=60)
def test_equalized_weights_hold_the_sum_rule_in_every_dtype(spec):
    weight = np.random.default_rng(2).standard_normal(spec.weight_shape)
    assume(not hasattr(EQUALIZED.settle(spec, Settings(), lambda: weight), "found"))
    fitted = EQUALIZED.fit(spec, Settings(), weight)
    for dtype in ("float64", "float32", "float16"):
        stored = fitted.astype(dtype).astype(np.float64)
        assert artifacts.sum_rule_holds(spec, stored, dtype)


def test_sum_rule_knows_the_dtype():
    spec = layer(2, 2)
    weight = box_filtered(spec, np.random.default_rng(0))
    rounded = weight.astype(np.float16).astype(np.float64)
    assert artifacts.sum_rule_holds(spec, rounded, "float16")
    assert not artifacts.sum_rule_holds(spec, rounded, "float32")


def module(spec, weight, kind=nn.ConvTranspose2d):
    made = kind(
        *(spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride), groups=spec.groups
    )
    made.weight.data = torch.from_numpy(weight).float()
    return made


def bilinear(channels, groups):
    made = nn.ConvTranspose2d(channels, channels, 4, 2, 1, groups=groups, bias=False)
    tent = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    with torch.no_grad():
        made.weight.zero_()
        for ci in range(channels):
            made.weight[ci, 0 if groups > 1 else ci] = torch.outer(tent, tent)
    return made


def unequal(channels=3):
    return nn.ConvTranspose2d(channels, 2, 3, 2, 1, 1)


RNG = np.random.default_rng(0)
EQUAL_ONLY = RNG.standard_normal((3, 2, 4, 4))
SHUFFLE_FREE = EQUALIZED.fit(layer(2, 2), Settings(), EQUAL_ONLY)


@pytest.mark.parametrize(
    ("model", "form", "words", "cost"),
    [
        (nn.ConvTranspose2d(3, 2, 3), "keep", "Stride 1", 1.0),
        (unequal(), "equalized", "phase sums differ", 1.0),
        (nn.ConvTranspose2d(3, 2, 1, 2), "resize", "cannot be corrected", 4.0),
        (module(layer(2, 2), SHUFFLE_FREE), "subpixel", "phase sums are equal", 1.0),
        (module(layer(2, 2), box_filtered(layer(2, 2), RNG)), "resize", "nearest", 2.25),
        (bilinear(3, 3), "resize", "linear upsampling alone is enough", 2.25),
        (bilinear(3, 1), "resize", "linear upsampling alone is enough", 2.25),
        (nn.LazyConvTranspose2d(3, 2, 2), None, "", 0),
    ],
    ids=["stride1", "k3s2", "k1s2", "equal", "box", "bilinear", "diagonal", "lazy"],
)
def test_recommended_form_and_its_cost(model, form, words, cost):
    (found,) = deconvfix.inspect(model).layers
    if form is None:
        assert found.recommendation is None
        return
    assert (found.recommendation.form, found.recommendation.relative_macs) == (form, cost)
    assert words in found.recommendation.reason


def test_computed_weights_are_left_to_the_exact_form():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(2, 3, 3, 3))

        def forward(self, x):
            return nn.functional.conv_transpose2d(x, self.w * 2, stride=2)

    found = deconvfix.inspect(Functional(), (torch.randn(1, 2, 12, 13),))
    (each,) = found.layers
    assert (each.recommendation.form, each.sum_rule) == ("subpixel", None)
    assert each.flat_field.apart > 0


# --- stacked grids ------------------------------------------------------------------------------


def test_periods_multiply_in_execution_order():
    strides = [(2, 2), (3, 1), (8,), (1, 2)]
    assert grids.stacked_periods(strides) == [(6, 4), (3, 1), (8,), (1, 2)]


def test_tones_in_hz_and_which_layers_share_them():
    found = deconvfix.inspect(load("audio_upsampler"), sample_rate=8000)
    up1, up2 = found.layers
    assert (up1.period, up2.period) == ((64,), (8,))
    assert [each.hz for each in up1.frequencies] == [125.0, 250.0, 375.0, 500.0]
    assert [each.hz for each in up2.frequencies] == [1000.0, 2000.0, 3000.0, 4000.0]
    assert [each.coincides_with for each in up1.frequencies] == [()] * 4
    assert [each.coincides_with for each in up2.frequencies] == [("up1",)] * 4


def test_layers_side_by_side_have_the_periods_that_were_seen():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = unequal(), unequal()

        def forward(self, x):
            return self.one(x) + self.two(x)

    model = Branches()
    assert [each.period for each in deconvfix.inspect(model).layers] == [(4, 4), (2, 2)]
    seen = deconvfix.inspect(model, (torch.randn(1, 3, 20, 24),))
    assert [each.period for each in seen.layers] == [(2, 2), (2, 2)]
    assert "one" in seen.outputs[0].peaks[0].layers
    assert "two" in seen.outputs[0].peaks[0].layers


@pytest.mark.parametrize("rate", [0, -1.0, math.nan, math.inf, "8k", True], ids=str)
def test_sample_rate_must_be_a_positive_number(rate):
    with pytest.raises(deconvfix.OptionError, match="a positive number of Hz is needed"):
        deconvfix.inspect(unequal(), sample_rate=rate)


def test_sample_rate_without_sound_is_noted():
    assert "not used" in deconvfix.inspect(unequal(), sample_rate=8000).notes[-1]


@pytest.mark.parametrize("cancels", [True, False])
def test_grids_that_do_not_arrive_are_noted(cancels):
    model = cancelling([10.0, -10.0, 10.0, -9.0])
    model = model if cancels else model[:1]
    found = deconvfix.inspect(model.eval(), (torch.randn(1, 1, 12, 10),))
    assert found.layers[0].ripple_db > 0
    assert any("what follows them takes it away" in each for each in found.notes) == cancels


# --- arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [(4,), (3, 2), (2, 3, 2)], ids=str)
def test_high_pass_lets_the_grid_through_and_takes_ramps_away(period):
    axes = np.meshgrid(*(np.arange(7 * s) for s in period), indexing="ij")
    ramp = 3 + sum(0.1 * (i + 1) * axis for i, axis in enumerate(axes))
    half = tuple(slice(s // 2, 7 * s - s // 2) for s in period)
    phase = axes[-1] % period[-1]
    grid = np.cos(2 * np.pi * phase / period[-1])
    got = spectra.high_pass((ramp + grid)[None, None], period)
    np.testing.assert_allclose(got[0, 0], grid[half], atol=1e-10)


WHITE = {1: (2, 1, 900), 2: (2, 3, 64, 60), 3: (1, 2, 24, 20, 28)}


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_white_noise_has_no_grid(ndim):
    """The share of p-values below 0.05 is what chance gives: at most 12 of 100 (p = 0.002)."""
    period = (4, 2, 2)[:ndim]
    rng = np.random.default_rng(0)
    low = stands_out = 0
    for _ in range(100):
        values = rng.standard_normal(WHITE[ndim])
        low += variance.phase_variance(values, period).p_value < 0.05
        peaks = spectra.spectral_peaks(values, period, {"up": period})
        stands_out += any(each.ratio_db > 12 for each in peaks)
    assert low <= 12
    assert stands_out <= 2


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_planted_grid_is_seen_and_attributed(ndim):
    period = (4, 2, 2)[:ndim]
    values = np.random.default_rng(0).standard_normal(WHITE[ndim])
    columns = np.arange(values.shape[2]) % 2
    values += 0.5 * np.where(columns, 1, -1).reshape(-1, *[1] * (ndim - 1))
    found = variance.phase_variance(values, period)
    assert found.p_value < 1e-12
    assert found.rms == pytest.approx(0.5, rel=0.2)
    # The window takes the variance of white noise down a little.
    assert found.share == pytest.approx(0.25 / 1.25, rel=0.35)
    own = {"slow": period, "fast": (2,) + (1,) * (ndim - 1), "other": (3,) * ndim}
    peak = max(spectra.spectral_peaks(values, period, own, 100.0), key=lambda p: p.ratio_db)
    assert (peak.frequency, peak.layers) == ((0.5,) + (0.0,) * (ndim - 1), ("fast", "slow"))
    assert peak.hz == (50.0 if ndim == 1 else None)


def test_pictures_without_a_grid_are_not_accused():
    """Real photographs have correlated pixels; the F test must not take them for a grid."""
    _, target = heldout("photo_autoencoder")
    for size in (2, 3, 4, 5, 7):
        assert variance.phase_variance(target.numpy(), (size, size)).p_value > 0.01


@pytest.mark.parametrize("values", [np.zeros((1, 1, 64)), np.full((1, 2, 64), 7.1)])
def test_constant_outputs_have_no_grid(values):
    assert variance.phase_variance(values, (4,)).p_value == 1.0
    assert all(each.ratio_db < 100 for each in spectra.spectral_peaks(values, (4,), {}))


def test_radial_spectrum_finds_the_ring_of_a_wave():
    i, j = np.meshgrid(np.arange(128), np.arange(96), indexing="ij")
    wave = np.cos(2 * np.pi * (0.15 * i + 0.2 * j))
    found = spectra.radial_spectrum(wave[None, None])
    assert found.frequency[int(np.argmax(found.power_db))] == pytest.approx(0.25, abs=1 / 64)
    assert spectra.radial_spectrum(wave[None]) is None


def test_layers_with_a_frequency():
    periods = {"a": (8, 8), "b": (2, 2), "c": (2,)}
    half, eighth = Fraction(1, 2), Fraction(1, 8)
    assert grids.layers_with((half, Fraction(0)), periods) == ("b", "a")
    assert grids.layers_with((half, eighth), periods) == ("a",)


# --- constants through layers and networks ------------------------------------------------------


@given(strategies.specs(symmetric=True, torch_limits=True))
@settings(max_examples=40)
def test_flat_field_of_a_layer_is_what_it_answers_inside(spec):
    rng = np.random.default_rng(3)
    weight, constants = (
        rng.standard_normal(spec.weight_shape),
        rng.standard_normal((2, spec.in_channels)),
    )
    bias = rng.standard_normal(spec.out_channels)
    sizes = [
        (big - 1) // s + 2 for big, s in zip(spec.effective_kernel_size, spec.stride, strict=True)
    ]
    x = torch.from_numpy(constants).reshape(2, -1, *[1] * spec.ndim).expand(-1, -1, *sizes)
    function = getattr(nn.functional, f"conv_transpose{spec.ndim}d")
    y = function(
        x,
        torch.from_numpy(weight),
        torch.from_numpy(bias),
        stride=spec.stride,
        output_padding=tuple(s - 1 for s in spec.stride),
        dilation=spec.dilation,
        groups=spec.groups,
    ).numpy()
    y = inner_period(spec, y)
    np.testing.assert_allclose(flat_field.layer_answer(spec, weight, bias, constants), y, atol=1e-9)


@pytest.fixture(scope="module")
def photo():
    inputs, _ = heldout("photo_autoencoder")
    return deconvfix.inspect(load("photo_autoencoder"), (inputs,))


def test_grey_picture_comes_out_of_the_autoencoder_with_its_grid():
    grey = torch.full((1, 3, 64, 96), 0.5)
    (output,) = deconvfix.inspect(load("photo_autoencoder"), (grey,)).outputs
    assert output.period == (8, 8)
    assert 0.03 < output.flat_field.apart < 0.06
    assert -45 < output.flat_field.ripple_db < -30


def test_grid_of_the_autoencoder_is_in_its_pictures(photo):
    (output,) = photo.outputs
    assert [each.period for each in output.phase_variances] == [(8, 8), (4, 4), (2, 2)]
    assert max(each.p_value for each in output.phase_variances) < 1e-3
    assert output.phase_variances[-1].p_value < 1e-50
    assert output.phase_variances[0].layers == ("decoder.2",)
    assert all(layer.flat_field.apart > 0.05 for layer in photo.layers)


def test_peaks_name_the_layers_whose_grid_has_them(photo):
    (output,) = photo.outputs
    layers = {each.frequency: each.layers for each in output.peaks}
    assert layers[0.0, 0.125] == layers[0.375, 0.0] == ("decoder.2",)
    assert layers[0.25, 0.0] == ("decoder.4", "decoder.2")
    assert layers[0.0, 0.5] == ("decoder.6", "decoder.4", "decoder.2")
    strongest = max(output.peaks, key=lambda each: each.ratio_db)
    assert (strongest.frequency, strongest.ratio_db > 10) == ((0.0, 0.5), True)


def test_equalized_autoencoder_has_no_grid():
    inputs, _ = heldout("photo_autoencoder")
    model = deconvfix.convert(load("photo_autoencoder"), to="equalized").model
    found = deconvfix.inspect(model, (inputs[:4],))
    assert all(each.sum_rule for each in found.layers)
    assert found.outputs[0].flat_field.ripple_db < -100


def test_bilinear_layers_make_no_grid():
    inputs, _ = heldout("segmenter")
    found = deconvfix.inspect(load("segmenter"), (inputs[:8],))
    assert all(each.sum_rule and each.worst_ripple_db == -300 for each in found.layers)
    assert {each.recommendation.form for each in found.layers} == {"resize"}
    (output,) = found.outputs
    assert output.flat_field.ripple_db < -100
    assert min(each.p_value for each in output.phase_variances) > 0.01


def test_generators_are_shown_larger_latents():
    inputs, _ = heldout("digits_generator")
    found = deconvfix.inspect(load("digits_generator"), (inputs[:4],))
    assert found.outputs[0].flat_field.ripple_db > -20
    assert found.layers[0].recommendation.form == "keep"


def test_vocoder_hums_in_silence():
    silence = torch.zeros(1, 48, 48)
    found = deconvfix.inspect(load("audio_upsampler"), (silence,), sample_rate=8000)
    peaks = {each.hz: each for each in found.outputs[0].peaks}
    assert (peaks[1000.0].layers, peaks[125.0].layers) == (("up2", "up1"), ("up1",))
    assert peaks[125.0].ratio_db > 40
    assert found.outputs[0].phase_variances[0].p_value < 1e-6


def test_three_dimensions():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.ConvTranspose3d(3, 2, 3, 2, 1, 1))
    found = deconvfix.inspect(model, (torch.randn(2, 1, 8, 9, 10),))
    (output,) = found.outputs
    assert (output.period, output.radial_spectrum) == ((2, 2, 2), None)
    assert output.phase_variances[0].p_value < 1e-6
    assert output.flat_field.apart > 0.01


def test_networks_that_know_their_position_have_no_flat_field():
    class Positional(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = unequal()
            self.where = nn.Parameter(torch.randn(1, 3, 12, 12))

        def forward(self, x):
            return self.up(x + self.where)

    found = deconvfix.inspect(Positional(), (torch.randn(1, 3, 12, 12),))
    assert found.outputs[0].flat_field is None
    assert any("no flat field" in each for each in found.notes)


def test_small_and_unusable_outputs_are_noted():
    class Divided(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = unequal()

        def forward(self, x):
            return self.up(x), self.up(x) / 0, x.argmax(1), x.mean((2, 3))

    found = deconvfix.inspect(Divided(), (torch.randn(1, 3, 3, 3),))
    assert [each.index for each in found.outputs] == [0, 1]
    text = " ".join(found.notes)
    assert "Output 0 has less than four periods of 2x2" in text
    assert "Output 1 has NaN or infinities" in text


def test_inspection_changes_neither_model_nor_inputs():
    model = nn.Sequential(unequal(), nn.BatchNorm2d(2)).train()
    x = torch.randn(2, 3, 9, 9)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    kept = x.clone()
    deconvfix.inspect(model, (x,))
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert model.training
    assert torch.equal(x, kept)


# --- other kinds of models ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), unequal(), nn.ReLU(), nn.ConvTranspose2d(2, 2, 4, 2, 1)
    ).eval()
    return model, torch.randn(1, 2, 12, 14)


def numbers(found):
    (output,) = found.outputs
    return [
        *(each.flat_field.ripple_db for each in found.layers),
        *(each.flat_field.apart for each in found.layers),
        output.flat_field.ripple_db,
        *(each.f_statistic for each in output.phase_variances),
        *(each.ratio_db for each in output.peaks),
        *(n for each in found.layers for n in each.period),
    ]


def kinds(model, x, kind, folder):
    if kind == "fx":
        return torch.fx.symbolic_trace(model)
    shapes = ({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    if kind == "program":
        return program
    deconvfix.export_onnx(model, folder / "m.onnx", (x,), dynamic_shapes=shapes)
    return folder / "m.onnx"


@pytest.mark.parametrize("kind", ["fx", "program", "onnx"])
def test_every_kind_of_model_gives_the_same_diagnosis(small, kind, tmp_path):
    model, x = small
    want = numbers(deconvfix.inspect(model, (x,)))
    other = kinds(model, x, kind, tmp_path)
    got = deconvfix.inspect(other, (x.numpy(),) if kind == "onnx" else (x,))
    # Rounding of another runtime, in decibels and in an F statistic.
    np.testing.assert_allclose(numbers(got), want, rtol=1e-3, atol=1e-3)


# --- gradients ----------------------------------------------------------------------------------


def test_layers_whose_gradient_has_a_grid_are_advice():
    model = nn.ModuleDict(
        {
            "uneven": nn.Conv2d(3, 4, 3, stride=2),
            "even": nn.Conv2d(3, 4, 4, stride=2),
            "dense": nn.Conv2d(3, 4, 3),
            "skip": nn.Conv1d(3, 4, 1, stride=2),
            "pool": nn.MaxPool2d(3, 2),
            "plain": nn.AvgPool2d(2),
            "volume": nn.AvgPool3d((2, 2, 3), (2, 2, 2)),
            "up": nn.ConvTranspose2d(3, 4, 3, 2),
        }
    )
    uneven, skip, pool, volume = deconvfix.inspect(model).advice
    assert uneven.startswith("uneven: Conv2d with kernel 3x3 and stride 2x2: its windows overlap")
    assert skip.startswith("skip: Conv1d with kernel 1 and stride 2: some input pixels get no")
    assert pool.startswith("pool: MaxPool2d with kernel 3x3 and stride 2x2")
    assert volume.startswith("volume: AvgPool3d with kernel 2x2x3 and stride 2x2x2")


def test_the_advice_is_true():
    """Gradients of ones, where the advice says that there is a grid and where it does not."""
    for layer_, has_grid in ((nn.Conv2d(1, 1, 3, stride=2), True), (nn.AvgPool2d(2), False)):
        for parameter in layer_.parameters():
            nn.init.ones_(parameter)
        x = torch.zeros(1, 1, 21, 21, requires_grad=True)
        layer_(x).sum().backward()
        inside = x.grad[0, 0, 4:12, 4:12]
        assert bool(inside.max() > inside.min()) is has_grid
        assert bool(deconvfix.inspect(layer_).advice) is has_grid


# --- JSON and the command line ------------------------------------------------------------------


LAYER_FIELDS = {
    "sum_rule",
    "worst_ripple_db",
    "worst_frequency",
    "frequencies",
    "period",
    "recommendation",
    "flat_field",
}


def test_json_is_finite_and_has_the_documented_fields(photo):
    data = json.loads(json.dumps(photo.to_dict(), allow_nan=False))
    assert data.keys() == {"format", "layers", "notes", "outputs", "advice", "sample_rate"}
    assert all(each.keys() >= LAYER_FIELDS for each in data["layers"])
    assert data["layers"][0]["recommendation"].keys() == {"form", "reason", "relative_macs"}
    assert data["outputs"][0].keys() == {
        "index",
        "shape",
        "period",
        "flat_field",
        "phase_variances",
        "peaks",
        "radial_spectrum",
    }


@pytest.mark.parametrize("level", [0.0, 1.0], ids=["zeros", "ones"])
def test_json_of_degenerate_weights_is_finite(level):
    model = unequal()
    for parameter in model.parameters():
        nn.init.constant_(parameter, level)
    found = deconvfix.inspect(model, (torch.zeros(1, 3, 16, 16),))
    json.dumps(found.to_dict(), allow_nan=False)


def command(*arguments):
    result = CliRunner().invoke(main, ["inspect", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    return " ".join(result.stdout.split())


def test_command_names_forms_peaks_and_gradients(tmp_path):
    inputs, _ = heldout("photo_autoencoder")
    np.savez(tmp_path / "in.npz", image=inputs.numpy())
    text = command(
        "fixtures/photo_autoencoder.safetensors",
        *("--arch", "fixtures.models:photo_autoencoder", "--inputs", tmp_path / "in.npz"),
    )
    assert "decoder.2, decoder.4, decoder.6: equalized. Its phase sums differ" in text
    assert "a constant input gives a ripple of -3" in text
    assert "peak at (0, 0.5) cycles per pixel" in text
    assert "Gradients: encoder.0: Conv2d with kernel 3x3" in text


def test_command_tells_tones_in_hz():
    text = command(
        "fixtures/audio_upsampler.safetensors",
        *("--arch", "fixtures.models:audio_upsampler", "--sample-rate", "8000"),
    )
    assert "up1: tones at 125 Hz (3.1 dB), 250 Hz" in text
    assert "images of up1 fall on them too" in text
