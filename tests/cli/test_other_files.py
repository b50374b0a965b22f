"""Files of kinds that are not read: the kind is named, with the way to a file that is."""

import argparse
import zipfile

import pytest
import torch
from torch import nn

from tests.support.command import Net, arch, run, save


def fails(path, *options):
    result = run("inspect", path, *options)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for misleading in ("--arch'", "weights_only", "a checkpoint holds weights only"):
        assert misleading not in result.stderr
    return result.stderr


HEADS = {
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(64), "TensorFlow Lite"),
    "h5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "Keras"),
    "keras": (b"PK\3\4", "Keras"),
    "pb": (b"\x08\x01", "TensorFlow graph"),
    "ort": (b"\x08\0\0\0ORTM" + bytes(16), "ONNX Runtime's own format"),
    "engine": (b"ftrt" + bytes(16), "TensorRT engine"),
    "gguf": (b"GGUF" + bytes(16), "GGUF"),
    "mlmodel": (b"\x08\x05", "Core ML"),
    "param": (b"7767517\n", "ncnn"),
}


@pytest.mark.parametrize("suffix", HEADS)
@pytest.mark.parametrize("options", [(), arch("Net")], ids=["alone", "with an architecture"])
def test_by_its_suffix(tmp_path, suffix, options):
    content, words = HEADS[suffix]
    (tmp_path / f"net.{suffix}").write_bytes(content)
    message = fails(tmp_path / f"net.{suffix}", *options)
    assert words in message
    assert message.count(". ") >= 1, "the way out"


@pytest.mark.parametrize("suffix", ["tflite", "h5", "ort", "gguf"])
@pytest.mark.parametrize("name", ["net.onnx", "net.pt", "net.bin"])
def test_by_its_content_under_another_name(tmp_path, suffix, name):
    content, words = HEADS[suffix]
    (tmp_path / name).write_bytes(content)
    assert words in fails(tmp_path / name)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, but such files exist
@pytest.mark.parametrize("options", [(), arch("Net")], ids=["alone", "with an architecture"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ptl"])
def test_torchscript(tmp_path, options, suffix):
    traced = torch.jit.trace(nn.Sequential(nn.ConvTranspose2d(1, 1, 2, 2)), torch.ones(1, 1, 3, 3))
    traced.save(tmp_path / f"net{suffix}")
    message = fails(tmp_path / f"net{suffix}", *options)
    assert "TorchScript" in message
    assert "\x1b" not in message


def test_archive_of_code(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("net/.data/extern_modules", "")
    assert "torch.package" in fails(tmp_path / "net.pt")


def test_pickled_model(tmp_path):
    torch.save(Net(), tmp_path / "net.pt")
    message = fails(tmp_path / "net.pt", *arch("Net"))
    assert "Python objects: tests.support.command.Net" in message


def test_object_in_a_checkpoint_is_named_with_its_key(tmp_path):
    content = {"state_dict": Net().state_dict(), "hyper": argparse.Namespace(lr=1)}
    torch.save(content, tmp_path / "net.ckpt")
    message = fails(tmp_path / "net.ckpt", *arch("Net"))
    assert "argparse.Namespace under 'hyper'" in message


def test_name_on_a_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "a model on a hub" in fails("stabilityai/sd-vae-ft-mse")
    assert "hub" not in fails("folder/net.onnx"), "a mistyped path is one"


def test_what_is_read_is_not_refused(tmp_path):
    """The control: a checkpoint in an archive like the others."""
    torch.save(Net().state_dict(), tmp_path / "net.pt")
    assert run("inspect", tmp_path / "net.pt", *arch("Net")).exit_code == 0
    assert run("inspect", tmp_path / "net.pt").exit_code == 2, "now the option is missing"


def test_trust_that_changes_nothing_is_said(tmp_path):
    result = run("inspect", save(tmp_path), *arch("Net"), "--trust")
    assert result.exit_code == 0
    assert "--trust is for .pt2 files" in result.stderr
