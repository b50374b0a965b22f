"""ONNX files: read as data, weights only when they are needed; written whole or not at all."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from deconvfix.errors import ModelError
from deconvfix.files import note_read
from deconvfix.frontends.data_file import save_with_data
from deconvfix.frontends.onnx.external import (
    attribute_tensors,
    check_external,
    external_bytes,
    external_tensor,
    tensors,
)
from deconvfix.frontends.onnx.proto import carry_over, from_proto
from deconvfix.parity.runtime import is_isolated, rejected_by_checker

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
    # External data is checked before anything reads it.
    proto = _parsed(path)
    external = False
    for tensor in tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            check_external(path, tensor)
            external = True
    for tensor in attribute_tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            # onnx_ir writes initializers into other files, and leaves attributes where they were.
            tensor.raw_data = external_bytes(path, tensor)
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.ClearField("external_data")
    if is_isolated():
        # Whether the shapes of this file can be inferred at all is found out where a crash does no harm.
        rejected_by_checker(path, full=True)
    # Before onnx_ir reads the model, which drops these parts.
    rest = onnx.ModelProto()
    carry_over(proto, rest)
    try:
        model = from_proto(proto)
    except ModelError as error:
        raise ModelError(str(path), error.found, error.needed, error.todo) from error
    # onnx_ir maps such files into memory. Here they are read when they are used.
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = external_tensor(path, value.const_value)
    return OnnxFile(path, model, rest, external)


def read_proto(path: Path) -> onnx.ModelProto:
    """Reads a file into an onnx.ModelProto, with the external data.

    Raises:
        ModelError: See `read`.
    """
    file = read(path)
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
    # One file stays one file, as long as protobuf can hold it.
    if not file.external and size <= _EXTERNAL_ABOVE:
        proto = ir.to_proto(model)
        carry_over(file.rest, proto)
        path.write_bytes(proto.SerializeToString())
        return
    save_with_data(model, path)
    # The graph is written again with what onnx_ir does not carry. Data files stay.
    if file.rest.ByteSize():
        proto = onnx.load(path, load_external_data=False)
        carry_over(file.rest, proto)
        path.write_bytes(proto.SerializeToString())


def _parsed(path: Path) -> onnx.ModelProto:
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error.strerror or "it cannot be opened") from error
    # Reading a pipe or a device might never end.
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(path, "it is not a regular file")
    if status.st_size > _LARGEST_MESSAGE:
        raise _unreadable(path, f"it has {status.st_size:,} bytes, more than the format allows")
    note_read(path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise _unreadable(path, f"its content is not an ONNX model ({error})") from error
    # protobuf reads many files of other kinds as a message of unknown fields.
    if proto.ir_version < 1 or not proto.HasField("graph") or not proto.opset_import:
        raise _unreadable(path, "its content is not an ONNX model (no graph or no operator set)")
    return proto


def _unreadable(path: Path, found: str) -> ModelError:
    return ModelError(str(path), found, "an ONNX file is needed", "Check that the file is complete")
