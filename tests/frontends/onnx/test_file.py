"""ONNX files that are not what they should be, and weights in files of their own."""

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import deconvfix
from deconvfix.files import sha256
from tests.support.onnx_files import FLOAT, assert_fails_in_words, convert, net, run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(net(), path)
    return path


def noise(folder):
    (folder / "bad.onnx").write_bytes(np.random.default_rng(0).bytes(5000))


def relocate(path, location, **entries):
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
            elif entry.key in entries:
                entry.value = entries[entry.key]
    path.write_bytes(model.SerializeToString())


def outside(path):
    secret = path.parent.parent / f"{path.parent.name}.secret"
    secret.write_bytes((path.parent / "net.data").read_bytes())
    relocate(path, f"../{secret.name}")


@pytest.fixture
def external(tmp_path):
    """The same with its weights in a file beside it."""
    path = tmp_path / "net.onnx"
    onnx.save(net(), path, save_as_external_data=True, location="net.data", size_threshold=0)
    return path


# --- files that are not what they should be -----------------------------------------------------


def empty(folder):
    (folder / "bad.onnx").write_bytes(b"")


def truncated(folder):
    content = net().SerializeToString()
    (folder / "bad.onnx").write_bytes(content[: len(content) // 2])


def folder_of_that_name(folder):
    (folder / "bad.onnx").mkdir()


def pipe(folder):
    os.mkfifo(folder / "bad.onnx")


def endless(folder):
    (folder / "bad.onnx").symlink_to("/dev/zero")


def missing(folder):
    pass


def not_an_onnx_model(folder):
    """A valid message of the format, but empty."""
    (folder / "bad.onnx").write_bytes(onnx.ModelProto(producer_name="nobody").SerializeToString())


def json_text(folder):
    (folder / "bad.onnx").write_text('{"graph": []}')


BAD = [empty, noise, truncated, folder_of_that_name, pipe, endless, missing, not_an_onnx_model]


@pytest.mark.parametrize("make", [*BAD, json_text], ids=lambda make: make.__name__)
@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_malformed_file_is_a_sentence(tmp_path, make, command):
    make(tmp_path)
    before = sorted(os.listdir(tmp_path))
    more = ["-o", tmp_path / "out.onnx"] if command == "convert" else []
    assert_fails_in_words(run(command, tmp_path / "bad.onnx", *more), "bad.onnx: ", "; ")
    assert sorted(os.listdir(tmp_path)) == before


def test_cut_anywhere_is_a_sentence_or_a_model(tmp_path):
    """Protobuf reads some prefixes of a file as a smaller message: never a traceback."""
    content = net().SerializeToString()
    for length in range(0, len(content), 97):
        (tmp_path / "cut.onnx").write_bytes(content[:length])
        result = run("inspect", tmp_path / "cut.onnx")
        assert result.exit_code in (0, 1), result.exception
        assert result.exception is None or isinstance(result.exception, SystemExit)


def test_output_of_another_kind_is_refused(file, tmp_path):
    assert_fails_in_words(convert(file, tmp_path / "out.pt2"), "is converted into .onnx")
    assert_fails_in_words(run("verify", file, tmp_path / "x.pt2"), "compared with an ONNX file")
    assert_fails_in_words(
        run("export", file, "-o", tmp_path / "x.onnx"), "it is an ONNX file already"
    )


# --- weights in files of their own --------------------------------------------------------------


def test_external_data_is_read_and_written(external, tmp_path):
    output = tmp_path / "fixed.onnx"
    assert convert(external, output).exit_code == 0
    data = tmp_path / f"fixed.onnx.{sha256(next(tmp_path.glob('fixed.onnx.*')))[:16]}.data"
    assert {path.name for path in tmp_path.iterdir()} == {
        "fixed.onnx",
        data.name,
        "net.data",
        "net.onnx",
    }
    stored = {
        each.name: each for each in onnx.load(output, load_external_data=False).graph.initializer
    }
    assert stored["up1.weight"].data_location == TensorProto.EXTERNAL
    assert deconvfix.verify(external, output, []).ok
    original = {each.name: each for each in onnx.load(external).graph.initializer}
    copied = {each.name: each for each in onnx.load(output).graph.initializer}
    np.testing.assert_array_equal(
        numpy_helper.to_array(copied["up1.bias"])[:6],
        np.repeat(numpy_helper.to_array(original["up1.bias"]), 6)[:6],
    )


def test_external_attributes_come_along(tmp_path):
    """The weight of a Constant node in a file beside the model."""
    model = net()
    weight = model.graph.initializer.pop()
    model.graph.node.insert(0, helper.make_node("Constant", [], [weight.name], value=weight))
    path = tmp_path / "net.onnx"
    options = {"location": "net.data", "size_threshold": 0, "convert_attribute": True}
    onnx.save(model, path, save_as_external_data=True, **options)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    assert convert(path, folder / "out.onnx").exit_code == 0
    assert deconvfix.verify(path, folder / "out.onnx", []).ok


def test_a_path_in_python_reads_external_data(external):
    model = deconvfix.convert(external).model
    assert not any(each.external_data for each in model.graph.initializer)


def absolute(path):
    relocate(path, str(path.parent / "net.data"))


def link(path):
    (path.parent / "link.data").symlink_to("/etc/hostname")
    relocate(path, "link.data")


def device(path):
    (path.parent / "link.data").symlink_to("/dev/zero")
    relocate(path, "link.data")


def gone(path):
    (path.parent / "net.data").unlink()


def too_short(path):
    (path.parent / "net.data").write_bytes(b"\0" * 16)


def bad_offset(path):
    relocate(path, "net.data", offset="-5")


def bad_length(path):
    relocate(path, "net.data", length="many")


@pytest.mark.parametrize(
    "spoil",
    [outside, absolute, link, device, gone, too_short, bad_offset, bad_length],
    ids=lambda spoil: spoil.__name__,
)
def test_external_data_stays_in_its_folder(external, tmp_path, spoil):
    spoil(external)
    result = convert(external, tmp_path / "out.onnx")
    assert_fails_in_words(result, "is stored outside the file, and", "the model's own folder only")
    assert not (tmp_path / "out.onnx").exists()


def test_large_models_are_never_in_memory(tmp_path):
    """A 300 MB model, most of it untouched, with far less memory than its weights.

    `benchmarks/memory.py` does the same with 4 GB.
    """
    elements = 75_000_000
    model = net()
    big = TensorProto(name="big", data_type=FLOAT, dims=[elements])
    big.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "big.data"), ("offset", "0"), ("length", str(4 * elements))):
        big.external_data.add(key=key, value=value)
    model.graph.initializer.append(big)
    model.graph.node.append(helper.make_node("ReduceMax", ["big"], ["z"], axes=[0]))
    model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, [1]))
    path = tmp_path / "large.onnx"
    path.write_bytes(model.SerializeToString())
    with open(tmp_path / "big.data", "wb") as data:
        data.truncate(4 * elements)
    code = (
        "import resource; from pathlib import Path; from deconvfix.frontends.onnx import file as onnx_file\n"
        "from deconvfix.conversion import convert\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        f"file = onnx_file.read(Path({str(path)!r}))\n"
        "model = convert(file.model, verify=False).model\n"
        f"onnx_file.write(Path({str(tmp_path / 'out.onnx')!r}), file, model)\n"
        "print(peak() - before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 100_000, "kilobytes"
    [written] = tmp_path.glob("out.onnx.*.data")
    assert written.stat().st_size >= 4 * elements
