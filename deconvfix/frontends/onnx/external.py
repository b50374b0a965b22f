"""Weights that an ONNX file keeps in files of their own: found, checked and read.

Data is read, never mapped into memory: a mapped file that somebody shortens ends the process.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from deconvfix.errors import ModelError, printable
from deconvfix.files import note_read
from deconvfix.frontends.onnx.check import bytes_of

__all__ = [
    "attribute_tensors",
    "check_external",
    "external_bytes",
    "external_tensor",
    "tensors",
]

# What `onnx.TensorProto` holds as bytes; larger tensors are read as arrays.
_LARGEST_MESSAGE = 2**31 - 2**20
_LONGEST_NAME = 4096
_PIECE = 2**24


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model: initializers and attributes, in graphs inside nodes and in functions too."""
    yield from attribute_tensors(proto)
    for body in (proto.graph, *proto.functions):
        for graph in _graphs(body):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)


def attribute_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The tensors among the attributes of nodes."""
    for body in (proto.graph, *proto.functions):
        for attribute in _attributes(body):
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def _attributes(body: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.AttributeProto]:
    """Those of all nodes, in the graphs inside nodes too."""
    for node in body.node:
        for attribute in node.attribute:
            yield attribute
            for graph in (attribute.g, *attribute.graphs):
                yield from _attributes(graph)


def _graphs(body: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto]:
    if isinstance(body, onnx.GraphProto):
        yield body
    for attribute in _attributes(body):
        yield from (attribute.g, *attribute.graphs)


def check_external(path: Path, tensor: onnx.TensorProto) -> None:
    """The data must lie in the model's folder, in a regular file that holds what the tensor's shape needs.

    Raises:
        ModelError: If it does not.
    """
    location = _entries(tensor).get("location", "")
    found = _location_problem(path, location) or _size_problem(path, tensor)
    if found is not None:
        raise _unusable(path, tensor.name, found)
    note_read(_data_file(path, tensor))


def _unusable(path: Path, name: str, found: str) -> ModelError:
    return ModelError(
        str(path),
        f"the tensor {name!r} is stored outside the file, and {found}",
        "external data is read from the model's own folder only",
        "Put the data files beside the model",
    )


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _data_file(path: Path, tensor: onnx.TensorProto) -> Path:
    return path.absolute().parent / _entries(tensor)["location"]


def _location_problem(path: Path, location: str) -> str | None:
    """Why data is not read from there."""
    named = repr(location if len(location) < 100 else f"{location[:100]}...")
    if not location or PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive:
        return f"{named} is not a path inside the model's folder"
    if location != printable(location) or len(location) > _LONGEST_NAME:
        return f"{named} is not a name of a file"
    if ".." in PurePosixPath(location).parts or "\\" in location:
        return f"{named} leads out of the model's folder"
    own = path.absolute().parent
    # The model may be a link itself; its data may lie beside the link or beside the file.
    inside = (os.path.realpath(own), os.path.dirname(os.path.realpath(path)))
    # Links are followed before the comparison, so none leads out of the folder.
    data = own / location
    real = Path(os.path.realpath(data))
    if not any(real.is_relative_to(folder) for folder in inside):
        return f"{named} leads out of the model's folder"
    try:
        is_file = data.is_file() and not location.endswith("/")
    except OSError as error:  # such as a name that is too long
        return f"{named} cannot be looked at ({error.strerror})"
    return None if is_file else f"there is no file {named} beside it"


def _size_problem(path: Path, tensor: onnx.TensorProto) -> str | None:
    """Why a part of a file is not what the tensor's shape needs."""
    entries, data = _entries(tensor), _data_file(path, tensor)
    # Digits alone, as int() would take signs, spaces and underscores too.
    numbers = [entries.get(key, "") for key in ("offset", "length")]
    if not all(re.fullmatch(r"[0-9]{0,19}", number) for number in numbers):
        return "its offset or length is not a number"
    needed = bytes_of(tensor.data_type, tensor.dims)
    if needed is None:
        return "its type or shape has no size in bytes"
    offset, length = int(numbers[0] or 0), int(numbers[1] or needed)
    if length != needed:
        return f"its length is {length:,} bytes where its shape needs {needed:,}"
    try:
        size = data.stat().st_size
        with open(data, "rb"):
            pass
    except OSError as error:
        return f"{data.name!r} cannot be read ({error.strerror})"
    if offset + length > size:
        return f"{data.name!r} has {size:,} bytes instead of {offset + length:,}"
    # A sparse file can claim any size on disk.
    if length > _memory():
        return f"it has {length:,} bytes, more than this machine's memory"
    return None


@functools.cache
def _memory() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def external_bytes(path: Path, tensor: onnx.TensorProto) -> bytes:
    """The values of a tensor that passed `check_external`.

    Raises:
        ModelError: If they cannot be read any more.
    """
    entries = _entries(tensor)
    return _read(
        path,
        tensor.name,
        entries["location"],
        int(entries.get("offset") or 0),
        bytes_of(tensor.data_type, tensor.dims),
    )


def external_tensor(path: Path, stored: ir.ExternalTensor) -> ir.LazyTensor:
    """A tensor that passed `check_external`, for onnx_ir: read each time that it is used."""
    name, kind, shape = str(stored.name), stored.dtype, stored.shape
    assert isinstance(shape, ir.Shape)

    def read() -> ir.TensorProtocol:
        location, offset = os.fspath(stored.location), stored.offset or 0
        content = _read(path, name, location, offset, stored.nbytes)
        if len(content) > _LARGEST_MESSAGE:
            array = np.frombuffer(content, kind.numpy()).reshape(shape.numpy())
            return ir.Tensor(array, kind, name=name)
        return ir.serde.deserialize_tensor(
            onnx.TensorProto(name=name, data_type=kind, dims=shape.numpy(), raw_data=content)
        )

    # For a copy from file to file, at most one piece is in memory.
    def pieces() -> Iterator[bytes]:
        location, offset = os.fspath(stored.location), stored.offset or 0
        for begin in range(0, stored.nbytes, _PIECE):
            yield _read(path, name, location, offset + begin, min(_PIECE, stored.nbytes - begin))

    return _Outside(pieces, read, kind, shape, name=name)


class _Outside(ir.LazyTensor):
    """A tensor that is copied from file to file piece by piece."""

    __slots__ = ("_pieces",)

    def __init__(self, pieces: Callable[[], Iterator[bytes]], *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._pieces = pieces

    def tofile(self, file: Any) -> None:
        """See `onnx_ir.LazyTensor.tofile`."""
        for piece in self._pieces():
            file.write(piece)


def _read(path: Path, name: str, location: str, offset: int, needed: int | None) -> bytes:
    try:
        with open(path.absolute().parent / location, "rb") as file:
            file.seek(offset)
            content = file.read(needed or 0)
    except OSError as error:
        raise _unusable(path, name, f"it cannot be read ({error.strerror})") from error
    if len(content) != needed:
        raise _unusable(path, name, "the file became shorter while it was used")
    return content
