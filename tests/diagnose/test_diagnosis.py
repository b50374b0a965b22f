"""Diagnosis: grids by the weights, in answers to constants and in real outputs, and whose they are."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.grid import variance
from tests.support.fidelity import cancelling
from tests.support.networks import unequal
from tests.support.trained import heldout, load

# --- stacked grids ------------------------------------------------------------------------------


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
    assert any("later layers cancel it" in each for each in found.notes) == cancels


# --- arrays -------------------------------------------------------------------------------------


def test_pictures_without_a_grid_are_not_accused():
    """Real photographs have correlated pixels; the F test must not take them for a grid."""
    _, target = heldout("photo_autoencoder")
    for size in (2, 3, 4, 5, 7):
        assert variance.phase_variance(target.numpy(), (size, size)).p_value > 0.01


# --- constants through layers and networks ------------------------------------------------------


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
    model = deconvfix.convert(load("photo_autoencoder"), to="equalized", init="fit").model
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
    assert "Output 0 has fewer than four periods of 2x2" in text
    assert "Output 1 contains NaN or infinite values" in text


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
        "visible",
        "heard",
    }


@pytest.mark.parametrize("level", [0.0, 1.0], ids=["zeros", "ones"])
def test_json_of_degenerate_weights_is_finite(level):
    model = unequal()
    for parameter in model.parameters():
        nn.init.constant_(parameter, level)
    found = deconvfix.inspect(model, (torch.zeros(1, 3, 16, 16),))
    json.dumps(found.to_dict(), allow_nan=False)
