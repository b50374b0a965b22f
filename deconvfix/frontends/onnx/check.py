"""What a model must be for anything to be said of it: values with one maker each, tensors of their size.

`onnx.checker` is stricter than ONNX Runtime: it rejects files that run. What is checked here, ONNX Runtime
needs as well, and whatever reads the model relies on it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Mapping

import onnx
import onnx_ir as ir

from deconvfix.errors import ModelError, printable

__all__ = ["bytes_of", "check_model", "sort_nodes"]

_AttributeType = onnx.AttributeProto.AttributeType
# The field of an attribute that its type names.
_FIELDS = {
    "FLOAT": "f", "INT": "i", "STRING": "s", "TENSOR": "t", "GRAPH": "g", "SPARSE_TENSOR": "sparse_tensor",
    "TYPE_PROTO": "tp", "FLOATS": "floats", "INTS": "ints", "STRINGS": "strings", "TENSORS": "tensors",
    "GRAPHS": "graphs", "SPARSE_TENSORS": "sparse_tensors", "TYPE_PROTOS": "type_protos",
}  # fmt: skip
_PADS = (b"NOTSET", b"SAME_UPPER", b"SAME_LOWER", b"VALID", b"")
# Typed values take one entry each, but for complex numbers (two) and small ones (packed into int32).
_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_STANDARD = ("", "ai.onnx")


class _Problem(Exception):  # noqa: N818 - it never leaves this file
    """A part of a sentence: what is wrong."""


def check_model(proto: onnx.ModelProto, where: str = "model") -> None:
    """Checks the structure of a model.

    Args:
        proto: The model; external data is not looked at.
        where: What errors call it.

    Raises:
        ModelError: If it cannot be a model that runs.
    """
    opsets: dict[str, int] = {}
    try:
        for opset in proto.opset_import:
            # "ai.onnx" and "" are two names of one domain.
            known = opsets.setdefault(
                opset.domain if opset.domain != "ai.onnx" else "", opset.version
            )
            if known != opset.version:
                raise _Problem(f"it names two versions of the operator set {opset.domain!r}")
        _check_graph(proto.graph, opsets, set(), is_function=False)
        # A function sees its own inputs alone, by the operator sets that it names.
        for function in proto.functions:
            # A function's nodes see its own inputs alone.
            own = {opset.domain: opset.version for opset in function.opset_import}
            known_inside = set(function.input)
            _check_nodes(function.node, own or opsets, known_inside, is_function=True)
    except _Problem as problem:
        raise ModelError(
            where,
            printable(str(problem)),
            "a valid ONNX model is needed",
            "Check it with onnx.checker, or export it again",
        ) from None
    except RecursionError:
        raise ModelError(
            where,
            "its graphs are nested too deeply",
            "a valid ONNX model is needed",
            "Export it again",
        ) from None


def _check_graph(
    graph: onnx.GraphProto, opsets: Mapping[str, int], outer: Collection[str], *, is_function: bool
) -> None:
    names = [value.name for value in graph.input]
    stored = [tensor.name for tensor in graph.initializer]
    stored += [tensor.values.name for tensor in graph.sparse_initializer]
    if not all(isinstance(name, str) for name in (*names, *stored)):
        raise _Problem("a name of an input or initializer is no text")
    for kind, given in (("inputs", names), ("initializers", stored)):
        if twice := _repeated(given):
            raise _Problem(f"two of its {kind} are called {twice!r}")
    for tensor in graph.initializer:
        _check_tensor(tensor)
    # Values of graphs around are visible, so names of inner graphs add to them.
    made = _check_nodes(
        graph.node, opsets, {*outer, *names, *stored}, is_function=is_function, own=stored
    )
    for value in graph.output:
        if value.name not in made:
            raise _Problem(f"nothing makes its output {value.name!r}")


def _repeated(names: list[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _check_nodes(
    nodes: Collection[onnx.NodeProto],
    opsets: Mapping[str, int],
    known: set[str],
    *,
    is_function: bool,
    own: Collection[str] = (),
) -> set[str]:
    """Checks nodes in any order; returns all names of values that they may use."""
    for node in nodes:
        # protobuf gives what is no UTF-8 as bytes.
        words = (node.op_type, node.domain, node.name, *node.input, *node.output)
        if not all(isinstance(word, str) for word in words):
            raise _Problem(f"a name of the node {node.name!r} ({node.op_type!r}) is no text")
    # Optional outputs that are left out have the empty name.
    outputs = [name for node in nodes for name in node.output if name]
    if twice := _repeated([*outputs, *own]):
        raise _Problem(f"two nodes make the value {twice!r}")
    known = known | set(outputs)
    for node in nodes:
        called = f"the node {node.name or node.op_type!r} ({node.op_type})"
        for name in node.input:
            if name and name not in known:
                raise _Problem(f"{called} reads {name!r}, which no node computes")
        schema = _schema(node.op_type, node.domain, opsets)
        if twice := _repeated([attribute.name for attribute in node.attribute]):
            raise _Problem(f"{called} has the attribute {twice!r} twice")
        for attribute in node.attribute:
            problem = _attribute_problem(attribute, schema, is_function)
            if problem:
                raise _Problem(f"the attribute {attribute.name!r} of {called} {problem}")
            for tensor in (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])):
                _check_tensor(tensor)
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _check_graph(graph, opsets, known, is_function=is_function)
    return known


def _schema(
    op_type: str, domain: str, opsets: Mapping[str, int]
) -> Mapping[str, onnx.defs.OpSchema.Attribute]:
    """The attributes of an operator; empty for those that onnx does not define."""
    domain = "" if domain in _STANDARD else domain
    version = opsets.get(domain)
    if version is None:
        return {}
    # onnx takes a 32-bit number for the version.
    return _attributes_of(op_type, domain, min(max(version, 1), 2**31 - 1))


@functools.cache
def _attributes_of(
    op_type: str, domain: str, version: int
) -> Mapping[str, onnx.defs.OpSchema.Attribute]:
    try:
        return dict(onnx.defs.get_schema(op_type, version, domain).attributes)
    except onnx.defs.SchemaError:
        return {}


def _attribute_problem(
    attribute: onnx.AttributeProto,
    schema: Mapping[str, onnx.defs.OpSchema.Attribute],
    is_function: bool,
) -> str | None:
    if attribute.ref_attr_name:
        return None if is_function else "refers to a function's, and stands in none"
    try:
        kind = _AttributeType.Name(attribute.type)
    except ValueError:
        kind = "UNDEFINED"
    if kind not in _FIELDS:
        return "has no type"
    declared = schema.get(attribute.name)
    if declared is not None and (wanted := str(declared.type).rpartition(".")[2]) != kind:
        return f"is of type {kind} instead of {wanted}"
    field = _FIELDS[kind]
    if (
        not kind.endswith("S")
        and kind not in ("FLOAT", "INT", "STRING")
        and not attribute.HasField(field)
    ):
        return f"has no value of its type {kind}"
    if attribute.name == "auto_pad" and declared is not None and attribute.s not in _PADS:
        return f"is {attribute.s.decode('utf-8', 'backslashreplace')!r}"
    return None


# --- tensors --------------------------------------------------------------------------------------


def bytes_of(data_type: int, dims: Collection[int]) -> int | None:
    """The size of a tensor's values; None for strings, unknown types and negative sizes."""
    try:
        kind = ir.DataType(data_type)
    except ValueError:
        return None
    if kind in (ir.DataType.STRING, ir.DataType.UNDEFINED) or any(n < 0 for n in dims):
        return None
    # Rounded up: types of less than a byte are packed.
    return -(-math.prod(dims) * int(kind.bitwidth) // 8)


def _check_tensor(tensor: onnx.TensorProto) -> None:
    problem = _tensor_problem(tensor)
    if problem:
        raise _Problem(f"the tensor {tensor.name!r} {problem}")


def _tensor_problem(tensor: onnx.TensorProto) -> str | None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None  # see `external.check_external`
    needed = bytes_of(tensor.data_type, tensor.dims)
    filled = {name: len(getattr(tensor, name)) for name in _TYPED if len(getattr(tensor, name))}
    # Raw bytes or one typed field, and not both.
    if tensor.HasField("raw_data"):
        if needed is None:
            return "has a type or shape without a size in bytes"
        if len(tensor.raw_data) != needed:
            return f"has {len(tensor.raw_data):,} bytes where its shape needs {needed:,}"
        return "has its values twice" if filled else None
    if tensor.data_type == onnx.TensorProto.STRING:
        shaped = all(n >= 0 for n in tensor.dims)
        right = shaped and filled.get("string_data", 0) == math.prod(tensor.dims)
        return None if right else "has another number of strings than its shape needs"
    if needed is None:
        return "has a type or shape without a size in bytes"
    if len(filled) > 1:
        return "has its values twice"
    return (
        None
        if sum(filled.values()) == _entries_of(tensor)
        else ("has another number of values than its shape needs")
    )


def _entries_of(tensor: onnx.TensorProto) -> int:
    """How many entries the field of typed values has."""
    count = int(math.prod(tensor.dims))
    kind = ir.DataType(tensor.data_type)
    if kind in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * count
    if kind.bitwidth < 8:
        return -(-count * int(kind.bitwidth) // 8)
    return count


# --- order ----------------------------------------------------------------------------------------


def sort_nodes(model: ir.Model) -> None:
    """Puts nodes behind those that they need, as the standard wants it; ONNX Runtime runs any order.

    Raises:
        ModelError: If nodes need each other in a circle.
    """
    for graph in _bodies(model):
        try:
            graph.sort()
        except ValueError as error:
            raise ModelError(
                "model",
                "its nodes need each other in a circle",
                "a valid ONNX model is needed",
                "Check it with onnx.checker, or export it again",
            ) from error


def _bodies(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    yield model.graph
    yield from model.functions.values()
