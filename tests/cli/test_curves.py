"""Curves over strengths and samples on the command line."""

import numpy as np
import pytest

from tests.support.command import (
    INPUT,
    Net,
    arch,
    assert_fails_in_words,
    html_report,
    run,
    run_json,
    save,
)
from tests.support.fidelity import CALIBRATED

# --- over samples -----------------------------------------------------------------------------------


def test_the_curve_is_reported(tmp_path, samples):
    options = (*INPUT, *CALIBRATED, str(samples), "--samples-curve")
    page = html_report(tmp_path, Net(), "Net", *options)
    assert "More calibration samples?" in page
    path = tmp_path / "net.safetensors"
    options = (*arch("Net"), *options, "-o", tmp_path / "out.pt", "--force")
    report = run_json("convert", path, *options)
    assert [each["samples"] for each in report["samples_curve"]["points"]] == [4, 8, 15]
    text = run("convert", path, *options).stdout
    assert "compared with the original on 5 held-out samples" in text
    assert "15 samples  " in text


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt2", "net.onnx"])
def test_a_curve_that_cannot_be_is_refused(tmp_path, name):
    """Before any work, before the file is read: it is empty here."""
    save(tmp_path)
    (tmp_path / name).touch()
    output = tmp_path / f"out.{name.split('.')[1]}"
    options = arch("Net") if name == "net.safetensors" else ()
    result = run("convert", tmp_path / name, *options, "--samples-curve", "-o", output)
    assert_fails_in_words(result, "samples-curve: ")
    assert not output.exists()


# --- over strengths -----------------------------------------------------------------------------


def test_the_command_measures_the_curve_when_asked(net):
    samples = net.with_name("samples.npz")
    np.savez(samples, x=np.random.default_rng(0).normal(size=(8, 2, 5, 6)).astype(np.float32))
    page = net.with_name("report.html")
    options = ("--to", "equalized", "--init", "calibrated", "--calibration", samples, *INPUT)
    command = ("convert", net, *arch("Net"), *options, "--strength", "0.5", "--force")
    report = run_json(*command, "-o", net.with_name("o.pt"), "--curve", "--report", page)
    assert [each["strength"] for each in report["curve"]["points"]] == [0, 0.25, 0.5, 0.75, 1]
    assert report["curve"]["points"][0]["psnr_db"] == "inf"
    assert all("strength 0.5" in each["reason"] for each in report["layers"])
    assert "Fidelity and ripple at several strengths" in page.read_text()
    told = " ".join(run(*command, "-o", net.with_name("o.pt"), "--curve").stdout.split())
    assert "2 calibration samples that were held out" in told
    assert "no difference" in told
    assert run_json(*command, "-o", net.with_name("o.pt"))["curve"] is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--to", "resize", "--calibration", "normal"), "--curve is for --to equalized"),
        (("--to", "equalized"), "give some with --calibration"),
        (("--to", "equalized", "--calibration", "normal", "--dry-run"), "omit --dry-run"),
    ],
    ids=["form", "no inputs", "dry run"],
)
def test_a_curve_of_nothing_is_a_usage_error(net, options, text):
    result = run("convert", net, *arch("Net"), *options, "--curve", "-o", net.with_name("o.pt"))
    assert result.exit_code == 2
    assert text in result.stderr
    assert not net.with_name("o.pt").exists()


def test_a_curve_needs_a_module(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"")
    options = ("--to", "equalized", "--calibration", "normal", "--curve")
    result = run("convert", tmp_path / "net.onnx", *options, "-o", tmp_path / "o.onnx")
    assert result.exit_code == 2
    assert "--arch" in result.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--strength", "0.5"), "strength: the value is 0.5 and the form is 'subpixel'"),
        (("--to", "equalized", "--strength", "1.5"), "strength: the value is 1.5; a number from 0"),
    ],
)
def test_a_strength_that_means_nothing_is_said(net, options, text):
    result = run("convert", net, *arch("Net"), *options, "-o", net.with_name("o.pt"))
    assert result.exit_code == 1
    assert text in result.stderr
