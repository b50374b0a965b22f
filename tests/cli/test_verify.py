"""`deconvfix verify` and `deconvfix export`."""

import onnx
import pytest
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.support.command import INPUT, arch, assert_fails_in_words, run, run_json
from tests.support.forms import arguments_of

# --- verify -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt", "out.onnx"])
def test_verify_accepts_a_good_conversion(finished, name):
    result = run("verify", finished / "net.safetensors", finished / name, *arch("Net"), *INPUT)
    assert result.exit_code == 0
    assert "Verified: all " in result.stdout


def swap_phases(path, target):
    """A converted checkpoint in which two phases of one layer have changed places."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    weight = state["up1.conv.weight"]
    weight[[0, 1]] = weight[[1, 0]]
    save_file(state, target, metadata=metadata)
    return target


@pytest.mark.parametrize("inputs", [(), INPUT], ids=["without inputs", "with inputs"])
def test_verify_finds_swapped_phases(finished, tmp_path, inputs):
    bad = swap_phases(finished / "out.safetensors", tmp_path / "bad.safetensors")
    result = run("verify", finished / "net.safetensors", bad, *arch("Net"), *inputs)
    assert result.exit_code == 1
    assert "NOT verified: " in result.stdout


def test_verify_names_the_layer_that_differs(finished, tmp_path):
    bad = swap_phases(finished / "out.safetensors", tmp_path / "bad.safetensors")
    report = run_json("verify", finished / "net.safetensors", bad, *arch("Net"), *INPUT)
    assert (report["ok"], report["first_departure"]) == (False, "up1")


def test_verify_finds_a_changed_onnx_file(finished, tmp_path):
    proto = onnx.load(finished / "out.onnx")
    stored = next(each for each in proto.graph.initializer if "up1" in each.name)
    changed = numpy_helper.to_array(stored).copy()
    changed[[0, 1]] = changed[[1, 0]]
    stored.CopyFrom(numpy_helper.from_array(changed, stored.name))
    onnx.save(proto, tmp_path / "bad.onnx")
    options = (*arch("Net"), *INPUT)
    result = run("verify", finished / "net.safetensors", tmp_path / "bad.onnx", *options)
    assert result.exit_code == 1


def test_verify_does_not_accept_a_changed_function(net):
    output = net.with_name("out.pt")
    run("convert", net, *arch("Net"), *arguments_of("resize"), "-o", output)
    assert run("verify", net, output, *arch("Net"), *INPUT).exit_code == 1


def test_verify_without_inputs_does_not_accept_a_changed_function(net):
    output = net.with_name("out.pt")
    run("convert", net, *arch("Net"), *arguments_of("resize"), "-o", output)
    assert run("verify", net, output, *arch("Net")).exit_code == 1


def test_verify_of_onnx_needs_inputs(finished):
    result = run("verify", finished / "net.safetensors", finished / "out.onnx", *arch("Net"))
    assert_fails_in_words(result, "no example inputs")


# --- export -------------------------------------------------------------------------------------


def test_export_keeps_the_model_as_it_is(net):
    output = net.with_name("net.onnx")
    report = run_json("export", net, *arch("Net"), *INPUT, "--opset", "19", "-o", output)
    assert (report["opset"], report["operators"]["ConvTranspose"]) == (19, 2)
    assert report["parity"]["ok"]


def test_export_needs_inputs(net):
    result = run("export", net, *arch("Net"), "-o", net.with_name("net.onnx"))
    assert_fails_in_words(result, "no example inputs", "--input x=")
