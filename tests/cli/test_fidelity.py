"""The fidelity of a conversion on the command line."""

import json

import numpy as np
import torch

from deconvfix import conversion
from deconvfix.cli.samples import CalibrationFiles
from tests.support.command import (
    INPUT,
    Net,
    arch,
    html_report,
    run,
    run_json,
    save,
)
from tests.support.fidelity import CALIBRATED, ROUNDED_DB, decoder
from tests.support.forms import arguments_of


def test_numbers_are_always_in_the_json(tmp_path, samples):
    path = save(tmp_path)
    options = (*arch("Net"), *INPUT, *CALIBRATED, samples, "-o", tmp_path / "out.pt")
    report = run_json("convert", path, *options)
    found = report["fidelity"]
    assert found["network_ripple_db_after"] < ROUNDED_DB < found["network_ripple_db_before"]
    assert (found["psnr_samples"], found["calibration_samples"]) == (4, 20)
    assert report["samples_curve"] is None
    layers = {layer["name"]: layer["ripple_db_after"] for layer in report["layers"]}
    assert max(layers.values()) == found["ripple_db_after"]
    tones = found["outputs"][0]["tones"]
    assert {"frequency", "hz", "layers", "ratio_db_before", "ratio_db_after"} == tones[0].keys()


def test_the_terminal_tells_it_in_a_few_lines(tmp_path, samples):
    path = save(tmp_path)
    options = (*arch("Net"), *INPUT, *CALIBRATED, samples, "-o", tmp_path / "out.pt")
    text = " ".join(run("convert", path, *options).stdout.split())
    for part in (
        "On a constant input, the grid fell from ",
        "Largest layer ripple (from the weights): ",
        "Ripple of the whole model: ",
        "on 4 of the 20 samples that the layers were fitted to.",
    ):
        assert part in text
    assert "Ripple" not in run("convert", path, *arch("Net"), "-o", tmp_path / "exact.pt").stdout


def test_the_files_are_read_once_and_pictures_are_gathered_for_a_page(
    tmp_path, samples, monkeypatch
):
    reads, gathered = [], []
    original, gather = CalibrationFiles.__iter__, conversion.gather
    monkeypatch.setattr(
        CalibrationFiles, "__iter__", lambda self: (reads.append(1), original(self))[1]
    )
    monkeypatch.setattr(
        conversion, "gather", lambda *a, **k: (gathered.append(1), gather(*a, **k))[1]
    )
    options = (*INPUT, *CALIBRATED, str(samples))
    page = html_report(tmp_path, Net(), "Net", *options, "--samples-curve")
    assert (len(reads), len(gathered)) == (1, 1)
    assert page.count("data:image/") > 6
    report = tmp_path / "report.json"
    options = (*options, "-o", tmp_path / "out.pt", "--force", "--report", report)
    run_json("convert", tmp_path / "net.safetensors", *arch("Net"), *options)
    assert (len(reads), len(gathered)) == (2, 1)


def test_programs_and_onnx_files_show_their_grids_too(tmp_path):
    x = torch.rand(2, 3, 24, 24)
    torch.export.save(torch.export.export(decoder(), (x,)), tmp_path / "net.pt2")
    np.savez(tmp_path / "inputs.npz", input=x.numpy())
    assert run("export", tmp_path / "net.pt2", "-o", tmp_path / "old.onnx").exit_code == 0
    for name, inputs in (("net.pt2", ()), ("old.onnx", ("--inputs", tmp_path / "inputs.npz"))):
        page = tmp_path / f"{name}.html"
        output = tmp_path / f"new_{name}"
        result = run(
            *("convert", tmp_path / name, *arguments_of("equalized"), *inputs, "--report", page),
            *("-o", output, "--json"),
        )
        found = json.loads(result.stdout)["fidelity"]
        assert found["network_ripple_db_after"] < ROUNDED_DB < found["network_ripple_db_before"]
        assert found["ripple_db_after"] < ROUNDED_DB
        text = page.read_text()
        assert "On a constant input, the grid fell from" in text
        assert text.count("data:image/") >= 7, "two flat, three outputs, two spectra"
