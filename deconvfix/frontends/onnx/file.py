"""ONNX files: read as data, weights only when they are needed; written whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_tensor

from deconvfix.errors import ModelError
from deconvfix.frontends.onnx.proto import carry_over, from_proto

__all__ = ["OnnxFile", "read", "read_proto", "write"]

# A protobuf message ends at 2 GiB; weights beyond that are in files of their own.
_LARGEST_MESSAGE = 2**31 - 1
_EXTERNAL_ABOVE = 2**31 - 2**27


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that was read.

    Attributes:
        path: The file.
        model: Its model; tensors in external files are read when they are used.
        rest: What onnx_ir does not carry: see `proto.carry_over`.
        external: Whether weights are in files of their own.
    """

    path: Path
    model: ir.Model
    rest: onnx.ModelProto
    external: bool


def read(path: Path) -> OnnxFile:
    """Reads a file; no other file is looked at than those in its folder that it names.

    Raises:
        ModelError: If it is no ONNX file, or names external data that is not there.
    """
    proto = _parsed(path)
    folder = path.absolute().parent
    external = False
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(path, tensor)
            external = True
    for tensor in _attribute_tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            # onnx_ir writes initializers into other files, and leaves attributes where they were.
            load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.ClearField("external_data")
    rest = onnx.ModelProto()
    carry_over(proto, rest)
    try:
        model = from_proto(proto)
    except ModelError as error:
        raise _unreadable(path, error.found) from error
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, folder)
    return OnnxFile(path, model, rest, external)


def read_proto(path: Path) -> onnx.ModelProto:
    """Reads a file into an onnx.ModelProto, with the external data.

    Raises:
        ModelError: See `read`.
    """
    file = read(path)
    ir.external_data.load_to_model(file.model)
    proto = ir.to_proto(file.model)
    carry_over(file.rest, proto)
    return proto


def write(path: Path, file: OnnxFile, model: ir.Model) -> None:
    """Writes a model that comes from `file`; its weights go where those of the file were.

    Args:
        path: The file to write, in a folder that is empty but for outputs.
        file: What was read.
        model: What became of its model; it is not changed.
    """
    size = sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    if not file.external and size <= _EXTERNAL_ABOVE:
        proto = ir.to_proto(model)
        carry_over(file.rest, proto)
        path.write_bytes(proto.SerializeToString())
        return
    # One tensor at a time is in memory.
    ir.save(model, path, external_data=f"{path.name}.data", max_workers=1)
    if file.rest.ByteSize():
        proto = onnx.load(path, load_external_data=False)
        carry_over(file.rest, proto)
        path.write_bytes(proto.SerializeToString())


def _parsed(path: Path) -> onnx.ModelProto:
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error.strerror or "it cannot be opened") from error
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(path, "it is not a regular file")
    if status.st_size > _LARGEST_MESSAGE:
        raise _unreadable(path, f"it has {status.st_size:,} bytes, more than the format allows")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise _unreadable(path, f"its content is not an ONNX model ({error})") from error
    if proto.ir_version < 1 or not proto.HasField("graph") or not proto.opset_import:
        raise _unreadable(path, "its content is not an ONNX model (no graph or no operator set)")
    return proto


def _unreadable(path: Path, found: str) -> ModelError:
    return ModelError(str(path), found, "an ONNX file is needed", "Check that the file is complete")


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _attribute_tensors(proto)
    for body in (proto.graph, *proto.functions):
        for graph in _graphs(body):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)


def _attribute_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
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


def _check_external(path: Path, tensor: onnx.TensorProto) -> None:
    """The data must lie in the model's folder, in a regular file that is long enough."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = Path(os.path.realpath(path)).parent
    own_folder = path.absolute().parent
    found = None
    parts = PurePosixPath(location).parts
    if not location or PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive:
        found = f"{location!r} is not a path inside the model's folder"
    elif ".." in parts or "\\" in location:
        found = f"{location!r} leads out of the model's folder"
    else:
        data = own_folder / location
        inside = (Path(os.path.realpath(own_folder)), folder)
        real = Path(os.path.realpath(data))
        if not any(real.is_relative_to(folder) for folder in inside):
            found = f"{location!r} leads out of the model's folder"
        elif not data.is_file():
            found = f"there is no file {location!r} beside it"
        else:
            found = _too_short(data, entries)
    if found is not None:
        raise ModelError(
            str(path),
            f"the tensor {tensor.name!r} is stored outside the file, and {found}",
            "external data is read from the model's own folder only",
            "Put the data files beside the model",
        )


def _too_short(data: Path, entries: dict[str, str]) -> str | None:
    try:
        offset, length = (int(entries.get(key, 0)) for key in ("offset", "length"))
    except ValueError:
        return "its offset or length is not a number"
    if min(offset, length) < 0:
        return "its offset or length is negative"
    size, end = data.stat().st_size, offset + length
    return None if end <= size else f"{data.name!r} has {size:,} bytes instead of {end:,}"
