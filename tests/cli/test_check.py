"""`deconvfix check`: exit codes, rules, reports."""

import json
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch

from tests.support.command import INPUT, Functional, Net, OddlyNamed, arch, save
from tests.support.onnx_files import assert_fails_in_words, convert, net, run
from tests.support.sarif import faults_of


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An original, and what `convert` makes of it."""
    folder = tmp_path_factory.mktemp("gate")
    onnx.save(net(shape=(1, 3, 7, 8)), folder / "net.onnx")
    onnx.save(net(shape=(1, 3, 7, 8), seed=1), folder / "other.onnx")
    assert convert(folder / "net.onnx", folder / "fixed.onnx").exit_code == 0
    return folder


def rules(result):
    """Rule to messages, for the only file."""
    [file] = json.loads(result.stdout)["files"]
    return {
        rule["name"]: [found["message"] for found in rule["findings"]] for rule in file["rules"]
    }


def test_a_converted_file_passes(files):
    result = run(
        "check", files / "fixed.onnx", "--before", files / "net.onnx", "--target", "opencv"
    )
    assert result.exit_code == 0, result.output
    assert "all rules are kept" in result.stdout
    assert result.stdout.count("  kept  ") == 3


def test_a_transposed_convolution_that_is_left_fails(files):
    result = run("check", files / "net.onnx", "--json")
    assert result.exit_code == 1
    assert rules(result) == {
        "no-transposed-convolution": [
            f"{name} is a transposed convolution (ConvTranspose)." for name in ("up1", "up2")
        ]
    }


def test_layers_that_are_kept_on_purpose_pass(files):
    result = run("check", files / "net.onnx", "--exclude", "up2", "--json")
    assert [message.split()[0] for message in rules(result)["no-transposed-convolution"]] == ["up1"]
    assert run("check", files / "net.onnx", "--exclude", "up*").exit_code == 0
    assert run("check", files / "net.onnx", "--exclude", "UP*").exit_code == 1


def test_every_line_of_a_profile_that_is_broken_is_told(files, tmp_path):
    profile = tmp_path / "own.toml"
    profile.write_text(
        '[forbidden]\nvalue = ["Relu", "DepthToSpace"]\nsource = "here"\n'
        '[opset]\nvalue = 9\nsource = "there"\n'
    )
    result = run("check", files / "fixed.onnx", "--target", profile, "--json")
    assert result.exit_code == 1
    found = rules(result)["target"]
    assert found[0].startswith("(model): the file has opset 17; the target 'own' says: opset = 9")
    forbidden = ("Relu", "DepthToSpace")
    model = onnx.load(files / "fixed.onnx")
    assert len(found) == 1 + sum(node.op_type in forbidden for node in model.graph.node) >= 3
    assert sum("it is a Relu" in line for line in found) == 1


def test_another_function_fails(files):
    result = run("check", files / "fixed.onnx", "--before", files / "other.onnx", "--json")
    assert result.exit_code == 1
    assert rules(result)["no-transposed-convolution"] == []
    assert "differs" in rules(result)["same-function"][0]


def test_what_cannot_be_run_does_not_pass_as_the_same(tmp_path):
    """`convert` compares the layers alone then; a gate wants the outputs."""
    model = net(shape=(1, 3, 7, 8))
    own = model.graph.node.add(op_type="Nowhere", domain="own", input=["y"], output=["z"])
    own.name = "own"
    model.graph.output[0].name = "z"
    model.opset_import.add(domain="own", version=1)
    onnx.save(model, tmp_path / "own.onnx")
    assert convert(tmp_path / "own.onnx", tmp_path / "fixed.onnx").exit_code == 0
    assert run("check", tmp_path / "fixed.onnx").exit_code == 0
    result = run("check", tmp_path / "fixed.onnx", "--before", tmp_path / "own.onnx")
    assert_fails_in_words(result, "the file must run to be verified")


def test_the_visible_grid_has_a_limit(tmp_path):
    path, inputs = tmp_path / "net.onnx", tmp_path / "inputs.npz"
    onnx.save(net(shape=(1, 3, 40, 40)), path)
    ramp = np.linspace(0, 1, 40, dtype=np.float32)
    np.savez(inputs, x=np.broadcast_to(ramp[:, None] + ramp, (1, 3, 40, 40)).astype(np.float32))
    given = ("check", path, "--inputs", inputs, "--exclude", "*", "--json")
    result = run(*given, "--max-grid", "0.3")
    assert result.exit_code == 1
    [message] = rules(result)["grid"]
    assert message.startswith("output 0: the visible grid is ")
    seen = float(message.split(" is ")[1].split()[0])
    assert seen > 0.3
    assert run(*given, "--max-grid", seen + 0.01).exit_code == 0
    assert run(*given, "--max-grid", seen - 0.01).exit_code == 1


def test_a_grid_that_cannot_be_measured_does_not_pass(files, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones((1, 3, 7, 8), np.float32))
    given = ("check", files / "net.onnx", "--inputs", tmp_path / "x.npz", "--exclude", "*")
    result = run(*given, "--max-grid", "9", "--json")
    assert result.exit_code == 1
    assert "could not be measured" in rules(result)["grid"][0]


def test_reports_are_written_whether_the_gate_opens_or_not(files, tmp_path):
    junit, sarif = tmp_path / "gate.xml", tmp_path / "gate.sarif"
    for names, failures in ((["fixed.onnx"], 0), (["fixed.onnx", "net.onnx"], 1)):
        paths = [files / name for name in names]
        result = run("check", *paths, "--junit", junit, "--sarif", sarif)
        assert result.exit_code == min(failures, 1)
        root = ElementTree.parse(junit).getroot()
        assert (root.get("tests"), root.get("failures")) == (str(len(names)), str(failures))
        log = json.loads(sarif.read_text(encoding="utf-8"))
        assert faults_of(log) == []
        assert len(log["runs"][0]["results"]) == 2 * failures


def test_a_report_never_takes_the_place_of_a_model(files, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes((files / "net.onnx").read_bytes())
    assert_fails_in_words(run("check", path, "--junit", path), "net.onnx")
    assert path.read_bytes() == (files / "net.onnx").read_bytes()
    both = tmp_path / "gate.xml"
    assert_fails_in_words(run("check", path, "--junit", both, "--sarif", both), "gate.xml")


def test_checkpoints_are_checked_with_the_code_that_builds_them(tmp_path):
    before, after = save(tmp_path), tmp_path / "fixed.safetensors"
    named = (*arch("Net"), *INPUT)
    assert run("convert", before, *named, "-o", after).exit_code == 0
    assert run("check", before, *named).exit_code == 1
    result = run("check", after, *named, "--before", before)
    assert result.exit_code == 0, result.output
    assert_fails_in_words(run("check", after, *named, "--target", "openvino"), "no ONNX file")


def test_calls_that_are_converted_where_they_run_are_not_left(tmp_path):
    before, after = save(tmp_path, Functional()), tmp_path / "fixed.pt"
    named = (*arch("Functional"), *INPUT)
    assert run("convert", before, *named, "-o", after).exit_code == 0
    left = rules(run("check", before, *named, "--json"))["no-transposed-convolution"]
    assert [message.split()[0] for message in left] == ["conv_transpose2d", "up"]
    assert run("check", after, *named).exit_code == 0


def test_programs_are_checked(tmp_path):
    before, after = tmp_path / "net.pt2", tmp_path / "fixed.pt2"
    example = (torch.randn(1, 2, 5, 6),)
    torch.export.save(torch.export.export(Net().eval(), example), before)
    assert run("convert", before, "-o", after).exit_code == 0
    assert run("check", before).exit_code == 1
    assert run("check", after, "--before", before).exit_code == 0


def test_names_that_a_terminal_would_obey_are_shown(tmp_path):
    path = save(tmp_path, OddlyNamed())
    result = run("check", path, *arch("OddlyNamed"))
    assert result.exit_code == 1
    for name in OddlyNamed.names:
        assert f"ups.{name} is a transposed convolution" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("net.onnx", "fixed.onnx", "--before", "net.onnx"), 2, "--before is for one MODEL"),
        ((), 2, "Missing argument"),
        (("net.safetensors",), 2, "--arch"),
        (("missing.onnx",), 1, "missing.onnx"),
        (("net.onnx", "--target", "nowhere"), 1, "nowhere"),
        (("net.onnx", "--max-grid", "1"), 1, "no inputs are given"),
        (("net.onnx", "--max-grid", "nan"), 1, "max-grid"),
        (("net.onnx", "--timeout", "0"), 2, "--timeout"),
    ],
)
def test_what_cannot_be_asked_is_said(files, monkeypatch, arguments, code, words):
    monkeypatch.chdir(files)
    result = run("check", *arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert "Traceback" not in result.stderr
