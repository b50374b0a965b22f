"""`deconvfix fix` on files: what is written, when nothing is, and the exit codes."""

import json

import numpy as np
import pytest
import torch

import deconvfix
from deconvfix.frontends.torch.frontend import TorchModuleFrontend
from tests.support.command import run
from tests.support.gridded import Autoencoder, gridded, pictures_for

ARCH = ("--arch", "tests.support.gridded:Autoencoder")


@pytest.fixture
def source(tmp_path):
    torch.save(gridded().state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "data.npz", image=torch.cat(pictures_for(72)).numpy())
    return tmp_path / "net.pt"


def test_a_fixed_checkpoint_is_written_with_a_page(source, tmp_path):
    arguments = ("fix", source, *ARCH, "--data", tmp_path / "data.npz", "-o", tmp_path / "out.pt")
    page = ("--report", tmp_path / "page.html", "--seconds", 6, "--max-cost", 1.0, "--explain")
    result = run(*arguments, *page)
    assert result.exit_code == 0, result.output
    assert "its own layers" in result.stdout
    assert "Fixed: its own layers, trained" in " ".join(result.stdout.split())
    assert "<h1>The grid that is seen</h1>" in (tmp_path / "page.html").read_text()
    # Names and shapes stayed, so it loads into unchanged code.
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    Autoencoder().load_state_dict(state)
    assert not torch.equal(state["up.weight"], gridded().up.weight)
    again = run(*arguments)
    assert again.exit_code == 1
    assert "exists" in again.stderr


def test_nothing_to_fix_is_exit_code_3_and_writes_nothing(source, tmp_path):
    fixed = gridded()
    with torch.no_grad():
        fixed.up.weight[fixed.up.weight > 1] = 1
    torch.save(fixed.state_dict(), source)
    arguments = ("fix", source, *ARCH, "--data", tmp_path / "data.npz", "-o", tmp_path / "out.pt")
    result = run(*arguments, "--json")
    assert result.exit_code == 3, result.output
    assert json.loads(result.stdout)["nothing_to_fix"] is True
    assert not (tmp_path / "out.pt").exists()


def test_no_good_candidate_is_exit_code_1_and_writes_nothing(source, tmp_path, monkeypatch):
    unchanged = staticmethod(lambda model, task: model)
    monkeypatch.setattr(TorchModuleFrontend, "restore", unchanged)
    monkeypatch.setattr("deconvfix.fixing.search._CLOSED", ())
    arguments = ("fix", source, *ARCH, "--data", tmp_path / "data.npz", "-o", tmp_path / "out.pt")
    result = run(*arguments, "--seconds", 2)
    assert result.exit_code == 1
    assert "Nothing was changed" in result.stdout
    assert not (tmp_path / "out.pt").exists()


def test_usage(source, tmp_path):
    assert run("fix", source, *ARCH, "-o", tmp_path / "out.pt").exit_code == 2
    assert run("fix", source, *ARCH, "--data", "normal").exit_code == 2
    wrong = run("fix", source, *ARCH, "--data", tmp_path / "data.npz", "-o", tmp_path / "out.onnx")
    assert wrong.exit_code == 1
    assert "the suffix is '.onnx'" in wrong.stderr


def test_grown_kernels_load_with_the_package(source, tmp_path, monkeypatch):
    """The recipe in the file says which kernels have grown."""
    monkeypatch.setattr("deconvfix.fixing.search._ENOUGH", -1.0)
    monkeypatch.setattr("deconvfix.fixing.search._LITTLE", -10.0)
    arguments = ("fix", source, *ARCH, "--data", tmp_path / "data.npz", "-o", tmp_path / "out.pt")
    result = run(*arguments, "--seconds", 20, "--max-cost", 3, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["candidates"][1]["keeps_names"] is False
    model = deconvfix.load(tmp_path / "out.pt", Autoencoder())
    assert model.up.kernel_size == (5, 5)


def test_a_program_is_fixed_into_a_program(source, tmp_path):
    model, even = gridded(), [2 * torch.export.Dim(name, min=4, max=64) for name in ("h", "v")]
    program = torch.export.export(
        model, (pictures_for(4)[0],), dynamic_shapes={"image": {2: even[0], 3: even[1]}}
    )
    torch.export.save(program, tmp_path / "net.pt2")
    np.savez(tmp_path / "fours.npz", image=torch.cat(pictures_for(72)).numpy())
    arguments = ("fix", tmp_path / "net.pt2", "--data", tmp_path / "fours.npz")
    result = run(*arguments, "-o", tmp_path / "out.pt2", "--seconds", 6)
    assert result.exit_code == 0, result.output
    fixed = torch.export.load(tmp_path / "out.pt2")
    assert fixed.state_dict.keys() == program.state_dict.keys()
    assert not torch.equal(fixed.state_dict["up.weight"], program.state_dict["up.weight"])
