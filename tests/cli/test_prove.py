"""`convert --target`: the choice by measurement, and the proof there before anything is written."""

import json

import onnx
import pytest

from deconvfix.runtimes.registry import RUNTIMES
from tests.support import fake_runtimes
from tests.support.onnx_files import assert_fails_in_words, convert, net, run


@pytest.fixture
def file(tmp_path, monkeypatch):
    """An ONNX file of fixed sizes; all fakes can be named, and nothing was measured before."""
    for name, home in fake_runtimes.NAMES.items():
        monkeypatch.setitem(RUNTIMES, name, home)
    monkeypatch.setenv("DECONVFIX_CACHE", str(tmp_path / "timings.jsonl"))
    path = tmp_path / "net.onnx"
    onnx.save(net(shape=(1, 3, 6, 5)), path)
    return path


def target(file, runtime):
    path = file.with_name(f"{runtime}.toml")
    path.write_text('title = "a runtime of the tests"\n')
    return path


def test_the_choice_is_told_while_it_is_made(file):
    output = file.with_name("out.onnx")
    result = convert(file, output, "--to", "auto", "--target", target(file, "FastDcr"))
    assert result.exit_code == 0, result.output
    assert "up2: replaced (the same function; " in result.stderr
    assert "up1: kept (the fastest writing, " in result.stderr
    operators = [node.op_type for node in onnx.load(output).graph.node]
    assert operators.count("ConvTranspose") == operators.count("DepthToSpace") == 1


def test_json_is_alone_on_stdout(file):
    typed = ["--to", "auto", "--target", target(file, "FastDcr"), "--json", "--prove"]
    told = json.loads(convert(file, file.with_name("out.onnx"), *typed).stdout)
    assert [layer["decision"] for layer in told["layers"]] == ["kept", "replaced"]
    assert "times as fast in Fake 1.2" in told["layers"][1]["reason"]
    proof = told["in_runtime"]
    assert (proof["ok"], proof["runtime"], proof["after"]["status"]) == (True, "Fake 1.2", "right")
    assert proof["verdict"] == "Fake 1.2 gets both files right."


def test_a_proof_in_the_target_is_told(file):
    output = file.with_name("out.onnx")
    result = convert(file, output, "--target", target(file, "WrongOriginal"), "--prove")
    assert result.exit_code == 0, result.output
    assert "Fake 1.2 gets the original wrong; the converted file is right." in result.stdout
    assert output.exists()


def test_what_is_wrong_there_is_not_written(file):
    output = file.with_name("out.onnx")
    typed = ["--target", target(file, "WrongCrd")]
    result = convert(file, output, *typed, "--prove")
    assert_fails_in_words(
        result,
        f"{output}: Fake 1.2 gets the converted file wrong, and gets the original right",
        "up2 (cropped/crd) is wrong there: y differs by 1 on",
        "Nothing was written",
    )
    assert "up1 (" not in result.stderr
    assert not output.exists()
    # The control: without the proof there is nothing to see.
    assert convert(file, output, *typed).exit_code == 0
    assert output.exists()


def test_only_files_that_are_written_are_proven(file):
    result = run("convert", file, "--dry-run", "--prove")
    assert_fails_in_words(result, "prove: it is a dry run")


def test_a_target_without_a_runtime_is_told(file):
    output = file.with_name("out.onnx")
    for typed in (["--prove"], ["--to", "auto"]):
        result = convert(file, output, "--target", "rank4", *typed)
        assert_fails_in_words(result, "the value is 'rank4', and files for it are not run here")
        assert not output.exists()
