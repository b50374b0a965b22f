"""Fidelity against ripple over the strength: what is measured, and told."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import deconvfix
from deconvfix import OptionError
from deconvfix.report.curves import draw_curve
from fixtures.models import photo_autoencoder
from tests.support.curves import svg
from tests.support.networks import Net, ripples, smooth_batches
from tests.support.tuned import decoder


def test_the_curve_of_notch_ends_without_a_grid():
    curve = deconvfix.strength_curve(
        decoder(), to="notch", calibration=smooth_batches((4, 3, 8, 9)), strengths=(0, 0.5, 1)
    )
    first, middle, last = curve.points
    # The sub-pixel form rounds otherwise than the layer: 2**-24 of the range is -144 dB.
    assert first.psnr_db > 130
    assert first.psnr_db > middle.psnr_db > last.psnr_db
    # float32 rounds kernels of up to 36 taps at about -120 dB.
    assert last.layer_ripple_db < -120 < first.layer_ripple_db
    assert last.network_ripple_db < -100
    with pytest.raises(OptionError, match="to: the value is 'resize'"):
        deconvfix.strength_curve(decoder(), to="resize", calibration="normal")


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photo():
    model = deconvfix.load(ROOT / "fixtures/photo_autoencoder.safetensors", photo_autoencoder())
    with np.load(ROOT / "fixtures/photo_autoencoder_heldout.npz") as stored:
        return model, torch.from_numpy(stored["image"])


def test_ripple_and_fidelity_fall_along_the_curve_of_a_trained_network(photo):
    model, images = photo
    state = {name: value.clone() for name, value in model.state_dict().items()}
    curve = deconvfix.strength_curve(model, calibration=[images])
    assert [each.strength for each in curve.points] == [0, 0.25, 0.5, 0.75, 1]
    for values in (
        [each.psnr_db for each in curve.points],
        [each.network_ripple_db for each in curve.points],
        [each.layer_ripple_db for each in curve.points],
    ):
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == 5
    first, *_, last = curve.points
    assert first.psnr_db == math.inf
    assert last.psnr_db > 23
    # float32 rounds to about -140 dB; see test_calibrated.
    assert last.network_ripple_db < -120
    assert last.layer_ripple_db < -120
    found = deconvfix.inspect(model, (images[:8],))
    assert first.network_ripple_db == pytest.approx(found.outputs[0].flat_field.ripple_db)
    assert first.layer_ripple_db == pytest.approx(max(ripples(model)))
    assert curve.notes == (
        "Calibrated fits, compared with the original on 4 calibration samples that were held out.",
    )
    assert model.training, "neither the model's mode nor its weights have changed"
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_point_is_what_the_conversion_does():
    """Fitted to three of four samples, and compared on the others."""
    model = Net().eval()
    [x] = smooth_batches((8, 4, 6, 8), count=1)
    curve = deconvfix.strength_curve(model, calibration=[x], strengths=[0.5])
    [point] = curve.points
    fitted = torch.stack([each for i, each in enumerate(x) if i % 4 != 3])
    got = deconvfix.convert(
        model, to="equalized", init="calibrated", calibration=[fitted], strength=0.5
    ).model
    layers = ("up", "side", "twice", "never")
    ripple = max(ripples(nn.ModuleList([got.get_submodule(name) for name in layers])))
    assert point.layer_ripple_db == pytest.approx(ripple)
    with torch.no_grad():
        old, new = model(x[3::4]), got(x[3::4])
    psnr = 10 * math.log10(float((old.max() - old.min()) ** 2 / (new - old).square().mean()))
    # Sums of float32 in other batches.
    assert point.psnr_db == pytest.approx(psnr, abs=1e-3)


@pytest.mark.parametrize(
    ("init", "count", "told"),
    [
        (
            "fit",
            8,
            "Fits to the weights alone, compared with the original on 2 calibration samples.",
        ),
        ("tuned", 8, "Calibrated fits (tuning moves each closer), compared with the original on 2"),
        ("calibrated", 3, "on 3 calibration samples that they were fitted to: there are too few"),
    ],
)
def test_what_was_measured_is_told(init, count, told):
    [x] = smooth_batches((count, 4, 6, 8), count=1)
    curve = deconvfix.strength_curve(Net(), calibration=[x], strengths=[1.0], init=init)
    assert told in curve.notes[0]
    assert curve.init == ("fit" if init == "fit" else "calibrated")


def test_strengths_are_sorted_and_inputs_may_be_drawn():
    model = nn.Sequential(nn.ConvTranspose1d(2, 2, 4, 2, 1), nn.Tanh())
    curves = [
        deconvfix.strength_curve(
            model,
            calibration="normal",
            strengths=(each for each in (1, 0.5, 1.0)),
            example_inputs=(torch.zeros(8, 2, 12),),
            seed=seed,
        )
        for seed in (0, 0, 1)
    ]
    assert [each.strength for each in curves[0].points] == [0.5, 1.0]
    assert curves[0] == curves[1] != curves[2]


def test_only_the_layers_that_are_asked_for_take_part():
    [x] = smooth_batches((4, 4, 6, 8), count=1)
    curve = deconvfix.strength_curve(
        Net(), calibration=[x], strengths=[1.0], init="fit", exclude=lambda name: name != "up"
    )
    assert curve.points[0].layer_ripple_db < -120
    assert curve.points[0].network_ripple_db > -120


def test_networks_that_know_their_position_have_a_curve_too():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose1d(2, 2, 4, 2)

        def forward(self, x):
            return self.up(x) + torch.linspace(0, 100, 2 * x.shape[-1] + 2)

    [x] = smooth_batches((4, 2, 30), count=1)
    curve = deconvfix.strength_curve(Positions(), calibration=[x], strengths=[0, 1], init="fit")
    assert [each.network_ripple_db for each in curve.points] == [None, None]
    assert curve.rows()[0][2] == "not measured"
    assert "the layers (from the weights)" in svg(draw_curve(curve))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"strengths": []}, "strengths: there are none; a curve has a point for each"),
        ({"strengths": [0.5, 2]}, "strength: the value is 2; a number from 0"),
        ({"init": "random"}, "init: the value is 'random'; one of 'fit', 'calibrated', 'tuned'"),
        ({"calibration": None}, "calibration: there are no calibration inputs"),
        ({"calibration": []}, "calibration: it is empty"),
    ],
    ids=["none", "too much", "random", "no inputs", "empty"],
)
def test_what_is_wrong_is_said(options, text):
    options = {"calibration": [torch.ones(1, 4, 5, 5)], **options}
    with pytest.raises(OptionError, match=re.escape(text)):
        deconvfix.strength_curve(Net(), **options)


def test_other_kinds_of_models_have_no_curve():
    x = (torch.randn(1, 2, 9),)
    program = torch.export.export(nn.ConvTranspose1d(2, 2, 4, 2), x)
    with pytest.raises(OptionError, match=r"a curve is measured on a torch\.nn\.Module"):
        deconvfix.strength_curve(program, calibration=[x])
