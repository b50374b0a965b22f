"""`deconvfix convert`: what is written and what is printed."""

import json

import onnx
import pytest
import torch
from rich.cells import cell_len
from safetensors.torch import load_file

import deconvfix
from tests.support.command import (
    INPUT,
    LongNames,
    Net,
    OddlyNamed,
    arch,
    assert_fails_in_words,
    run,
    run_json,
    save,
)
from tests.support.forms import arguments_of

SUFFIXES = [".safetensors", ".pt", ".pth", ".ckpt"]


# --- convert: what is written -------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_converted_checkpoint_is_written_and_can_be_loaded(net, suffix):
    output = net.with_name(f"out{suffix}")
    assert run("convert", net, *arch("Net"), "-o", output).exit_code == 0
    loaded = deconvfix.load(output, Net())
    x = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    original = Net()
    original.load_state_dict(load_file(net))
    assert deconvfix.verify(original.eval(), loaded.eval(), (x,)).ok


def test_source_stays_as_it_was(net):
    before = net.read_bytes()
    run("convert", net, *arch("Net"), "-o", net.with_name("out.safetensors"))
    assert net.read_bytes() == before


def test_onnx_file_has_no_transposed_convolution(finished):
    graph = onnx.load(finished / "out.onnx").graph
    assert "ConvTranspose" not in {node.op_type for node in graph.node}


def test_onnx_file_has_the_axes_that_may_change(finished):
    (x,) = onnx.load(finished / "out.onnx").graph.input
    sizes = [each.dim_param or each.dim_value for each in x.type.tensor_type.shape.dim]
    assert (x.name, sizes) == ("x", ["batch", 2, "x_2", "x_3"])


def test_onnx_file_carries_its_recipe(finished):
    found = {each.key: each.value for each in onnx.load(finished / "out.onnx").metadata_props}
    recipe = json.loads(found["deconvfix.recipe"])
    assert [each["name"] for each in recipe["decisions"]] == ["up1", "up2"]


def test_onnx_file_carries_the_version(finished):
    found = {each.key: each.value for each in onnx.load(finished / "out.onnx").metadata_props}
    assert found["deconvfix.version"] == deconvfix.__version__


@pytest.mark.parametrize(
    ("pattern", "decisions"),
    [
        (("--include", "up1"), ["replaced", "kept"]),
        (("--exclude", "up1"), ["kept", "replaced"]),
        (("--include", "up*", "--exclude", "*2"), ["replaced", "kept"]),
    ],
    ids=["include", "exclude", "both"],
)
def test_layers_can_be_selected(net, pattern, decisions):
    report = run_json("convert", net, *arch("Net"), *pattern, "-o", net.with_name("out.pt"))
    assert [layer["decision"] for layer in report["layers"]] == decisions


def test_converted_checkpoint_can_be_exported(finished, tmp_path):
    result = run(
        "export", finished / "out.safetensors", *arch("Net"), *INPUT, "-o", tmp_path / "net.onnx"
    )
    assert result.exit_code == 0
    assert "ConvTranspose" not in {n.op_type for n in onnx.load(tmp_path / "net.onnx").graph.node}


# --- convert: what is printed -------------------------------------------------------------------


def test_report_of_an_exact_form_has_the_promised_keys(net):
    output = net.with_name("out.pt")
    report = run_json("convert", net, *arch("Net"), *INPUT, "-o", output)
    assert (report["input"], report["output"], report["to"], report["fidelity"]) == (
        str(net),
        str(output),
        "subpixel",
        None,
    )
    assert [layer["form"] for layer in report["layers"]] == ["subpixel", "subpixel"]
    assert all(layer.keys() >= {"name", "decision", "form", "reason"} for layer in report["layers"])
    assert report["parity"].keys() >= {"ok", "max_abs", "max_error_ratio"}
    assert (report["ok"], report["parity"]["ok"]) == (True, True)


@pytest.mark.parametrize("to", ["resize", "equalized", "notch"])
def test_report_of_a_fitted_form_tells_its_fidelity(net, to):
    options = (*arguments_of(to), *INPUT, "-o", net.with_name("out.pt"))
    fidelity = run_json("convert", net, *arch("Net"), *options)["fidelity"]
    assert fidelity.keys() >= {"psnr_db", "ripple_db_before", "ripple_db_after"}
    # Free of a checkerboard: -60 dB is a thousandth of the level.
    assert fidelity["ripple_db_after"] < -60 < fidelity["ripple_db_before"]


@pytest.mark.parametrize("to", ["resize", "equalized", "notch"])
def test_fitted_forms_want_inputs_or_to_be_named(net, to):
    output = net.with_name("out.pt")
    command = ("convert", net, *arch("Net"), *INPUT, "--to", to, "-o", output)
    refused = run_json(*command)["layers"]
    assert [layer["decision"] for layer in refused] == ["refused", "refused"]
    assert all("no inputs to fit it to; inputs are needed" in layer["reason"] for layer in refused)
    told = " ".join(run(*command, "--force").stdout.replace("│", " ").split())
    assert "Give calibration inputs, use `fix`, or ask for init 'fit' by name." in told
    output.unlink()
    assert_fails_in_words(run(*command, "--strict"), "no inputs to fit it to", "`strict` allows")
    assert not output.exists()
    for options, word in ((("--init", "fit"), ""), (("--calibration", "normal"), "calibrated")):
        layers = run_json(*command, *options, "--force")["layers"]
        assert [layer["decision"] for layer in layers] == ["replaced", "replaced"]
        assert all(layer["reason"].startswith(word) for layer in layers)


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "{net}"),
        ("convert", "{net}", "-o", "{folder}/out.pt"),
        ("convert", "{net}", "--dry-run"),
        ("verify", "{net}", "{finished}/out.pt"),
    ],
    ids=["inspect", "convert", "dry run", "verify"],
)
def test_json_is_all_there_is_on_stdout(net, finished, command):
    places = {"net": net, "folder": net.parent, "finished": finished}
    result = run(*(each.format(**places) for each in command), *arch("Net"), *INPUT, "--json")
    assert result.exit_code == 0
    assert isinstance(json.loads(result.stdout), dict)


def test_json_stays_alone_when_the_model_code_prints(net):
    result = run("inspect", net, *arch("talkative"), "--json")
    assert isinstance(json.loads(result.stdout), dict)


def test_text_tells_what_happened(net):
    output = net.with_name("out.pt")
    lines = run("convert", net, *arch("Net"), *INPUT, "-o", output).stdout.splitlines()
    assert lines[-1] == "2 transposed convolutions found: 2 replaced; verified."


@pytest.mark.parametrize(
    "command",
    [("inspect",), ("convert", "--dry-run"), ("convert", "--dry-run", *arguments_of("resize"))],
    ids=["inspect", "convert", "resize"],
)
def test_text_fits_eighty_columns(tmp_path, command):
    path = save(tmp_path, LongNames())
    result = run(command[0], path, *arch("LongNames"), *command[1:])
    assert result.exit_code == 0
    assert max(map(cell_len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    "name",
    OddlyNamed.names,
)
@pytest.mark.parametrize(
    "command", [("inspect",), ("convert", "--dry-run")], ids=["inspect", "convert"]
)
def test_names_are_printed_as_they_are(tmp_path, command, name):
    path = save(tmp_path, OddlyNamed())
    result = run(command[0], path, *arch("OddlyNamed"), *command[1:])
    assert f"ups.{name}" in result.stdout.split()


def test_names_in_errors_are_printed_as_they_are(tmp_path):
    path = save(tmp_path, OddlyNamed())
    result = run("convert", path, *arch("OddlyNamed"), "--include", "[bold]x", "--dry-run")
    assert_fails_in_words(result, "'[bold]x'", "ups.[red], ups.[/]")
