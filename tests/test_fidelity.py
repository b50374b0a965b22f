"""The numbers of a fitted conversion: the grid before and after, whose it is, and what was looked at."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_calibrated import ripples, smooth_batches
from test_cli import INPUT, Net, arch, assert_fails_in_words, html_report, run, run_json, save
from torch import nn

import deconvfix
from deconvfix import conversion
from deconvfix.cli.samples import CalibrationFiles
from deconvfix.diagnose import evidence as shown
from deconvfix.diagnose import measure as fidelity
from deconvfix.errors import OptionError
from deconvfix.forms import FORMS, form
from deconvfix.frontends.torch.frontend import FRONTEND
from deconvfix.frontends.torch.layers import spread_weight
from deconvfix.plan import Plan

# Each tap of a float32 weight rounds by 6e-8 of its size, -144 dB; a few dozen are summed up.
ROUNDED_DB = -120


def decoder():
    """Strides 2 and 2, a frozen look at positive features, so that there is a level."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1),
    ).eval()


def convert(model, **options):
    options = {"to": "equalized", "init": "calibrated", **options}
    if options["init"] != "fit":
        options.setdefault("calibration", smooth_batches((4, 3, 16, 12)))
    return deconvfix.convert(model, **options)


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
    fitted = deconvfix.convert(layer, to="equalized").report.fidelity
    assert -80 < fitted.ripple_db_after < -35


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
def test_a_resize_convolution_is_read_as_the_layer_that_it_is(interpolation):
    """A constant in each channel comes out, away from the border, as the spread weights say."""
    got = convert(decoder(), to="resize", interpolation=interpolation)
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


def cancelling(kernel):
    """A layer, and the mean over each period of what it makes, which takes its grid away."""
    layer = nn.ConvTranspose2d(1, 1, 2, stride=2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(kernel).reshape(1, 1, 2, 2))
    return nn.Sequential(layer, nn.AvgPool2d(2, stride=1))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (cancelling([10.0, -10.0, 10.0, -9.0]), "rely on their grids, and take them away, so that"),
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
    report = deconvfix.convert(model.eval(), to="equalized", example_inputs=(x,)).report
    notes = [each for each in report.notes if each.startswith("The outputs are far")]
    assert (report.fidelity.psnr_db < 25) == (words is not None) == bool(notes)
    if words is not None:
        assert words in notes[0]
        assert ("take them away" in notes[0]) == ("take them away" in words)


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
    assert " fell from " not in replace(got, network_ripple_db_after=0.0).sentence()


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
    assert any("Output 0: its grid on a constant input is not measured" in n for n in got.notes)
    assert got.fidelity.sentence().startswith("The strongest grid of a layer")
    without = deconvfix.convert(decoder(), to="equalized").report.fidelity
    assert (without.psnr_db, without.network_ripple_db_before, without.outputs) == (None, None, ())
    assert deconvfix.convert(decoder()).report.fidelity is None


def test_programs_bring_inputs_of_their_own():
    program = torch.export.export(decoder(), (torch.rand(2, 3, 24, 24),))
    found = deconvfix.convert(program, to="equalized").report.fidelity
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


@pytest.mark.parametrize("to", ["equalized", "resize"])
def test_the_flat_picture_is_what_was_measured(to):
    """Also of a generator, whose constant input of one pixel is no flat field: a digit came out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(3, 3, 4), decoder()).eval()
    latent = (torch.randn(4, 3, 1, 1),)
    got = convert(model, to=to, calibration="normal", example_inputs=latent)
    [output] = got.report.fidelity.outputs
    drawn = shown.gather(FRONTEND, model, got.model, got.plan, latent, (output,))
    for tiled, measured in (
        (drawn.flat.before, output.flat_before),
        (drawn.flat.after, output.flat_after),
    ):
        assert tiled.shape == (2, 32, 32)
        apart = (tiled.max((1, 2)) - tiled.min((1, 2))).max()
        assert apart <= measured.apart, "the first of four samples, and the worst of all"
    assert len(drawn.spectra) == 2 or not output.tones
    assert np.ptp(drawn.flat.after[0]) < 1e-4 < np.ptp(drawn.flat.before[0])


def test_python_gets_the_page_that_the_command_line_writes():
    """Flat fields, outputs, spectra and kernels on request; without, the page has no pictures."""
    torch.manual_seed(0)
    model, x = decoder(), torch.rand(4, 3, 24, 24)
    pages = []
    for pictures in (False, True):
        got = convert(model, calibration=[(x,)], pictures=pictures)
        pages.append(got.report.to_html())
        assert (got.report.evidence is not None) == pictures
    assert [each.count("data:image/") > 6 for each in pages] == [False, True]
    assert {each.layer for each in got.report.evidence.kernels} == {
        each.name for each in got.plan.replaced
    }
    program = torch.export.export(decoder(), (x,))
    same = convert(program, calibration=[(x,)], pictures=True)
    assert same.report.to_html().count("data:image/") > 4


def test_a_model_without_layers_is_not_drawn():
    model = nn.Conv2d(3, 2, 3)
    plan, inputs = Plan("equalized", ()), (torch.rand(1, 3, 8, 8),)
    assert shown.gather(FRONTEND, model, model, plan, inputs, ()) is None


# --- the command line -----------------------------------------------------------------------------

CALIBRATED = ("--to", "equalized", "--init", "calibrated", "--calibration")


@pytest.fixture
def samples(tmp_path):
    path = tmp_path / "samples.npz"
    x = torch.cat(smooth_batches((4, 2, 16, 12), count=5)).numpy()
    np.savez(path, x=x)
    return path


def test_numbers_are_always_in_the_json(tmp_path, samples):
    path = save(tmp_path)
    options = (*arch("Net"), *INPUT, *CALIBRATED, samples, "-o", tmp_path / "out.pt")
    report = run_json("convert", path, *options)
    found = report["fidelity"]
    assert found["network_ripple_db_after"] < ROUNDED_DB < found["network_ripple_db_before"]
    assert (found["psnr_samples"], found["calibration_samples"]) == (4, 20)
    assert report["samples_curve"] is None
    layers = {layer["name"]: layer["ripple_db_after"] for layer in report["layers"]}
    assert max(layers.values()) == found["ripple_db_after"]
    tones = found["outputs"][0]["tones"]
    assert {"frequency", "hz", "layers", "ratio_db_before", "ratio_db_after"} == tones[0].keys()


def test_the_terminal_tells_it_in_a_few_lines(tmp_path, samples):
    path = save(tmp_path)
    options = (*arch("Net"), *INPUT, *CALIBRATED, samples, "-o", tmp_path / "out.pt")
    text = " ".join(run("convert", path, *options).stdout.split())
    for part in (
        "The grid on a constant input fell from ",
        "Ripple of the layers, largest, by their weights: ",
        "Ripple of the whole model: ",
        "on 4 of the 20 samples that the layers were fitted to.",
    ):
        assert part in text
    assert "Ripple" not in run("convert", path, *arch("Net"), "-o", tmp_path / "exact.pt").stdout


def test_the_files_are_read_once_and_pictures_are_gathered_for_a_page(
    tmp_path, samples, monkeypatch
):
    reads, gathered = [], []
    original, gather = CalibrationFiles.__iter__, conversion.gather
    monkeypatch.setattr(
        CalibrationFiles, "__iter__", lambda self: (reads.append(1), original(self))[1]
    )
    monkeypatch.setattr(
        conversion, "gather", lambda *a, **k: (gathered.append(1), gather(*a, **k))[1]
    )
    options = (*INPUT, *CALIBRATED, str(samples))
    page = html_report(tmp_path, Net(), "Net", *options, "--samples-curve")
    assert (len(reads), len(gathered)) == (1, 1)
    assert page.count("data:image/") > 6
    report = tmp_path / "report.json"
    options = (*options, "-o", tmp_path / "out.pt", "--force", "--report", report)
    run_json("convert", tmp_path / "net.safetensors", *arch("Net"), *options)
    assert (len(reads), len(gathered)) == (2, 1)


def test_programs_and_onnx_files_show_their_grids_too(tmp_path):
    x = torch.rand(2, 3, 24, 24)
    torch.export.save(torch.export.export(decoder(), (x,)), tmp_path / "net.pt2")
    np.savez(tmp_path / "inputs.npz", input=x.numpy())
    assert run("export", tmp_path / "net.pt2", "-o", tmp_path / "old.onnx").exit_code == 0
    for name, inputs in (("net.pt2", ()), ("old.onnx", ("--inputs", tmp_path / "inputs.npz"))):
        page = tmp_path / f"{name}.html"
        output = tmp_path / f"new_{name}"
        result = run(
            *("convert", tmp_path / name, "--to", "equalized", *inputs, "--report", page),
            *("-o", output, "--json"),
        )
        found = json.loads(result.stdout)["fidelity"]
        assert found["network_ripple_db_after"] < ROUNDED_DB < found["network_ripple_db_before"]
        assert found["ripple_db_after"] < ROUNDED_DB
        text = page.read_text()
        assert "The grid on a constant input fell from" in text
        assert text.count("data:image/") >= 7, "two flat, three outputs, two spectra"


# --- the number of samples ------------------------------------------------------------------------


def test_more_samples_come_closer():
    """Measured on samples that no fit has seen; sets are nested and spread over what there is."""
    model = decoder()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    batches = smooth_batches((4, 3, 8, 6), count=8)
    curve = deconvfix.samples_curve(model, calibration=batches, init="calibrated", to="equalized")
    assert curve.heldout == 8
    assert [each.samples for each in curve.points] == [6, 12, 24]
    psnrs = [each.psnr_db for each in curve.points]
    assert psnrs == sorted(psnrs)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_fit_is_closer_on_samples_that_it_has_seen(monkeypatch):
    """The control: compared on the fitted samples, three of them would look better than they are."""
    batches = smooth_batches((4, 3, 4, 4), count=4)
    options = {"calibration": batches, "init": "calibrated", "to": "equalized"}
    honest = deconvfix.samples_curve(decoder(), **options)
    monkeypatch.setattr(
        "deconvfix.frontends.torch.samples.split", lambda each: (list(each[::3]), list(each[::3]))
    )
    flattering = deconvfix.samples_curve(decoder(), **options)
    assert flattering.points[-1].psnr_db > honest.points[-1].psnr_db


def test_a_recipe_is_compared_by_its_calibrated_fits(monkeypatch):
    batches = smooth_batches((4, 3, 5, 6))
    plan = convert(decoder(), init="tuned", tuning=deconvfix.Tuning(steps=1)).plan
    assert {each.settings.init for each in plan.replaced} == {"tuned"}

    def no_tuning(*args):
        raise AssertionError("a distillation takes long")

    monkeypatch.setattr("deconvfix.frontends.torch.frontend.tune", no_tuning)
    by_plan = deconvfix.samples_curve(
        decoder(), calibration=batches, plan=Plan.from_json(plan.to_json()), seed=0
    )
    by_name = deconvfix.samples_curve(decoder(), calibration=batches, init="tuned", to="equalized")
    assert by_plan == by_name


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "no layer is to be fitted to calibration samples"),
        ({"init": "calibrated"}, "no layer is to be fitted to calibration samples"),
        ({"init": "fit", "calibration": "normal"}, "no layer is to be fitted"),
        (
            {"init": "calibrated", "calibration": [torch.ones(7, 3, 5, 5)]},
            "there are 7 calibration",
        ),
    ],
)
def test_a_curve_needs_fits_to_samples(options, text):
    with pytest.raises(OptionError, match=text) as caught:
        deconvfix.samples_curve(decoder(), to="equalized", **options)
    assert caught.value.todo


def test_the_curve_is_reported(tmp_path, samples):
    options = (*INPUT, *CALIBRATED, str(samples), "--samples-curve")
    page = html_report(tmp_path, Net(), "Net", *options)
    assert "More calibration samples?" in page
    path = tmp_path / "net.safetensors"
    options = (*arch("Net"), *options, "-o", tmp_path / "out.pt", "--force")
    report = run_json("convert", path, *options)
    assert [each["samples"] for each in report["samples_curve"]["points"]] == [4, 8, 15]
    text = run("convert", path, *options).stdout
    assert "compared on 5 held-out samples" in text
    assert "15 samples  " in text


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt2", "net.onnx"])
def test_a_curve_that_cannot_be_is_refused(tmp_path, name):
    """Before any work: also of files that know no fits to samples, whether they exist or not."""
    save(tmp_path)
    output = tmp_path / f"out.{name.split('.')[1]}"
    options = arch("Net") if name == "net.safetensors" else ()
    result = run("convert", tmp_path / name, *options, "--samples-curve", "-o", output)
    assert_fails_in_words(result, "samples-curve: ")
    assert not output.exists()
