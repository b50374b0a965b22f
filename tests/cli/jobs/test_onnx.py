"""What the command line does with ONNX files."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import deconvfix
import fixtures.models
from deconvfix.errors import ModelError
from deconvfix.frontends.onnx import file as onnx_file
from tests.support.forms import arguments_of
from tests.support.onnx_files import FLOAT, assert_fails_in_words, convert, net, run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(net(), path)
    return path


def samples(tmp_path, named=True, dtype=np.float64):
    """Smooth inputs: noise, and its neighbour."""
    noise = np.random.default_rng(0).standard_normal((12, 3, 9, 9))
    x = (noise + np.roll(noise, 1, 2) + np.roll(noise, 1, 3)).astype(dtype)
    path = tmp_path / ("samples.npz" if named else "samples.npy")
    if named:
        np.savez(path, x=x)
    else:
        np.save(path, x)
    return path


def first(tmp_path, size):
    """What is compared on otherwise: the last batch of the samples."""
    x = np.load(samples(tmp_path))["x"].astype(np.float32)
    np.savez(tmp_path / "inputs.npz", x=x[8:] if size == "n" else x[-size:])
    return tmp_path / "inputs.npz"


FIXTURES = Path(fixtures.models.__file__).parent


def operators(path):
    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


# --- conversion ---------------------------------------------------------------------------------


def test_file_is_converted_and_verified(file, tmp_path):
    output = tmp_path / "fixed.onnx"
    result = convert(file, output)
    assert result.exit_code == 0, result.output
    assert "2 transposed convolutions found: 2 replaced; verified." in result.stdout
    assert {"Conv", "DepthToSpace"} < operators(output)
    assert "ConvTranspose" not in operators(output)
    assert sorted(os.listdir(tmp_path)) == ["fixed.onnx", "net.onnx"]
    verified = run("verify", file, output, "--json")
    assert verified.exit_code == 0
    assert json.loads(verified.stdout)["ok"] is True


def test_report_as_json(file, tmp_path):
    result = convert(file, tmp_path / "fixed.onnx", "--json", "--report", tmp_path / "report.html")
    report = json.loads(result.stdout)
    assert report["input"] == str(file)
    assert report["output"] == str(tmp_path / "fixed.onnx")
    assert [each["name"] for each in report["layers"]] == ["up1", "up2"]
    assert {each["decision"] for each in report["layers"]} == {"replaced"}
    assert report["parity"]["ok"] is True
    assert report["fidelity"] is None
    assert "up1" in (tmp_path / "report.html").read_text()


def test_inspection_as_json(file):
    found = json.loads(run("inspect", file, "--json").stdout)
    first, second = found["layers"]
    assert (first["name"], first["op"], first["ndim"]) == ("up1", "ConvTranspose", 2)
    assert (first["in_channels"], first["out_channels"]) == (3, 5)
    assert first["padding"] == [[1, 2], [0, 1]]
    assert (first["uneven_overlap"], second["uneven_overlap"]) == (False, True)
    assert first["ripple_db"] is not None
    assert first["refusal"] is None


def test_nothing_imports_torch(file, tmp_path):
    code = (
        "import sys; from deconvfix.cli.main import main\n"
        f"for arguments in (['inspect', {str(file)!r}], "
        f"['convert', {str(file)!r}, '-o', {str(tmp_path / 'fixed.onnx')!r}], "
        f"['convert', {str(file)!r}, '-o', {str(tmp_path / 'calibrated.onnx')!r}, "
        f"*{CALIBRATED!r}, {str(samples(tmp_path))!r}]):\n"
        "    main(arguments, standalone_mode=False)\n"
        "assert 'onnx' in sys.modules and 'torch' not in sys.modules, 'torch'"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


CALIBRATED = ("--to", "equalized", "--init", "calibrated", "--calibration")


@pytest.mark.parametrize("named", [True, False], ids=["npz", "npy"])
@pytest.mark.parametrize("size", ["n", 2, 1], ids=["open", "two", "one"])
@pytest.mark.parametrize("outside", [False, True], ids=["one file", "external data"])
def test_a_file_is_calibrated(tmp_path, named, size, outside):
    """Arrays of the input's own name and dtype, in batches of the file's size."""
    file = tmp_path / "net.onnx"
    place = {"save_as_external_data": True, "location": "net.data", "size_threshold": 0}
    onnx.save(net(shape=(size, 3, 9, 9)), file, **(place if outside else {}))
    output = tmp_path / "fixed.onnx"
    result = convert(file, output, *CALIBRATED, samples(tmp_path, named), "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    fidelity = report["fidelity"]
    assert [each["reason"][:11] for each in report["layers"]] == ["calibrated;"] * 2
    assert (fidelity["calibration_samples"], fidelity["psnr_seen"]) == (12, True)
    assert fidelity["ripple_db_after"] < -100 < fidelity["ripple_db_before"]
    assert report["parity"]["ok"] is True
    assert {each["what"] for each in report["parity"]["comparisons"]} == {"up1", "up2"}
    weights_only = tmp_path / "weights.onnx"
    result = convert(
        file, weights_only, *arguments_of("equalized"), "--inputs", first(tmp_path, size), "--json"
    )
    assert json.loads(result.stdout)["fidelity"]["psnr_db"] < fidelity["psnr_db"]


def test_a_distribution_or_a_folder_of_pictures_calibrates_a_file(tmp_path):
    file, folder = tmp_path / "net.onnx", tmp_path / "pictures"
    onnx.save(net(shape=(1, 3, 9, 9)), file)
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(0, 256, (12 + index, 14, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    for source, count, *more in (
        ("normal", 256),
        ("uniform", 256, "--input", "x=1x3x9x9"),
        (folder, 7, "--samples", "7", "--value-range", "-1", "1"),
    ):
        output = tmp_path / f"{count}{len(more)}.onnx"
        page = tmp_path / "report.html"
        options = (*more, "--report", page, "--force", "--json")
        result = convert(file, output, *CALIBRATED, source, *options)
        assert result.exit_code == 0, result.output
        fidelity = json.loads(result.stdout)["fidelity"]
        assert fidelity["calibration_samples"] == count
        assert fidelity["psnr_db"] > 0
        assert fidelity["psnr_seen"] == (source == folder)
        assert "<img" in page.read_text()


def test_a_recipe_is_calibrated_when_it_is_carried_out(file, tmp_path):
    """It holds the choices of a fit, and no weights."""
    recipe, given = tmp_path / "recipe.json", samples(tmp_path)
    result = run("convert", file, "--dry-run", "--recipe", recipe, *CALIBRATED, given)
    assert result.exit_code == 0, result.output
    assert "fitted" not in recipe.read_text()
    direct, later = tmp_path / "direct.onnx", tmp_path / "later.onnx"
    assert convert(file, direct, *CALIBRATED, given).exit_code == 0
    assert convert(file, later, "--recipe", recipe, "--calibration", given).exit_code == 0
    assert later.read_bytes() == direct.read_bytes()
    result = convert(file, tmp_path / "none.onnx", "--recipe", recipe)
    assert_fails_in_words(result, "there are no calibration inputs")


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ((*CALIBRATED, "normal"), "the sizes of the input 'x' are open"),
        (("--to", "equalized", "--init", "calibrated"), "there are no calibration inputs"),
        (("--to", "resize", "--init", "tuned", "--calibration", "normal"), "Use init 'calibrated'"),
        (
            (*CALIBRATED, "flat.npz"),
            "calibration input 1: it fails on inputs of shapes {'x': (4, 3)}",
        ),
        ((*CALIBRATED, "other.npz"), "it has no arrays of samples called x"),
    ],
    ids=["open sizes", "none", "tuned", "rank", "names"],
)
def test_what_cannot_be_calibrated_is_told_in_words(file, tmp_path, monkeypatch, options, fragment):
    monkeypatch.chdir(tmp_path)
    np.savez("flat.npz", x=np.ones((4, 3)))
    np.savez("other.npz", z=np.ones((4, 3, 9, 9)))
    result = convert(file, tmp_path / "out.onnx", *options)
    assert_fails_in_words(result, fragment)
    assert not (tmp_path / "out.onnx").exists()


def test_fitted_forms_are_written_and_their_change_is_measured(file, tmp_path):
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, x=np.random.default_rng(0).random((1, 3, 8, 9), np.float32))
    for form in ("resize", "equalized"):
        output = tmp_path / f"{form}.onnx"
        result = convert(file, output, *arguments_of(form), "--inputs", inputs, "--json")
        report = json.loads(result.stdout)
        assert report["parity"]["ok"] is True
        assert report["fidelity"]["psnr_db"] > 0
        assert report["fidelity"]["ripple_db_after"] < -100 < report["fidelity"]["ripple_db_before"]
        assert run("verify", file, output).exit_code == 1


def test_a_plan_is_written_and_carried_out(file, tmp_path):
    recipe = tmp_path / "plan.json"
    dry = run("convert", file, "--dry-run", "--recipe", recipe, "--exclude", "up2")
    assert dry.exit_code == 0
    result = convert(file, tmp_path / "fixed.onnx", "--recipe", recipe)
    assert "1 replaced, 1 kept; verified." in result.stdout
    assert "ConvTranspose" in operators(tmp_path / "fixed.onnx")


def test_a_file_without_transposed_convolution_stays_the_same(file, tmp_path):
    fixed, again = tmp_path / "fixed.onnx", tmp_path / "again.onnx"
    assert convert(file, fixed).exit_code == 0
    result = convert(fixed, again)
    assert result.exit_code == 0
    assert "0 transposed convolutions found: nothing to do" in result.stdout
    assert onnx.load(fixed) == onnx.load(again)


def test_python_takes_and_gives(file):
    conversion = deconvfix.convert(file)
    assert isinstance(conversion.model, onnx.ModelProto)
    assert conversion.report.input == str(file)
    assert "ConvTranspose" not in {node.op_type for node in conversion.model.graph.node}
    assert deconvfix.verify(str(file), conversion.model, []).ok
    assert [each.name for each in deconvfix.inspect(str(file)).layers] == ["up1", "up2"]
    with pytest.raises(ModelError, match="a file that holds a whole model"):
        deconvfix.inspect("net.safetensors")


# --- inputs -------------------------------------------------------------------------------------


def test_integers_and_booleans_are_made_up(tmp_path):
    """Ids become a picture by an embedding; a mask is a boolean."""
    table = numpy_helper.from_array(
        np.random.default_rng(1).standard_normal((7, 12)).astype(np.float32), "table"
    )
    shape = numpy_helper.from_array(np.array([0, 3, 2, -1]), "shape")
    extra = (
        helper.make_node("Gather", ["table", "x"], ["rows"]),
        helper.make_node("Reshape", ["rows", "shape"], ["pixels"]),
        helper.make_node("Where", ["keep", "pixels", "pixels"], ["image"]),
    )
    model = net(x_type=TensorProto.INT64, shape=("n", "t"), extra=extra)
    model.graph.initializer.extend([table, shape])
    model.graph.input.append(helper.make_tensor_value_info("keep", TensorProto.BOOL, [1]))
    onnx.save(model, tmp_path / "ids.onnx")
    result = convert(tmp_path / "ids.onnx", tmp_path / "out.onnx", "--json")
    compared = {each["what"] for each in json.loads(result.stdout)["parity"]["comparisons"]}
    assert compared == {"up1", "up2", "y"}


def strings(tmp_path):
    extra = (helper.make_node("Cast", ["x"], ["image"], to=FLOAT),)
    onnx.save(net(x_type=TensorProto.STRING, extra=extra), tmp_path / "strings.onnx")
    return tmp_path / "strings.onnx"


def test_strings_are_asked_for(tmp_path):
    path = strings(tmp_path)
    result = convert(path, tmp_path / "out.onnx")
    assert result.exit_code == 0
    told = " ".join(result.stdout.split())
    assert "no inputs could be made up for it: give some (--inputs FILE.npz)" in told


def test_strings_are_taken_from_a_file(tmp_path):
    path = strings(tmp_path)
    words = np.random.default_rng(0).integers(0, 9, (1, 3, 4, 5)).astype(str)
    np.savez(tmp_path / "words.npz", x=words)
    result = convert(path, tmp_path / "out.onnx", "--inputs", tmp_path / "words.npz", "--json")
    report = json.loads(result.stdout)
    assert "y" in {each["what"] for each in report["parity"]["comparisons"]}


def test_described_inputs_are_used(file, tmp_path):
    result = convert(file, tmp_path / "out.onnx", "--input", "x=2x3x5x7", "--json")
    assert json.loads(result.stdout)["parity"]["ok"] is True


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--input", "z=1x3x4x4"), "the model's inputs are 'x'"),
        (("--input", "x=1x4x4x4"), "it fails on inputs of shapes"),
        (("--input", "x=1x3x4x4:float33"), "NAME=1x3x64x64"),
        (("--opset", "20"), "an ONNX file keeps its own"),
        (("--include", "down*"), "'down*' matches none of the 2 layers"),
    ],
    ids=["name", "shape", "dtype", "opset", "pattern"],
)
def test_what_does_not_fit_is_told(file, tmp_path, arguments, fragment):
    result = convert(file, tmp_path / "out.onnx", *arguments)
    assert_fails_in_words(result, fragment)
    assert os.listdir(tmp_path) == ["net.onnx"]


# --- files that are not what they should be -----------------------------------------------------


def test_existing_files_are_kept(file, tmp_path):
    (tmp_path / "out.onnx").write_text("mine")
    assert_fails_in_words(convert(file, tmp_path / "out.onnx"), "existing files are kept")
    assert_fails_in_words(convert(file, file, "--force"), "the output is also an input")
    assert (tmp_path / "out.onnx").read_text() == "mine"


def test_nothing_is_written_when_the_proof_fails(file, tmp_path, monkeypatch):
    """The control of everything above: a wrong conversion does not become a file."""
    write = onnx_file.write

    def tampered(path, source, model):
        weight = model.graph.initializers["up1.weight"]
        array = weight.const_value.numpy().copy()
        array[[0, 1]] = array[[1, 0]]  # two phases
        weight.const_value = type(weight.const_value)(array, name=weight.name)
        write(path, source, model)

    monkeypatch.setattr(onnx_file, "write", tampered)
    assert_fails_in_words(convert(file, tmp_path / "out.onnx"), "up1", "x the rounding bound")
    assert os.listdir(tmp_path) == ["net.onnx"]


# --- a trained model from a package -------------------------------------------------------------


def test_text_detector_finds_the_same_text(tmp_path):
    """PP-OCR as the package `rapidocr` ships it, on a real picture, before and after."""
    model = files("rapidocr") / "models" / "PP-OCRv6_det_small.onnx"
    output = tmp_path / "detector.onnx"
    assert convert(model, output).exit_code == 0
    assert "ConvTranspose" in operators(model)
    assert "ConvTranspose" not in operators(output)
    old, new = onnx.load(model), onnx.load(output)
    assert [each.name for each in new.graph.input] == [each.name for each in old.graph.input]
    assert [each.name for each in new.graph.output] == [each.name for each in old.graph.output]
    onnx.checker.check_model(new, full_check=True)


TRAINED = {
    "audio_upsampler": {"spectrum": {0: "batch", 2: "frames"}},
    "digits_generator": {"z": {0: "batch"}},
    "photo_autoencoder": {"image": {0: "batch", 2: "height", 3: "width"}},
    "photo_sharpener": {"image": {0: "batch", 2: "height", 3: "width"}},
    "segmenter": {"image": {0: "batch", 2: "height", 3: "width"}},
}


@pytest.mark.parametrize("name", TRAINED)
def test_trained_network_exported_and_converted(tmp_path, name):
    """The fixtures as files: one and two dimensions, groups, dynamic axes."""
    builder = getattr(fixtures.models, name)
    weights = FIXTURES / f"{name}.safetensors"
    with np.load(FIXTURES / f"{name}_heldout.npz") as heldout:
        inputs = {key: heldout[key][:1] for key in heldout.files if key != "target"}
    deconvfix.export_onnx(
        deconvfix.load(weights, builder()).eval(),
        tmp_path / "net.onnx",
        tuple(torch.from_numpy(each) for each in inputs.values()),
        dynamic_shapes=TRAINED[name],
        verify=False,
    )
    np.savez(tmp_path / "inputs.npz", **inputs)
    options = ("--inputs", tmp_path / "inputs.npz", "--strict", "--json")
    result = convert(tmp_path / "net.onnx", tmp_path / "out.onnx", *options)
    assert json.loads(result.stdout)["parity"]["ok"] is True
    assert "ConvTranspose" in operators(tmp_path / "net.onnx")
    assert "ConvTranspose" not in operators(tmp_path / "out.onnx")
