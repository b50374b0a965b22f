"""The trained networks are those that were trained, and are as good after their conversion."""

import hashlib
import importlib

import pytest
import torch

import deconvfix
from deconvfix.grid.visible import visible_grid
from tests.support.trained import FOLDER, MANIFEST, heldout, load

FILES = [
    pytest.param(each["file"], each["bytes"], each["sha256"], id=each["file"])
    for entry in MANIFEST.values()
    for each in (entry, entry["heldout"])
]

LAYERS = {
    "audio_upsampler": ["up1", "up2"],
    "digits_generator": ["project", "up1", "up2"],
    "photo_autoencoder": ["decoder.2", "decoder.4", "decoder.6"],
    "photo_sharpener": ["up.1", "up.3"],
    "segmenter": ["up4", "up2", "up1"],
    # Its grid is one of pixel shuffles.
    "shuffle_autoencoder": [],
}


def evaluate(name, model):
    script = importlib.import_module(f"fixtures.train_{name}")
    with torch.no_grad():
        return script.evaluate(model, *heldout(name))


def convert(name, **options):
    inputs, _ = heldout(name)
    return deconvfix.convert(load(name), example_inputs=(inputs[:2],), **options)


every_fixture = pytest.mark.parametrize("name", sorted(MANIFEST))


@pytest.mark.parametrize(("file", "size", "digest"), FILES)
def test_file_is_the_one_in_the_manifest(file, size, digest):
    content = (FOLDER / file).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)


def test_manifest_lists_every_data_file():
    listed = {each.values[0] for each in FILES}
    assert listed == {
        each.name for each in FOLDER.iterdir() if each.suffix in (".safetensors", ".npz")
    }


@every_fixture
def test_manifest_counts_the_parameters(name):
    assert sum(each.numel() for each in load(name).parameters()) == MANIFEST[name]["parameters"]


@every_fixture
def test_manifest_describes_the_held_out_inputs(name):
    inputs, _ = heldout(name)
    (shape,) = MANIFEST[name]["inputs"].values()
    assert [1, *inputs.shape[1:]] == shape


@every_fixture
def test_held_out_targets_are_counted(name):
    _, target = heldout(name)
    assert len(target) == MANIFEST[name]["heldout"]["count"]


@every_fixture
def test_original_reaches_the_metric_of_the_manifest(name):
    assert round(evaluate(name, load(name)), 3) == MANIFEST[name]["value"]


@every_fixture
def test_converted_model_reaches_the_same_metric(name):
    assert round(evaluate(name, convert(name).model), 3) == MANIFEST[name]["value"]


def test_metric_sees_a_bad_conversion():
    """The control of the test before: a fit without data costs the autoencoder its quality."""
    spoilt = convert("photo_autoencoder", to="resize", init="fit").model
    assert evaluate("photo_autoencoder", spoilt) < MANIFEST["photo_autoencoder"]["value"] - 1


@every_fixture
def test_all_layers_are_found(name):
    assert [layer.name for layer in deconvfix.inspect(load(name)).layers] == LAYERS[name]


@every_fixture
def test_all_layers_are_replaced_exactly(name):
    report = convert(name).report
    assert [(each.decision, each.form, each.exact) for each in report.layers] == [
        ("replaced", "subpixel", True)
    ] * len(LAYERS[name])


@pytest.mark.parametrize("name", sorted(name for name, layers in LAYERS.items() if layers))
def test_conversion_is_proven_on_real_inputs(name):
    report = convert(name).report
    assert report.ok
    assert {"example inputs", "seeded noise"} <= {
        each.inputs for each in report.parity.comparisons if each.what.startswith("output")
    }


@every_fixture
def test_outputs_are_those_of_the_original(name):
    """Held against the original anew, on inputs that the conversion did not see."""
    inputs, _ = heldout(name)
    assert deconvfix.verify(load(name), convert(name).model, (inputs[2:4],)).ok


@every_fixture
def test_other_weights_are_told_apart(name):
    """The control of the test before: one parameter off by a thousandth of its largest value."""
    inputs, _ = heldout(name)
    model = convert(name).model
    *_, last = model.parameters()
    with torch.no_grad():
        last += 1e-3 * last.abs().max()
    assert not deconvfix.verify(load(name), model, (inputs[2:4],)).ok


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
def test_segmenter_is_a_resize_convolution_already(interpolation):
    report = convert("segmenter", to="resize", interpolation=interpolation).report
    assert [(each.form, each.exact) for each in report.layers] == [("resize", True)] * 3


def test_segmenter_as_resize_reaches_the_same_metric():
    model = convert("segmenter", to="resize").model
    assert round(evaluate("segmenter", model), 3) == MANIFEST["segmenter"]["value"]


def test_segmenter_needs_no_equalizing():
    report = convert("segmenter", to="equalized").report
    assert {each.decision for each in report.layers} == {"kept"}


@pytest.mark.parametrize(
    ("name", "uneven"),
    [
        ("audio_upsampler", [False, False]),
        ("digits_generator", [False, False, False]),
        ("photo_autoencoder", [True, True, True]),
        ("photo_sharpener", [True, True]),
        ("segmenter", [False, False, False]),
    ],
)
def test_uneven_overlap_is_seen(name, uneven):
    layers = deconvfix.inspect(load(name)).layers
    assert [layer.uneven_overlap for layer in layers] == uneven


def test_autoencoder_shows_the_grid_that_resize_removes():
    fidelity = convert("photo_autoencoder", to="resize", init="fit").report.fidelity
    # Below -60 dB, a thousandth, a ripple is less than a quarter of a step of 8 bits.
    assert fidelity.ripple_db_after < -60 < fidelity.ripple_db_before


@pytest.mark.parametrize(
    ("name", "period", "least"),
    [("photo_autoencoder", 8, 0.5), ("photo_sharpener", 4, 1.0), ("shuffle_autoencoder", 8, 0.5)],
)
def test_the_grid_is_one_that_people_see(name, period, least):
    inputs, target = heldout(name)
    with torch.no_grad():
        output = load(name)(inputs).numpy()
    assert visible_grid(output, (period, period)).mean > least
    # The control: the pictures themselves have none.
    assert visible_grid(target.numpy(), (period, period), like=output).mean < 0.2
