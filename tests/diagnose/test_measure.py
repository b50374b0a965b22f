"""The numbers of a fitted conversion: the grid before and after, whose it is, and what was looked at."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.diagnose import measure as fidelity
from deconvfix.errors import OptionError
from deconvfix.forms import FORMS, form
from deconvfix.frontends.torch.frontend import FRONTEND
from deconvfix.frontends.torch.layers import spread_weight
from tests.support.fidelity import ROUNDED_DB, cancelling, convert, decoder
from tests.support.networks import ripples, smooth_batches
from tests.support.sounds import Vocoder, sounds_for

# --- layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["fit", "calibrated", "tuned"])
def test_the_ripple_after_is_that_of_the_weights_in_the_model(init):
    model = decoder()
    got = convert(model, init=init, tuning=deconvfix.Tuning(steps=3))
    layers = got.report.layers
    assert [each.ripple_db_before for each in layers] == ripples(model)
    assert [each.ripple_db_after for each in layers] == ripples(got.model)
    assert got.report.fidelity.ripple_db_after == max(ripples(got.model)) < ROUNDED_DB
    assert got.report.fidelity.ripple_db_before == max(ripples(model))


def test_the_ripple_after_is_not_that_of_the_plan():
    """The weights are looked at: what is wrong with them shows, and the plan knows nothing of it."""
    model = decoder()
    got = convert(model)
    planned = fidelity.planned_ripples(FRONTEND.find(model, None).matches, got.plan)
    with torch.no_grad():
        got.model[0].weight[0, 0, 0, 0] += 0.5
    now = fidelity.ripples_now(FRONTEND, got.model, got.plan, planned)
    assert now["0"][1] > -40 > ROUNDED_DB > now["2"][1]
    assert planned["0"][1] < ROUNDED_DB


def test_the_ripple_of_stored_halves_is_told():
    """bfloat16 rounds by 2**-9 of a tap, -54 dB: that grid is there, whatever the plan was."""
    layer = nn.ConvTranspose1d(4, 4, 4, stride=2, padding=1).bfloat16()
    fitted = deconvfix.convert(layer, to="equalized", init="fit").report.fidelity
    assert -80 < fitted.ripple_db_after < -35


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
def test_a_resize_convolution_is_read_as_the_layer_that_it_is(interpolation):
    """A constant in each channel comes out, away from the border, as the spread weights say."""
    got = convert(decoder(), to="resize", init="fit", interpolation=interpolation)
    layer = got.model[2].double()
    spec, weight = spread_weight(layer)
    x = torch.randn(5, 4, 1, 1, dtype=torch.float64)
    y = layer(x.expand(-1, -1, 12, 12))[:, :, 10:-10, 10:-10].detach().numpy()
    # Every pixel is reached by a quarter of the taps, and all quarters have the same sum.
    sums = weight.sum((2, 3)) / np.prod(spec.stride)
    want = x[:, :, 0, 0].numpy() @ sums + layer.bias.detach().numpy()
    np.testing.assert_allclose(y, np.broadcast_to(want[:, :, None, None], y.shape), atol=1e-12)
    assert got.report.fidelity.ripple_db_after < -200, "free of a grid by construction"


@pytest.mark.parametrize("to", ["resize", "notch"])
def test_a_changed_kernel_is_read(to):
    got = convert(decoder(), to=to)
    before = spread_weight(got.model[0])[1]
    with torch.no_grad():
        got.model[0].conv.weight[0] *= 2
    assert np.abs(spread_weight(got.model[0])[1] - before).max() > 0.01


@pytest.mark.parametrize("name", [each.name for each in FORMS])
def test_spreading_a_fit_is_the_equivalent_layer(name):
    layer = nn.ConvTranspose2d(4, 6, (4, 3), stride=2, padding=1, groups=2)
    [match] = FRONTEND.find(layer, None).matches
    settled = form(name).settle(
        match.spec, deconvfix.plan.Options(to=name).settings, match.read_weight
    )
    weight = match.read_weight()
    kernel = form(name).fit(match.spec, settled.settings, weight) if name != "subpixel" else weight
    got = form(name).spread(match.spec, settled.settings, kernel)
    want = form(name).equivalent(match.spec, settled.settings, weight)
    assert got[0] == want[0]
    # 'notch' has the difference of two kernels below 1, and it is added again.
    np.testing.assert_allclose(got[1], want[1], rtol=0, atol=1e-15)


# --- networks -----------------------------------------------------------------------------------


def flat_ripple_db(model, value):
    """By hand: a large constant input, one period from the middle of the output."""
    with torch.no_grad():
        y = model.double()(value[:, :, None, None].double().expand(-1, -1, 24, 24))
    cell = y[:, :, 48:52, 48:52].numpy()
    mean = cell.mean((2, 3), keepdims=True)
    return 20 * np.log10(np.sqrt(((cell - mean) ** 2).mean()) / np.sqrt((mean**2).mean()))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            cancelling([10.0, -10.0, 10.0, -9.0]),
            "rely on their grids and cancel them: in the original, ",
        ),
        (
            cancelling([10.0, -10.0, 10.0, -9.0])[:1],
            "dB). Fits to single layers do not see what follows.",
        ),
        (cancelling([1.0, 0.9, 1.0, 1.1]), None),
    ],
    ids=["cancels", "grid", "close"],
)
def test_outputs_that_are_other_ones_are_noted(model, words):
    torch.manual_seed(0)
    x = torch.randn(2, 1, 12, 10)
    report = deconvfix.convert(model.eval(), to="equalized", init="fit", example_inputs=(x,)).report
    notes = [each for each in report.notes if each.startswith("The outputs no longer match")]
    assert (report.fidelity.psnr_db < 25) == (words is not None) == bool(notes)
    if words is not None:
        assert words in notes[0]
        assert ("cancel them" in notes[0]) == ("cancel them" in words)


@pytest.mark.parametrize("to", ["equalized", "resize", "notch"])
def test_the_grid_of_the_whole_model_is_measured(to):
    model = decoder()
    batches = smooth_batches((4, 3, 16, 12))
    got = convert(model, to=to, calibration=batches)
    found = got.report.fidelity
    means = batches[-1].mean((2, 3))
    # float32 against float64: the ripple is far above rounding.
    want = flat_ripple_db(decoder(), means)
    assert found.network_ripple_db_before == pytest.approx(want, abs=0.01)
    assert found.network_ripple_db_after < ROUNDED_DB < -60 < found.network_ripple_db_before
    [output] = found.outputs
    assert (output.index, output.period) == (0, (4, 4))
    assert output.flat_before.ripple_db == found.network_ripple_db_before
    assert output.flat_after.level > 0
    assert (found.psnr_samples, found.calibration_samples) == (4, 24)


def test_inspect_measures_the_same():
    batches = smooth_batches((4, 3, 16, 12))
    model = decoder()
    got = convert(model, calibration=batches)
    [output] = got.report.fidelity.outputs
    for each, flat in ((model, output.flat_before), (got.model, output.flat_after)):
        [seen] = deconvfix.inspect(each, (batches[-1],)).outputs
        assert seen.flat_field == flat
    peaks = deconvfix.inspect(model, (batches[-1],)).outputs[0].peaks
    told = {each.frequency: each.ratio_db_before for each in output.tones}
    assert {each.frequency: each.ratio_db for each in peaks}.items() <= told.items()


def test_a_grid_that_is_left_is_seen():
    """The first layer is kept: the model still has its grid, and its tones are still there."""
    got = convert(decoder(), exclude="0").report.fidelity
    assert got.ripple_db_after < ROUNDED_DB
    assert got.network_ripple_db_after > -60
    constants = replace(got, network_ripple_db_after=0.0).sentence().split(". ", 1)[1]
    assert constants.startswith("On a constant input, the grid changed from")


def test_tones_belong_to_layers():
    [output] = convert(decoder()).report.fidelity.outputs
    layers = {each.frequency: each.layers for each in output.tones}
    assert layers[0.0, 0.25] == layers[0.25, 0.0] == ("0",)
    assert layers[0.0, 0.5] == ("2", "0"), "the last layer's own, and an image of the first one's"


def test_tones_of_sound_are_in_hz():
    torch.manual_seed(0)
    model = nn.ConvTranspose1d(2, 1, 8, stride=4, padding=2)
    batches = smooth_batches((2, 2, 40))
    got = convert(model, calibration=batches, sample_rate=8000.0).report.fidelity
    assert [each.hz for each in got.outputs[0].tones] == [2000.0, 4000.0]
    without = convert(model, calibration=batches).report.fidelity
    assert [each.hz for each in without.outputs[0].tones] == [None, None]
    with pytest.raises(OptionError, match="sample_rate: the value is -1"):
        convert(model, calibration=batches, sample_rate=-1)


class Everywhere(nn.Module):
    """A position that the model knows, in every pixel: no constant answer."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1)

    def forward(self, x):
        y = self.up(x)
        return y + torch.linspace(0, 1, y.shape[-1]) ** 2


def test_what_cannot_be_measured_is_said():
    torch.manual_seed(0)
    got = convert(Everywhere()).report
    assert got.fidelity.network_ripple_db_before is None
    assert any("Output 0: the grid on a constant input was not measured" in n for n in got.notes)
    seen, constants = got.fidelity.sentence().split(". ", 1)
    assert seen.startswith("In the smooth parts of the outputs, the visible grid ")
    assert constants.startswith("On a constant input, the strongest grid of a layer")
    without = deconvfix.convert(decoder(), to="equalized", init="fit").report.fidelity
    assert (without.psnr_db, without.network_ripple_db_before, without.outputs) == (None, None, ())
    assert deconvfix.convert(decoder()).report.fidelity is None


def test_programs_bring_inputs_of_their_own():
    program = torch.export.export(decoder(), (torch.rand(2, 3, 24, 24),))
    found = deconvfix.convert(program, to="equalized", init="fit").report.fidelity
    assert found.network_ripple_db_after < ROUNDED_DB < found.network_ripple_db_before
    assert found.psnr_samples == 2


def test_drawn_samples_are_counted():
    example = (torch.zeros(24, 3, 5, 6),)
    got = convert(decoder(), calibration="normal", example_inputs=example).report.fidelity
    assert got.calibration_samples == 264, "256 and the rest of the last batch"
    assert got.measured_on() == "24 example inputs (the layers were fitted to 264 others)"
    assert "has seen" not in got.sentence()
    seen = convert(decoder()).report.fidelity
    assert seen.measured_on() == "4 of the 24 samples that the layers were fitted to"
    assert "on samples that the fit has seen" in seen.sentence()


def test_the_shift_of_colours_is_measured():
    """By definition: the mean of each channel on the inputs, after minus before."""
    model, x = decoder(), torch.rand(2, 3, 9, 8)
    got = deconvfix.convert(model, to="equalized", init="fit", example_inputs=(x,))
    with torch.no_grad():
        before, after = model(x).double(), got.model(x).double()
    (output,) = got.report.fidelity.outputs
    want = (after - before).mean((0, 2, 3)).numpy()
    np.testing.assert_allclose(output.shift, want, atol=1e-6)
    assert output.span == pytest.approx(float(before.max() - before.min()), rel=1e-5)
    channel = int(np.abs(want).argmax())
    assert f"(channel {channel})" in output.shift_in_words()


def test_a_match_on_noise_is_called_that(tmp_path):
    from tests.support import command, onnx_files
    from tests.support.forms import arguments_of

    fit = {"to": "equalized", "init": "calibrated"}
    model = onnx_files.net(shape=(2, 3, 16, 12))
    drawn = deconvfix.convert(model, calibration="normal", **fit).report
    assert any("made-up noise" in note for note in drawn.notes)
    x = np.random.default_rng(0).random((2, 3, 16, 12), np.float32)
    given = deconvfix.convert(model, calibration=[{"x": x}], **fit).report
    assert not any("made-up noise" in note for note in given.notes)
    path = command.save(tmp_path)
    options = (*command.arch("Net"), *arguments_of("equalized"), "-o", tmp_path / "out.pt")
    assert "made-up noise" in command.run("convert", path, *options, *command.INPUT).stdout
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 2, 5, 6), np.float32))
    real = ("--inputs", tmp_path / "x.npz", "--force")
    assert "made-up noise" not in command.run("convert", path, *options, *real).stdout


def test_a_sound_is_measured_as_it_is_heard():
    """Tones in decibels and Hz, and a signal-to-noise ratio, before and after a form without them."""
    model, sounds = Vocoder(3e-3).eval(), torch.cat(sounds_for(24))
    found = deconvfix.inspect(model, (sounds,), sample_rate=8000)
    assert found.outputs[0].visible is None
    assert found.outputs[0].heard.hz == 4000
    assert found.outputs[0].heard.is_heard
    assert any("tones that are heard" in note for note in found.notes)
    options = {"to": "equalized", "init": "fit", "include": "tone", "sample_rate": 8000}
    report = deconvfix.convert(model, example_inputs=(sounds,), **options).report
    [output] = report.fidelity.outputs
    assert output.heard_before.strongest_db > -40
    assert output.heard_after.total_db == -300
    with torch.no_grad():
        old = model(sounds).numpy()
    assert output.programme == pytest.approx(np.sqrt(np.mean(old**2)), rel=1e-5)
    # What went is the tone, and nothing else.
    assert output.snr_db == pytest.approx(-output.heard_before.total_db, abs=0.5)
    assert "none after" in report.fidelity.sentence()
    assert "dB SNR" in str(report.fidelity.sentence())
    assert not report.fidelity.looks_worse


def calibrated(batches):
    model = decoder()
    options = {"to": "equalized", "init": "calibrated", "calibration": batches}
    return model, deconvfix.convert(model, **options)


def test_of_many_batches_some_are_held_out_and_measured_on():
    """All of them together, by the definition of the PSNR; the fit has not seen them."""
    batches = smooth_batches((4, 3, 12, 12), 17)
    model, got = calibrated(batches)
    fidelity = got.report.fidelity
    assert (fidelity.psnr_heldout, fidelity.psnr_seen) == (True, False)
    size = len(batches[0])
    assert (fidelity.psnr_samples, fidelity.calibration_samples) == (2 * size, 15 * size)
    assert fidelity.measured_on() == (
        f"{2 * size} held-out samples (the layers were fitted to {15 * size} others)"
    )
    heldout = torch.cat([batches[7], batches[15]])
    with torch.no_grad():
        old, new = (each.eval()(heldout).double() for each in (model, got.model))
    error = (old - new).square().mean()
    wanted = 10 * torch.log10((old.max() - old.min()) ** 2 / error)
    assert fidelity.psnr_db == pytest.approx(float(wanted), abs=0.01)
    # Other values in them change what is measured, and not the fit.
    others = [x.flip(-1) * 0.5 if i in (7, 15) else x for i, x in enumerate(batches)]
    again = calibrated(others)[1]
    pairs = zip(got.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert again.report.fidelity.psnr_db != fidelity.psnr_db


def test_of_few_batches_the_last_is_measured_on_and_the_report_says_that_it_was_seen():
    batches = smooth_batches((10, 3, 12, 12), 7)
    fidelity = calibrated(batches)[1].report.fidelity
    assert (fidelity.psnr_heldout, fidelity.psnr_seen) == (False, True)
    assert fidelity.calibration_samples == 7 * len(batches[0])
    assert "on samples that the fit has seen" in fidelity.sentence()


def test_held_out_batches_of_other_sizes_count_alone():
    """Their outputs cannot be joined; the first speaks for all."""
    batches = smooth_batches((4, 3, 12, 12), 17)
    batches[15] = batches[15][..., :-2]
    fidelity = calibrated(batches)[1].report.fidelity
    assert fidelity.psnr_samples == len(batches[7])
