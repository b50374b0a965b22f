"""A grid that has to go on some constant inputs only: silence."""

import numpy as np
import pytest
import torch
from torch import nn

import deconvfix
from deconvfix import Tuning
from deconvfix.core.phases import phase_of_taps, phase_sums
from deconvfix.errors import OptionError
from tests.support.networks import error_of


def vocoder():
    """Two strided layers with groups, a weight norm and convolutions between; silence makes tones."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(4, 6, 3, padding=1),
        nn.LeakyReLU(0.1),
        torch.nn.utils.parametrizations.weight_norm(
            nn.ConvTranspose1d(6, 4, 8, stride=4, padding=2, groups=2)
        ),
        nn.LeakyReLU(0.1),
        nn.Conv1d(4, 4, 3, padding=1),
        nn.ConvTranspose1d(4, 2, 6, stride=3, padding=1, output_padding=1),
    ).eval()


SILENCE = torch.zeros(1, 4, 24)


def batches(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 4, 16, generator=generator) for _ in range(4)]


@torch.no_grad()
def tones(model):
    """The spread within two periods of 12 in the middle of the answer to silence."""
    y = model(SILENCE)[..., 132:156]
    return float((y - y.mean(-1, keepdim=True)).square().mean().sqrt())


@pytest.mark.parametrize("init", ["calibrated", "tuned"])
@pytest.mark.parametrize("grow", [0, 1])
def test_silence_is_silent_and_the_rest_is_closer(init, grow):
    model = vocoder()
    options = {
        "to": "equalized",
        "init": init,
        "calibration": batches(),
        "tuning": Tuning(steps=40),
        "example_inputs": (SILENCE,),
        "grow": grow,
    }
    everywhere = deconvfix.convert(model, **options).model
    got = deconvfix.convert(model, flat_inputs="zeros", **options)
    assert got.report.parity.ok
    # float32 rounds sums of 100 terms of size 1 to 1e-6 at most.
    assert tones(got.model) < 1e-6 < 1e-3 < tones(model)
    fresh = batches(1)
    assert error_of(got.model, model, fresh) < error_of(everywhere, model, fresh)
    [note] = [each for each in got.report.notes if "flat inputs" in each]
    assert note.startswith("The grid of output 0 on the flat inputs went from")


def test_the_kernel_is_even_along_the_directions_only():
    model = vocoder()
    got = deconvfix.convert(
        model, to="equalized", init="calibrated", calibration=batches(), flat_inputs=[SILENCE]
    ).model
    with torch.no_grad():
        seen = got[:2](SILENCE)[0, :, 12].double().numpy()
    layer, old = got[2], model[2]
    for new in (layer, old):
        kernel = new.weight.detach().double().numpy()
        phases = phase_of_taps((8,), (4,), (1,))
        answers = np.stack(
            [
                np.einsum("c,cos->os", part, phase_sums(rows, phases, (4,)))
                for part, rows in zip(np.split(seen, 2), np.split(kernel, 2), strict=True)
            ]
        )
        spread = np.ptp(answers, axis=-1).max()
        assert (spread < 1e-6) == (new is layer)
    sums = phase_sums(layer.weight.detach().double().numpy(), phases, (4,))
    assert np.ptp(sums, axis=-1).max() > 1e-2, "other inputs may still make a grid"


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ({"to": "resize"}, ["the form is 'resize'", "'equalized', fitted to data"]),
        ({"init": "fit"}, ["init 'fit'"]),
        ({"strength": 0.5}, ["strength 0.5"]),
        ({"init": "tuned", "tuning": Tuning(train_all=True)}, ["all weights are trained"]),
        ({"flat_inputs": "ones"}, ["the value is 'ones'", "'zeros'"]),
        ({"flat_inputs": "zeros", "example_inputs": None}, ["there are no example inputs"]),
        (
            {"flat_inputs": [torch.randn(1, 4, 24)]},
            ["does not get a constant input away from the border"],
        ),
        (
            {"flat_inputs": [torch.zeros(1, 4, 2)]},
            ["does not get a constant input away from the border", "larger"],
        ),
    ],
    ids=lambda value: "" if isinstance(value, list) else ",".join(value),
)
def test_what_cannot_be_is_refused(options, fragments):
    given = {
        "to": "equalized",
        "init": "calibrated",
        "calibration": batches(),
        "flat_inputs": [SILENCE],
        "example_inputs": (SILENCE,),
        **options,
    }
    with pytest.raises(OptionError) as caught:
        deconvfix.convert(vocoder(), **given)
    assert all(fragment in str(caught.value) for fragment in fragments)


def test_programs_refuse_flat_inputs():
    program = torch.export.export(vocoder(), (SILENCE,))
    with pytest.raises(OptionError, match="the model is a program or an ONNX model"):
        deconvfix.convert(
            program, to="equalized", init="calibrated", calibration=batches(), flat_inputs=[SILENCE]
        )
