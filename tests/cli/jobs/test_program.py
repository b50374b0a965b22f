"""What the command line does with .pt2 files."""

import json
import os
import pickle
import zipfile

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from deconvfix.cli.main import main
from deconvfix.frontends.program import file as program_file
from deconvfix.frontends.torch.calls import executed_transposed_convolutions
from tests.support.forms import arguments_of


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up1 = nn.ConvTranspose2d(3, 5, (4, 3), (2, 3), padding=1)
        self.up2 = nn.ConvTranspose2d(5, 2, 3, 2)

    def forward(self, x):
        return self.up2(torch.relu(self.up1(x)))


@pytest.fixture
def file(tmp_path):
    sizes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(Net(), (torch.randn(2, 3, 5, 6),), dynamic_shapes={"x": sizes})
    program_file.write(program, tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def convert(path, output, *arguments):
    return run("convert", path, "-o", output, *arguments)


def test_inspection(file):
    found = json.loads(run("inspect", file, "--json").stdout)
    assert [each["kernel_size"] for each in found["layers"]] == [[4, 3], [3, 3]]


def test_program_in_and_out(file, tmp_path):
    output = tmp_path / "fixed.pt2"
    result = convert(file, output)
    assert result.exit_code == 0, result.output
    assert "2 transposed convolutions found: 2 replaced; verified." in result.stdout
    module = program_file.read(output).module()
    x = (torch.randn(3, 3, 7, 4),)
    assert executed_transposed_convolutions(module, x) == []
    torch.testing.assert_close(module(*x), program_file.read(file).module()(*x))
    assert json.loads(run("verify", file, output, "--json").stdout)["ok"] is True
    assert sorted(os.listdir(tmp_path)) == ["fixed.pt2", "net.pt2"]


def test_program_in_and_onnx_out(file, tmp_path):
    output = tmp_path / "fixed.onnx"
    result = convert(file, output, "--json")
    assert json.loads(result.stdout)["export"]["ok"] is True
    assert "ConvTranspose" not in {node.op_type for node in onnx.load(output).graph.node}
    assert run("verify", file, output).exit_code == 0
    assert run("export", file, "-o", tmp_path / "original.onnx").exit_code == 0
    operators = {node.op_type for node in onnx.load(tmp_path / "original.onnx").graph.node}
    assert "ConvTranspose" in operators


def test_fitted_form_is_written_and_departs(file, tmp_path):
    output = tmp_path / "equalized.pt2"
    result = convert(file, output, *arguments_of("equalized"), "--input", "x=1x3x8x8", "--json")
    fidelity = json.loads(result.stdout)["fidelity"]
    assert fidelity["psnr_db"] > 0
    assert fidelity["ripple_db_after"] < -100
    assert run("verify", file, output).exit_code == 1


def test_a_plan_is_written_and_carried_out(file, tmp_path):
    recipe = tmp_path / "plan.json"
    assert run("convert", file, "--dry-run", "--recipe", recipe, "--include", "*1*").exit_code == 0
    result = convert(file, tmp_path / "fixed.pt2", "--recipe", recipe)
    assert "1 replaced, 1 kept; verified." in result.stdout


def test_pickles_need_trust(file, tmp_path):
    with zipfile.ZipFile(file, "a") as archive:
        folder = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{folder}/data/weights/model.pt", pickle.dumps(object()))
    refused = convert(file, tmp_path / "out.pt2")
    assert refused.exit_code == 1
    assert "Give --trust" in refused.stderr
    assert os.listdir(tmp_path) == ["net.pt2"]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("-o", "out.safetensors"), "converted into .pt2 or .onnx"),
        (("-o", "net.pt2", "--force"), "the output is also an input"),
        (("-o", "out.pt2", "--input", "z=1"), "forward has no argument 'z'"),
    ],
    ids=["suffix", "input", "name"],
)
def test_failures_are_told_in_words(file, tmp_path, monkeypatch, arguments, fragment):
    monkeypatch.chdir(tmp_path)
    result = run("convert", "net.pt2", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert fragment in result.stderr
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == ["net.pt2"]


CALIBRATED = ("--to", "equalized", "--init", "calibrated", "--calibration")


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed sizes", "open sizes"])
def test_a_program_is_calibrated(tmp_path, fixed):
    """Arrays, pictures and distributions; in batches of the program's size where that is fixed."""
    sizes = None if fixed else {"x": dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)}
    example = (torch.randn(2, 3, 8, 9),)
    path = tmp_path / "net.pt2"
    program_file.write(torch.export.export(Net(), example, dynamic_shapes=sizes), path)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "samples.npz", x=rng.standard_normal((9, 3, 8, 9)))
    (tmp_path / "pictures").mkdir()
    for index in range(2):
        pixels = rng.integers(0, 256, (8, 9, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    # Of 32 batches 4 are held out, which no fit has seen; of fewer than 8 none.
    for given, count, seen in (
        (tmp_path / "samples.npz", 8 if fixed else 9, True),
        (tmp_path / "pictures", 56 if fixed else 2, not fixed),
        ("normal", 256, False),
    ):
        output = tmp_path / f"{count}.pt2"
        page = tmp_path / "report.html"
        result = convert(path, output, *CALIBRATED, given, "--json", "--report", page, "--force")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert [each["reason"][:11] for each in report["layers"]] == ["calibrated;"] * 2
        assert report["fidelity"]["calibration_samples"] == count
        assert report["fidelity"]["psnr_seen"] is seen
        assert report["parity"]["ok"]
        assert "<img" in page.read_text()


def test_a_program_is_not_tuned(file, tmp_path):
    options = ("--to", "equalized", "--init", "tuned", "--calibration", "normal")
    result = convert(file, tmp_path / "out.pt2", *options)
    assert result.exit_code == 1
    assert "Use init 'calibrated', or convert the module before it is exported" in result.stderr
