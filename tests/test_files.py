"""Files are written whole or not at all, and never over something that was not offered for it."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from deconvfix.errors import DeconvfixError, OptionError
from deconvfix.files import check_output, output_folder, sha256


class InterruptedWriteError(Exception):
    """Stands for anything that may go wrong while an output is made."""


def fail_while_writing(path, error):
    with output_folder(path, overwrite=True) as folder:
        (folder / path.name).write_text("half of it")
        raise error


def test_written_file_appears_under_its_name(tmp_path):
    path = tmp_path / "net.onnx"
    with output_folder(path, overwrite=True) as folder:
        (folder / path.name).write_text("whole")
    assert path.read_text() == "whole"


def test_nothing_appears_before_the_end(tmp_path):
    path = tmp_path / "net.onnx"
    with output_folder(path, overwrite=True) as folder:
        (folder / path.name).write_text("whole")
        assert not path.exists()


def test_folder_is_beside_the_output(tmp_path):
    """A rename is atomic only within one file system."""
    with output_folder(tmp_path / "net.onnx", overwrite=True) as folder:
        assert folder.parent == tmp_path


def test_working_folder_is_gone_afterwards(tmp_path):
    path = tmp_path / "net.onnx"
    with output_folder(path, overwrite=True) as folder:
        (folder / path.name).write_text("whole")
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_error_inside_leaves_nothing(tmp_path):
    with pytest.raises(InterruptedWriteError):
        fail_while_writing(tmp_path / "net.onnx", InterruptedWriteError())
    assert os.listdir(tmp_path) == []


def test_error_inside_keeps_the_previous_file(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text("previous")
    with pytest.raises(InterruptedWriteError):
        fail_while_writing(path, InterruptedWriteError())
    assert path.read_text() == "previous"


def test_interruption_by_the_user_leaves_nothing(tmp_path):
    """KeyboardInterrupt is no Exception: a clean-up in `except Exception` would miss it."""
    with pytest.raises(KeyboardInterrupt):
        fail_while_writing(tmp_path / "net.onnx", KeyboardInterrupt())
    assert os.listdir(tmp_path) == []


def test_two_files_appear_together(tmp_path):
    path = tmp_path / "net.onnx"
    with output_folder(path, overwrite=True) as folder:
        (folder / path.name).write_text("graph")
        (folder / "net.onnx.data").write_text("weights")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {
        "net.onnx": "graph",
        "net.onnx.data": "weights",
    }


@pytest.mark.parametrize("companion", ["a.data", "z.data"])
def test_named_file_moves_last(tmp_path, monkeypatch, companion):
    """Otherwise a reader could find a file whose companion is not there yet."""
    moved = []
    replace = os.replace

    def record(source, target):
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr("deconvfix.files.os.replace", record)
    path = tmp_path / "net.onnx"
    with output_folder(path, overwrite=True) as folder:
        (folder / path.name).write_text("graph")
        (folder / companion).write_text("weights")
    assert moved == [companion, "net.onnx"]


def test_previous_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text("previous")
    with output_folder(path, overwrite=True) as folder:
        (folder / path.name).write_text("new")
    assert path.read_text() == "new"


def test_file_has_ordinary_permissions(tmp_path):
    """The working folder is private; what comes out of it must not be."""
    (tmp_path / "plain").write_text("")
    path = tmp_path / "net.onnx"
    with output_folder(path, overwrite=True) as folder:
        (folder / path.name).write_text("whole")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_missing_folder_cannot_be_written(tmp_path):
    path = tmp_path / "absent" / "net.onnx"
    with (
        pytest.raises(DeconvfixError, match="it could not be written \\(no such file"),
        output_folder(path, overwrite=True),
    ):
        pytest.fail("there is no folder to work in")


def test_new_file_is_accepted(tmp_path):
    check_output(tmp_path / "net.onnx", overwrite=False)


def test_existing_file_is_kept(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text("mine")
    with pytest.raises(OptionError, match=r"the file exists; existing files are kept.*--force"):
        check_output(path, overwrite=False)


def test_existing_file_may_be_overwritten_on_request(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text("mine")
    check_output(path, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True], ids=["keep", "overwrite"])
def test_input_is_never_an_output(tmp_path, overwrite):
    path = tmp_path / "net.pt"
    path.write_text("input")
    with pytest.raises(OptionError, match="the output is also an input"):
        check_output(path, overwrite=overwrite, inputs=(path,))


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symbolic link", "hard link"])
def test_input_is_recognised_under_another_name(tmp_path, make):
    path, other = tmp_path / "net.pt", tmp_path / "alias.pt"
    path.write_text("input")
    make(path, other)
    with pytest.raises(OptionError, match="the output is also an input"):
        check_output(other, overwrite=True, inputs=(path,))


def test_another_existing_file_is_no_input(tmp_path):
    source, path = tmp_path / "net.pt", tmp_path / "other.pt"
    source.write_text("same content")
    path.write_text("same content")
    check_output(path, overwrite=True, inputs=(source,))


def test_output_in_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(OptionError, match="absent does not exist; the output must be a file"):
        check_output(tmp_path / "absent" / "net.onnx", overwrite=False)


def test_folder_is_no_output(tmp_path):
    with pytest.raises(OptionError, match="it is a folder"):
        check_output(tmp_path, overwrite=True)


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"weights")
    assert sha256(tmp_path / "net.onnx") == hashlib.sha256(b"weights").hexdigest()
