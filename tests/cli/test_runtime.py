"""`deconvfix verify --runtime`: exit codes, JSON and words."""

import onnx
import pytest

import deconvfix
from deconvfix.runtimes.registry import RUNTIMES
from tests.support import fake_runtimes
from tests.support.command import assert_fails_in_words, run, run_json
from tests.support.onnx_files import net


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtime")
    onnx.save(net(shape=(1, 3, 5, 4)), folder / "net.onnx")
    onnx.save(deconvfix.convert(net(shape=(1, 3, 5, 4))).model, folder / "fixed.onnx")
    return folder / "net.onnx", folder / "fixed.onnx"


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    for name, home in fake_runtimes.NAMES.items():
        monkeypatch.setitem(RUNTIMES, name, home)


def test_both_right(files):
    result = run("verify", *files, "--runtime", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert "gets both files right." in result.stdout


def test_the_original_wrong_and_the_converted_file_right(files):
    result = run("verify", *files, "--runtime", "WrongOriginal")
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "Fake 1.2 gets the original wrong; the converted file is right." in words


@pytest.mark.parametrize(
    ("runtime", "status"), [("Half", "wrong"), ("Refuses", "refused"), ("Dies", "died")]
)
def test_the_converted_file_not_right(files, runtime, status):
    result = run("verify", *files, "--runtime", runtime)
    assert result.exit_code == 1
    assert status in result.stdout
    assert "Traceback" not in result.stderr


def test_the_time_limit_is_the_commands(files):
    result = run("verify", *files, "--runtime", "Hangs", "--timeout", "5")
    assert result.exit_code == 1
    assert "did not finish within 5 s" in " ".join(result.stdout.split())


def test_json_is_one_object(files):
    report = run_json("verify", *files, "--runtime", "Cropped")
    assert report["format"] == "deconvfix.runtime/1"
    assert report["ok"] is False
    assert report["runtime"] == "Fake 1.2"
    assert report["after"]["file"] == str(files[1])
    assert report["after"]["status"] == report["before"]["status"] == "wrong"
    assert report["after"]["max_abs"] == "inf"


def test_a_missing_package_is_said(files):
    result = run("verify", *files, "--runtime", "NotInstalled")
    assert_fails_in_words(result, "there_is_no_such_package", "pip install fake")


def test_given_inputs_are_used(files):
    given = ("--input", "x=1x3x6x6")
    assert_fails_in_words(run("verify", *files, "--runtime", "Fake", *given), "5")


@pytest.mark.parametrize("more", [("--min-snr", "30"), ("--atol", "1")])
def test_limits_of_ones_own_are_for_onnx_runtime(files, more):
    assert run("verify", *files, "--runtime", "Fake", *more).exit_code == 2


def test_other_kinds_of_files_are_refused(files, tmp_path):
    program = tmp_path / "net.pt2"
    program.write_bytes(b"")
    assert run("verify", program, files[1], "--runtime", "Fake").exit_code == 2
    result = run("verify", files[0], program, "--runtime", "Fake")
    assert_fails_in_words(result, "compared with an ONNX file")
