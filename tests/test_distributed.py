"""Two processes, each with half of the calibration inputs, against one with all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from deconvfix.frontends.torch.moments import Moments
from safetensors.torch import load_file
from test_calibrated import smooth_batches
from test_tuned import decoder
from torch import nn

import deconvfix
from deconvfix import Tuning
from deconvfix.cli.processes import Share, share
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.forms.base import Settings
from deconvfix.frontends.torch import moments as torch_moments

WORKER = """
import sys
import torch
sys.path[:0] = [".", "tests"]
torch.set_num_threads(1)
from test_distributed import convert
number, folder, init = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2
)
torch.save(convert(init, number), f"{folder}/{number}.pt")
torch.distributed.destroy_process_group()
"""


def convert(init, number=None):
    """The state after a conversion, with all batches or with every second one."""
    batches = smooth_batches((4, 3, 5, 6))
    if number is not None:
        batches = batches[number::2]
    got = deconvfix.convert(
        decoder(),
        to="equalized",
        init=init,
        calibration=batches,
        tuning=Tuning(steps=6),
    )
    return got.model.state_dict()


@pytest.mark.parametrize("init", ["calibrated", "tuned"])
def test_two_processes_agree_with_one(init, tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(number), str(tmp_path), init],
                         cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True)
        for number in (0, 1)
    ]  # fmt: skip
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    if init == "calibrated":
        # Sums in another order, solved in float64, rounded to float32 once.
        for name, value in convert(init).items():
            torch.testing.assert_close(first[name], value)
    else:
        assert not torch.equal(first["0.weight"], convert("calibrated")["0.weight"])


ROOT = Path(__file__).parents[1]


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


def test_processes_that_take_turns_hold_out_the_same_samples(monkeypatch):
    spec = ConvTransposeSpec.create(1, 1, (4,), stride=(2,), padding=(1,))
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (11, 1, 5), generator=generator).double()
    y = torch.randint(-3, 4, (11, 1, 10), generator=generator).double()

    def held(rank, world):
        monkeypatch.setattr(torch_moments, "rank", lambda: rank)
        monkeypatch.setattr(torch_moments, "world", lambda: world)
        moments = Moments(spec, "equalized", Settings())
        moments.add(x[rank::world], y[rank::world])
        return moments.of_group(0)[1], moments.held

    whole, count = held(0, 1)
    assert count == 2
    for world in (2, 3):
        parts = [held(rank, world) for rank in range(world)]
        assert sum(each for _, each in parts) == count
        for phase, wanted in enumerate(whole):
            assert np.array_equal(sum(sums[phase] for sums, _ in parts), wanted)
