"""Failures: told in words, with the code that they end with."""

import gc
import os
from pathlib import Path

import pytest
import torch

from tests.support.command import (
    INPUT,
    Functional,
    Net,
    arch,
    assert_fails_in_words,
    run,
    run_json,
    save,
)
from tests.support.forms import arguments_of


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect",),
        ("inspect", "net.safetensors"),
        ("convert", "net.safetensors", *arch("Net")),
        ("export", "net.safetensors", *arch("Net")),
        ("verify", "net.safetensors", *arch("Net")),
        ("convert", "net.safetensors", *arch("Net"), "--unknown"),
        ("convert", "net.safetensors", *arch("Net"), "-o", "o.onnx", "--opset", "new"),
        ("convert", "net.safetensors", *arch("Net"), "-o", "o.pt", "--report", "r.txt"),
        ("convert", "net.safetensors", *arch("Net"), "--dry-run", "--samples-curve"),
        ("polish", "net.safetensors"),
    ],
    ids=[
        "no model",
        "no arch",
        "no output",
        "export without output",
        "one file to verify",
        "unknown option",
        "opset no number",
        "report suffix",
        "curve of a dry run",
        "unknown command",
    ],
)
def test_wrong_usage_ends_with_two(net, monkeypatch, arguments):
    monkeypatch.chdir(net.parent)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage:" in result.stderr
    assert os.listdir(net.parent) == [net.name]


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (("--include", "down*"), ("'down*' matches none of the 2 layers", "up1, up2")),
        (("--arch-kwargs", "[1]"), ("arch-kwargs", "a JSON object is needed")),
        (("--arch-kwargs", '{"depth": 2}'), ("building the model fails (TypeError",)),
        (("--arch-kwargs", '{"width": 4}'), ("other shapes", "(3, 2, 3, 3) instead of (4, 2")),
        (("--arch", "torch.nn"), ("'module:callable' is needed",)),
        (("--arch", "absent_module:Net"), ("ModuleNotFoundError",)),
        (arch("absent"), ("AttributeError",)),
        (arch("not_a_module"), ("it returns a dict", "a torch.nn.Module is needed")),
        (("--input", "image=1x2x5x6"), ("no argument 'image'", "the names", ": x")),
        (("--input", "x=1x2x5xsix"), ("NAME=1x3x64x64",)),
        (("--input", "x=1x2x5x6:float33"), ("NAME=1x3x64x64",)),
        (("--input", "x=1x9x5x6"), ("cannot be run on inputs of shapes [(1, 9, 5, 6)]",)),
        (("--inputs", "absent.npz"), ("absent.npz: it cannot be read",)),
        (("--state-key", "ema"), ()),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else None,
)
def test_failures_are_told_in_words(tmp_path, monkeypatch, options, fragments):
    monkeypatch.chdir(tmp_path)
    torch.save(Net().state_dict(), tmp_path / "net.pt")
    result = run("convert", "net.pt", *arch("Net"), *options, "-o", "out.pt")
    assert_fails_in_words(result, *fragments)
    assert os.listdir(tmp_path) == ["net.pt"]


@pytest.mark.parametrize("name", ["absent.pt", "net.h5", "bad.safetensors"])
def test_unreadable_model_is_told_in_words(tmp_path, name):
    (tmp_path / "net.h5").write_text("")
    (tmp_path / "bad.safetensors").write_text("hello" * 20)
    assert_fails_in_words(run("inspect", tmp_path / name, *arch("Net")), name)


@pytest.mark.parametrize("output", ["out.txt", "out", "absent/out.pt"])
def test_impossible_output_is_told_in_words(net, output):
    result = run("convert", net, *arch("Net"), "-o", net.parent / output)
    assert_fails_in_words(result, output)


def test_export_writes_onnx_files_only(net):
    result = run("export", net, *arch("Net"), *INPUT, "-o", net.with_name("out.pt"))
    assert_fails_in_words(result, "suffix")


@pytest.mark.parametrize(
    "option",
    [("--inputs", "empty.npz"), ("--input", "x=1x²"), ("--input", "x=999999999999999")],
    ids=["empty", "superscript", "too large"],
)
def test_impossible_inputs_are_told_in_words(net, monkeypatch, option):
    monkeypatch.chdir(net.parent)
    Path("empty.npz").write_bytes(b"")
    assert_fails_in_words(run("inspect", net, *arch("Net"), *option))


# numpy.load leaves a file open that begins like a .npz file and is none.
@pytest.mark.filterwarnings("ignore:.*cut.npz:pytest.PytestUnraisableExceptionWarning")
def test_inputs_file_that_was_cut_off_is_told_in_words(net):
    inputs = net.with_name("cut.npz")
    inputs.write_bytes(b"PK\x03\x04 and no more")
    message = run("inspect", net, *arch("Net"), "--inputs", inputs).stderr
    gc.collect()
    assert message.startswith(f"Error: {inputs}: it cannot be read")


def test_refusal_is_told_and_the_rest_converted(tmp_path):
    path = save(tmp_path, Functional())
    options = (*arch("Functional"), *INPUT, *arguments_of("resize"), "-o", tmp_path / "out.pt")
    report = run_json("convert", path, *options)
    assert [layer["decision"] for layer in report["layers"]] == ["refused", "replaced"]


def test_strict_makes_a_refusal_an_error(tmp_path):
    path = save(tmp_path, Functional())
    options = (*arch("Functional"), *INPUT, *arguments_of("resize"), "-o", tmp_path / "out.pt")
    result = run("convert", path, *options, "--strict")
    assert_fails_in_words(result, "conv_transpose2d", "`strict` allows no refusal")
    assert os.listdir(tmp_path) == [path.name]


def test_code_in_a_checkpoint_is_not_executed(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'marker'}",)

    torch.save({"state_dict": Net().state_dict(), "hyper": Runs()}, tmp_path / "net.pt")
    result = run("inspect", tmp_path / "net.pt", *arch("Net"))
    assert_fails_in_words(result, "nothing else is executed")
    assert os.listdir(tmp_path) == ["net.pt"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--to", "magic"),
        ("--interpolation", "cubic"),
        ("--padding-mode", "wrap"),
        ("--init", "luck"),
        ("--seed", "many"),
        ("--unknown",),
    ],
    ids=" ".join,
)
def test_values_that_do_not_exist_are_usage_errors(tmp_path, arguments):
    path = save(tmp_path, Net())
    result = run("convert", path, *arch("Net"), "-o", tmp_path / "new.pt", *arguments)
    assert result.exit_code == 2
    assert not (tmp_path / "new.pt").exists()
