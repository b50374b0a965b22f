"""Several processes at the command line: work is shared, outputs are written and errors told once."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import deconvfix
from deconvfix.cli.processes import Share, share
from tests.support.processes import ROOT


def at_the_command_line(*arguments, processes=1):
    """What comes out of `deconvfix`, by torchrun where several processes share the work."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    # fmt: off
    return subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), "-m", "deconvfix", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    # fmt: on


def digits(folder, *, spoilt=None):
    """Arguments for a conversion of the generator, calibrated on a file of 11 latents."""
    latents = np.random.default_rng(0).standard_normal((11, 32, 1, 1)).astype(np.float32)
    if spoilt is not None:
        latents[spoilt] = np.nan
    np.savez(folder / "latents.npz", z=latents)
    return (
        *("convert", "fixtures/digits_generator.safetensors"),
        *("--arch", "fixtures.models:digits_generator", "--input", "z=2x32x1x1"),
        *("--include", "up2", "--to", "equalized", "--calibration", folder / "latents.npz"),
    )


def test_torchrun_shares_the_samples_and_writes_once(tmp_path):
    reports = []
    for count in (1, 2):
        arguments = (*digits(tmp_path), "-o", tmp_path / f"{count}.pt", "--init", "calibrated")
        result = at_the_command_line(*arguments, "--json", processes=count)
        assert result.returncode == 0, result.stderr
        reports.append(json.loads(result.stdout))  # one object: of one process
    one, two = (torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 2))
    weights, trained = (
        each["up2.weight"]
        for each in (one, load_file(ROOT / "fixtures/digits_generator.safetensors"))
    )
    assert not torch.allclose(weights, trained, rtol=1e-2)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value)
    assert [each["fidelity"]["calibration_samples"] for each in reports] == [11, 11]
    assert [each["layers"][0]["reason"] for each in reports] == [
        reports[0]["layers"][0]["reason"]
    ] * 2


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_programs_are_shared_and_onnx_files_are_not(suffix, tmp_path):
    """Either way the outcome is that of one process with all of the samples."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ConvTranspose2d(3, 2, 4, 2, 1)).eval()
    example = (torch.randn(1, 2, 5, 6),)
    before = tmp_path / f"before.{suffix}"
    if suffix == "pt2":
        torch.export.save(torch.export.export(model, example), before)
    else:
        deconvfix.export_onnx(model, before, example)
    np.save(tmp_path / "samples.npy", torch.randn(9, 2, 5, 6).numpy())
    options = (
        "--to",
        "equalized",
        "--init",
        "calibrated",
        "--calibration",
        tmp_path / "samples.npy",
    )
    found = []
    for count in (1, 2):
        after = tmp_path / f"{count}.{suffix}"
        result = at_the_command_line("convert", before, "-o", after, *options, processes=count)
        assert result.returncode == 0, result.stderr
        if suffix == "pt2":
            state = torch.export.load(after).state_dict
            found.append([each.detach().numpy() for each in state.values()])
        else:
            weights = onnx.load(after).graph.initializer
            found.append([onnx.numpy_helper.to_array(each) for each in weights])
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_torchrun_tunes_too(tmp_path):
    options = ("--init", "tuned", "--steps", "3", "-o", tmp_path / "tuned.safetensors")
    result = at_the_command_line(*digits(tmp_path), *options, processes=2)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "tuned.safetensors").is_file()
    assert "then tuned" in " ".join(result.stdout.split())


@pytest.mark.parametrize("case", ["of one process", "of the first", "of all", "of usage"])
def test_an_error_ends_all_and_is_told_once(case, tmp_path):
    output = tmp_path / "out.pt"
    # Samples are dealt in turn: number 3 is the second process's.
    arguments = [*digits(tmp_path, spoilt=3 if case == "of one process" else None), "-o", output]
    arguments += ["--init", "calibrated"]
    if case == "of the first":
        output.write_text("kept")
    elif case == "of all":
        arguments += ["--strength", "2"]
    elif case == "of usage":
        arguments += ["--samples-curve"]
    result = at_the_command_line(*arguments, processes=2)
    assert result.returncode == 1
    assert result.stderr.count("Error: ") - result.stderr.count("ChildFailedError: ") == 1
    assert "RuntimeError" not in result.stderr
    assert result.stdout == ""
    assert not output.exists() or output.read_text() == "kept"


def test_what_is_not_shared_is_done_by_one_process():
    fixture = ("fixtures/segmenter.safetensors", "--arch", "fixtures.models:segmenter")
    alone, shared = (at_the_command_line("inspect", *fixture, processes=count) for count in (1, 2))
    assert alone.returncode == shared.returncode == 0
    assert alone.stdout == shared.stdout


def test_other_launchers_are_not_joined(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert share() == Share(0, 1)
    for name, value in (
        ("RANK", "1"),
        ("WORLD_SIZE", "4"),
        ("MASTER_ADDR", "a"),
        ("MASTER_PORT", "1"),
    ):
        monkeypatch.setenv(name, value)
    assert share() == Share(0, 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert share() == Share(1, 4)
