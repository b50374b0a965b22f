"""Files of kinds that are not read: what they are, and the way to a file that is."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from deconvfix.errors import ModelError

__all__ = ["check_kind"]

_READ = "an ONNX file, a .pt2 program or a checkpoint of weights is needed"
_HEAD = 16


@dataclass(frozen=True)
class _Other:
    """A kind of file.

    Attributes:
        name: What it is.
        todo: The way to a file that is read.
        suffixes: Of its names.
        magic: Bytes that it has, and where they begin.
    """

    name: str
    todo: str
    suffixes: tuple[str, ...] = ()
    magic: tuple[int, bytes] | None = None


_FROM_TENSORFLOW = "Export the original model to ONNX (tf2onnx), and convert that file"
_KINDS = (
    _Other(
        "a TensorFlow Lite (LiteRT) model", _FROM_TENSORFLOW, (".tflite", ".lite"), (4, b"TFL3")
    ),
    _Other(
        "a Keras model or weights in HDF5",
        _FROM_TENSORFLOW,
        (".h5", ".hdf5"),
        (0, b"\x89HDF\r\n\x1a\n"),
    ),
    _Other("a Keras model", _FROM_TENSORFLOW, (".keras",)),
    _Other("a TensorFlow graph", _FROM_TENSORFLOW, (".pb", ".pbtxt")),
    _Other(
        "a model in ONNX Runtime's own format",
        "Convert the .onnx file that it was made from, and make it again",
        (".ort",),
        (4, b"ORTM"),
    ),
    _Other(
        "a TensorRT engine, which is compiled for one GPU",
        "Convert the ONNX file that it was built from, and build it again",
        (".engine", ".plan", ".trt"),
        (0, b"ftrt"),
    ),
    _Other(
        "a Core ML model",
        "Convert the PyTorch or ONNX model that it was made from",
        (".mlmodel", ".mlpackage"),
    ),
    _Other(
        "a model for another runtime (OpenVINO, ncnn or MNN)",
        "Convert the ONNX file that it was made from, and make it again",
        (".xml", ".param", ".mnn"),
    ),
    _Other("a GGUF file", "Convert the checkpoint that it was made from", (".gguf",), (0, b"GGUF")),
)
_SCRIPTED = _Other(
    "a TorchScript archive (torch.jit), which holds compiled code",
    "Save its weights with save_file(torch.jit.load(FILE).state_dict(), 'net.safetensors') of "
    "safetensors.torch where you trust it, and give the code of the model with --arch",
)
_PACKAGE = _Other(
    "an archive of torch.package, which holds code",
    "Load it where you trust it, and save the model's state_dict() as .safetensors",
)


def check_kind(path: Path) -> None:
    """Raises for a file that no option makes readable.

    Args:
        path: What was named as a model.

    Raises:
        ModelError: If there is no such file, or it is of a kind that is not read.
    """
    if not path.exists():
        raise _missing(path)
    known = _by_content(path) or next(
        (kind for kind in _KINDS if path.suffix.lower() in kind.suffixes), None
    )
    if known is not None:
        raise ModelError(str(path), f"it is {known.name}", _READ, known.todo)


def _missing(path: Path) -> ModelError:
    # "organisation/model", as hubs call models.
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.suffix and not path.parent.exists():
        return ModelError(
            str(path),
            "there is no such file; it looks like the name of a model on a hub",
            _READ,
            "Download the model, and name its file",
        )
    return ModelError(str(path), "there is no such file", _READ, "Correct the path")


def _by_content(path: Path) -> _Other | None:
    """What the first bytes, or the members of an archive, say."""
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            for kind in _KINDS:
                if kind.magic is not None and head[kind.magic[0] :].startswith(kind.magic[1]):
                    return kind
            if not head.startswith(b"PK") or not zipfile.is_zipfile(file):
                return None
            with zipfile.ZipFile(file) as archive:
                members = {name.partition("/")[2] for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return None  # whoever reads it has better words
    if "constants.pkl" in members and "data.pkl" in members:
        return _SCRIPTED
    return _PACKAGE if ".data/extern_modules" in members else None
