"""Full disks, limits, kills: a sentence, exit code 1, and nothing left behind."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from deconvfix.errors import DeconvfixError
from deconvfix.files import output_folder, scratch_folder
from tests.support.command import arch, run, save

LIMIT = 100_000


def large():
    return nn.Sequential(nn.ConvTranspose2d(32, 40, 8, 2, 3))


def write_source(path):
    torch.manual_seed(0)
    model = large()
    if path.suffix == ".pt2":
        torch.export.save(torch.export.export(model, (torch.randn(1, 32, 4, 5),)), path)
    elif path.suffix == ".pt":
        torch.save(model.state_dict(), path)
    else:
        weight = model[0].weight.detach().numpy()
        node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("x", 1, [1, 32, 5, 4])],
            [helper.make_tensor_value_info("y", 1, None)],
            [numpy_helper.from_array(weight, "w")],
        )
        opsets = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


CASES = [
    ("in.onnx", "out.onnx"),
    ("in.pt", "out.pt"),
    ("in.pt", "out.safetensors"),
    ("in.pt", "out.onnx"),
    ("in.pt2", "out.pt2"),
]


@pytest.mark.parametrize(("source", "output"), CASES)
def test_no_room_for_the_output(tmp_path, source, output):
    """The system limits the size of files as a full disk does: in the middle of a write."""
    write_source(tmp_path / source)
    before = sorted(os.listdir(tmp_path))
    options = ["--input", "input=1x32x4x5"] if source == "in.pt" else []
    command = [sys.executable, "-m", "deconvfix", "convert", tmp_path / source, "-o"]
    done = subprocess.run(
        [*command, tmp_path / output, "--arch", f"{__name__}:large", *options],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT)),
    )
    assert done.returncode == 1, done.stderr
    # What comes before says how far the comparison is.
    *progress, line = [line for line in done.stderr.splitlines() if line.strip()]
    assert all("s left" in told for told in progress)
    # A program is copied first, into the system's own folder.
    assert output in line or source == "in.pt2"
    assert "it could not be written (file too large)" in line
    assert sorted(os.listdir(tmp_path)) == before


def test_folder_that_is_removed_meanwhile(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()

    def interrupted():
        with output_folder(folder / "net.pt", overwrite=False) as working:
            shutil.rmtree(folder)
            (working / "net.pt").write_text("whole")

    with pytest.raises(DeconvfixError, match=r"net\.pt: it could not be written \(no such file"):
        interrupted()


def test_memory_that_is_not_there(tmp_path, monkeypatch):
    from deconvfix.cli.jobs import job

    def exhausted(_):
        raise MemoryError

    monkeypatch.setattr(job, "_KINDS", {})
    monkeypatch.setattr("deconvfix.cli.main.convert_file", exhausted)
    result = run("convert", save(tmp_path), *arch("Net"), "-o", tmp_path / "out.pt")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: memory: there is not enough of it")


HANG = """
import sys, time
from pathlib import Path
from deconvfix.files import {use}
with {call} as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def another_process(use, call):
    """A process in the middle of its work, and its folder."""
    code = HANG.format(use=use, call=call)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def age(folder):
    old = time.time() - 60
    os.utime(folder, (old, old))


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "net.onnx"
    with another_process(
        "output_folder", f"output_folder(Path({str(path)!r}), overwrite=True)"
    ) as (
        process,
        left,
    ):
        age(left)
        with output_folder(path, overwrite=True) as folder:
            (folder / path.name).write_text("whole")
        assert os.path.isdir(left), "it is in use"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert os.path.isdir(left)
    with output_folder(path, overwrite=True) as folder:
        (folder / path.name).write_text("whole")
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_scratch_of_a_killed_run_is_removed_by_the_next():
    with another_process("scratch_folder", "scratch_folder()") as (process, left):
        process.send_signal(signal.SIGKILL)
        process.wait()
    age(left)
    with scratch_folder():
        assert not os.path.exists(left)


@pytest.mark.parametrize("moved", [0, 1])
def test_kill_between_two_moves_leaves_one_pair(tmp_path, monkeypatch, moved):
    """The graph that is there always has the weights that it was made with."""
    path = tmp_path / "out.onnx"
    weights = {}
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        weights[seed] = rng.standard_normal((32, 40, 8, 8)).astype(np.float32)
    replace, done = os.replace, []

    def killed(source, target):
        if len(done) == moved:
            raise KeyboardInterrupt  # nothing more happens, as after a kill
        done.append(target)
        replace(source, target)

    write_with_data(path, weights[0])
    monkeypatch.setattr("deconvfix.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_with_data(path, weights[1])
    assert np.array_equal(numpy_helper.to_array(onnx.load(path).graph.initializer[0]), weights[0])


def write_with_data(path, weight):
    import onnx_ir as ir

    from deconvfix.frontends.data_file import save_with_data

    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 32, 5, 4])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with output_folder(path, overwrite=True) as folder:
        save_with_data(ir.from_proto(model), folder / path.name)
