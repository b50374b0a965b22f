"""A .pt2 file is data: what torch saves is loaded, and what torch would run is refused."""

import contextlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.errors import DeconvfixError
from deconvfix.frontends.program import file as program_file
from tests.support.forms import options_of
from tests.support.program_files import (
    PROGRAM,
    WEIGHTS,
    Touch,
    edit,
    in_sample_inputs,
    members_of,
    saved,
    write_members,
)

# torch's own loader says so about the files that it runs.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


# --- files that torch writes --------------------------------------------------------------------


def test_a_saved_program_is_loaded(program, path):
    loaded = program_file.read(path)
    x = torch.randn(3, 2, 8)
    assert torch.equal(loaded.module()(x), program.module()(x))
    assert loaded.graph_signature == program.graph_signature
    assert str(loaded.range_constraints) == str(program.range_constraints)
    assert loaded._guards_code == program._guards_code != []
    (mine,), (theirs,) = loaded.example_inputs[0], program.example_inputs[0]
    assert torch.equal(mine, theirs)


def test_a_program_that_was_read_is_written_again(program, path, tmp_path):
    program_file.write(program_file.read(path), tmp_path / "again.pt2")
    again = program_file.read(tmp_path / "again.pt2")
    x = torch.randn(3, 2, 8)
    assert torch.equal(again.module()(x), program.module()(x))


@pytest.mark.parametrize("decomposed", [False, True], ids=["training", "decomposed"])
@pytest.mark.parametrize("to", ["subpixel", "resize", "equalized"])
def test_a_converted_program_needs_no_deconvfix(program, tmp_path, to, decomposed):
    source = program.run_decompositions() if decomposed else program
    converted = deconvfix.convert(source, **options_of(to), padding_mode="replicate").model
    program_file.write(converted, tmp_path / "net.pt2")
    x = torch.randn(3, 2, 8)
    torch.save((x, converted.module()(x)), tmp_path / "expected.pt")
    code = (
        f"import sys, torch\ntorch.set_num_threads({torch.get_num_threads()})\n"
        "sys.modules['deconvfix'] = None\n"
        f"x, want = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        f"got = torch.export.load({str(tmp_path / 'net.pt2')!r}).module()(x)\n"
        "assert torch.equal(got, want)"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


# --- files that run something -------------------------------------------------------------------


def test_a_trusted_file_is_loaded_as_torch_does(path, tmp_path):
    members = members_of(path)
    in_sample_inputs(members, tmp_path / "marker")
    write_members(tmp_path / "own.pt2", members)
    program_file.read(tmp_path / "own.pt2", trust=True)
    assert (tmp_path / "marker").exists()


def older_layout(path, marker):
    members = members_of(path)
    older = {
        "version": "8.20",
        "serialized_exported_program.json": members[PROGRAM],
        "serialized_state_dict.pt": saved(Touch(marker)),
        "serialized_constants.pt": saved({}),
        "serialized_example_inputs.pt": saved(((), {})),
    }
    write_members(path, older, root="")


def test_the_older_layout_is_refused(path, tmp_path):
    older_layout(path, tmp_path / "marker")
    with pytest.raises(DeconvfixError, match=r"older than torch 2\.8.*--trust"):
        program_file.read(path)
    assert not (tmp_path / "marker").exists()


def test_torch_runs_the_older_layout(path, tmp_path):
    older_layout(path, tmp_path / "marker")
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert (tmp_path / "marker").exists()


# --- damaged files ------------------------------------------------------------------------------


def truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def without_program(path):
    members = members_of(path)
    del members[PROGRAM]
    write_members(path, members)


def not_json(path):
    write_members(path, {**members_of(path), PROGRAM: b"{"})


def deep_json(path):
    write_members(path, {**members_of(path), PROGRAM: b"[" * 100_000})


def another_object(path):
    write_members(path, {**members_of(path), PROGRAM: b"[1, 2]"})


def empty_graph(path):
    members = members_of(path)
    edit(members, PROGRAM, lambda data: data["graph_module"].update(graph={}))
    write_members(path, members)


def compressed(path):
    write_members(path, members_of(path), compression=zipfile.ZIP_DEFLATED)


def leading_outside(path):
    write_members(path, {**members_of(path), "../../evil": b""})


def twice(path):
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"")


def made_up_values(path):
    members = members_of(path)
    members["data/weights/weight_0"] = b""
    edit(
        members,
        WEIGHTS,
        lambda data: data["config"]["up.weight"]["tensor_meta"].update(sizes=[{"as_int": 10**12}]),
    )
    write_members(path, members)


def missing_values(path):
    members = members_of(path)
    del members["data/weights/weight_0"]
    write_members(path, members)


def as_folder(path):
    path.unlink()
    path.mkdir()


def as_fifo(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        pytest.param(lambda path: path.write_bytes(b""), "not a zip file", id="empty"),
        pytest.param(truncated, r"an archive of torch\.export\.save", id="truncated"),
        pytest.param(lambda path: path.write_text("{}"), "not a zip file", id="no archive"),
        pytest.param(Path.unlink, "there is no such file", id="missing"),
        pytest.param(as_folder, "there is no such file", id="folder"),
        pytest.param(as_fifo, "there is no such file", id="fifo"),
        pytest.param(without_program, r"it has no models/model\.json", id="no program"),
        pytest.param(not_json, "cannot be read as JSON", id="no JSON"),
        pytest.param(deep_json, "cannot be read as JSON", id="deep JSON"),
        pytest.param(another_object, "not the description of a program", id="other JSON"),
        pytest.param(empty_graph, r"torch\.export\.load fails", id="no graph"),
        pytest.param(compressed, "it is compressed", id="compressed"),
        pytest.param(leading_outside, "outside the archive's folder", id="outside"),
        pytest.param(twice, "it occurs twice", id="twice"),
        pytest.param(made_up_values, "has no values and a size of 1000000000000", id="made up"),
        pytest.param(missing_values, "which is not a tensor of this file", id="missing values"),
    ],
)
def test_a_damaged_file_is_a_sentence(path, damage, found):
    program_file.read(path)
    damage(path)
    with pytest.raises(DeconvfixError, match=found):
        program_file.read(path)


def test_a_program_that_torch_cannot_save(tmp_path):
    with pytest.raises(DeconvfixError, match=r"torch\.export\.save fails"):
        program_file.write(nn.Linear(1, 1), tmp_path / "net.pt2")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is such a device")
@pytest.mark.parametrize("kind", ["cuda", "xla", "hpu"])
def test_a_device_that_is_not_there_is_a_sentence(path, tmp_path, kind):
    """torch ends the process for some of them."""
    copy = tmp_path / "moved.pt2"
    members = members_of(path)
    members[PROGRAM] = members[PROGRAM].replace(b'"cpu"', f'"{kind}"'.encode())
    assert members[PROGRAM] != members_of(path)[PROGRAM]
    write_members(copy, members)
    with pytest.raises(DeconvfixError, match=f"tensors on the device '{kind}'"):
        program_file.read(copy)
