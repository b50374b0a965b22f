"""With --force, outputs of earlier runs are replaced, and nothing that the run reads is."""

import os

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.support.command import INPUT, Net, arch, save
from tests.support.onnx_files import net, run


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def convert(folder, *options, source="in.onnx"):
    """Runs it with --force; every file that was there must be as before."""
    before = contents(folder)
    result = run("convert", folder / source, *options, "--force")
    after = contents(folder)
    assert {path: after.get(path) for path in before} == before, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture
def folder(tmp_path):
    """An ONNX file with its weights in a file of a name that an output could have, and samples."""
    place = {"save_as_external_data": True, "location": "w.json", "size_threshold": 0}
    onnx.save(net(shape=(1, 3, 6, 5)), tmp_path / "in.onnx", **place)
    x = np.random.default_rng(0).standard_normal((8, 3, 6, 5)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    os.rename(tmp_path / "x.npz", tmp_path / "x.json")
    return tmp_path


def name_itself(path):
    return path


def another_way_to_it(path):
    return path.parent / "." / ".." / path.parent.name / path.name


def symbolic_link(path):
    (path.parent / "link.json").symlink_to(path)
    return path.parent / "link.json"


def hard_link(path):
    os.link(path, path.parent / "hard.json")
    return path.parent / "hard.json"


NAMES = [name_itself, another_way_to_it, symbolic_link, hard_link]


@pytest.mark.parametrize("name", NAMES)
def test_report_is_not_written_over_external_data(folder, name):
    report = name(folder / "w.json")
    result = convert(folder, "-o", folder / "out.onnx", "--report", report)
    assert result.exit_code == 1
    assert "the output is also an input" in result.stderr
    assert not (folder / "out.onnx").exists()


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_not_written_over_external_data(folder, name):
    result = convert(folder, "--dry-run", "--recipe", name(folder / "w.json"))
    assert "the output is also an input" in result.stderr


@pytest.mark.parametrize("option", ["--calibration", "--inputs"])
def test_report_is_not_written_over_samples(folder, option):
    fit = ("--to", "equalized", "--init", "calibrated") if option == "--calibration" else ()
    options = ("-o", folder / "out.onnx", *fit, option, folder / "x.json")
    result = convert(folder, *options, "--report", folder / "x.json")
    assert "the output is also an input" in result.stderr


def test_output_whose_weights_would_be_the_inputs_own(tmp_path):
    """The names of written weights tell their content, so that they are never those of another file."""
    place = {"save_as_external_data": True, "location": "out.onnx.data", "size_threshold": 0}
    onnx.save(net(), tmp_path / "in.onnx", **place)
    assert convert(tmp_path, "-o", tmp_path / "out.onnx").exit_code == 0
    onnx.checker.check_model(tmp_path / "out.onnx")


def test_converting_again_keeps_weights_that_the_input_reads(tmp_path):
    place = {"save_as_external_data": True, "location": "w", "size_threshold": 0}
    onnx.save(net(), tmp_path / "in.onnx", **place)
    assert convert(tmp_path, "-o", tmp_path / "out.onnx").exit_code == 0
    # Nothing is left to convert: the same weights under another name.
    result = convert(tmp_path, "-o", tmp_path / "again.onnx", source="out.onnx")
    assert result.exit_code == 0, result.output


def test_report_is_not_written_over_a_picture(folder):
    pictures = folder / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(pictures / "a.png")
    os.link(pictures / "a.png", folder / "a.html")
    fit = ("--to", "equalized", "--init", "calibrated", "--calibration", pictures)
    result = convert(folder, "-o", folder / "out.onnx", *fit, "--report", folder / "a.html")
    assert "the output is also an input (a.png)" in result.stderr


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_report_is_not_written_over_the_code_of_the_model(tmp_path, monkeypatch, suffix):
    module = f"code_for_{suffix[1:]}"
    (tmp_path / f"{module}.py").write_text("from tests.support.command import Net\n")
    os.link(tmp_path / f"{module}.py", tmp_path / "code.json")
    save(tmp_path, Net(), "in.safetensors")
    monkeypatch.chdir(tmp_path)
    options = ("--arch", f"{module}:Net", "-o", tmp_path / f"out{suffix}")
    result = convert(
        tmp_path, *options, "--report", tmp_path / "code.json", source="in.safetensors"
    )
    assert f"the output is also an input ({module}.py)" in result.stderr


def test_state_of_a_distillation_is_no_other_output(tmp_path):
    save(tmp_path, Net(), "in.safetensors")
    output = tmp_path / "out.safetensors"
    options = (
        "--init",
        "tuned",
        "--to",
        "equalized",
        "--calibration",
        "normal",
        "--resume",
        output,
    )
    result = convert(
        tmp_path, *arch("Net"), *INPUT, "-o", output, *options, source="in.safetensors"
    )
    assert "two outputs have this name" in result.stderr


def test_outputs_of_an_earlier_run_are_replaced(folder):
    """The control: what is not read is replaced."""
    report = folder / "report.json"
    report.write_text("old")
    (folder / "out.onnx").write_text("old")
    run("convert", folder / "in.onnx", "-o", folder / "out.onnx", "--report", report, "--force")
    assert report.read_text() != "old"
    onnx.checker.check_model(folder / "out.onnx")


def test_in_python_a_file_may_be_replaced_after_it_was_read(tmp_path):
    """Reading and writing are two calls there, and replacing the file is what they are for."""
    from deconvfix.files import check_output, inputs_kept, note_read

    path = tmp_path / "net.onnx"
    path.write_text("old")
    note_read(path)
    check_output(path, overwrite=True)
    with inputs_kept():
        note_read(path)
        with pytest.raises(Exception, match="also an input"):
            check_output(path, overwrite=True)
    check_output(path, overwrite=True)
