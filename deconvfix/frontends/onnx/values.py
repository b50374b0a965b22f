"""What an ONNX model says about its values: constants, shapes, types, attributes."""

from __future__ import annotations

import graphlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from deconvfix.errors import ModelError

__all__ = [
    "DEFAULT_DOMAINS",
    "FOLDED",
    "OLDEST_IR_WITH_FREE_INITIALIZERS",
    "RANDOM",
    "Known",
    "Names",
    "Operand",
    "behind_identity",
    "bodies",
    "check_model",
    "constant",
    "is_quantizer",
    "quiet",
    "scopes",
    "static_shape",
    "stored_tensor",
    "visible",
]

DEFAULT_DOMAINS = ("", "ai.onnx")
# Where `fold` puts what an expression of constants gives: metadata of its value, which no file holds.
FOLDED = "deconvfix.folded"
# Operators that give other values each time.
RANDOM = (
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"),
    *("RandomUniform", "RandomUniformLike"),
)
# What functions may expand to: runtimes and checkers inline them, and time and memory grow with it.
_MOST_NODES = 2**20
_DEEPEST_CALL = 100


def bodies(model: ir.Model) -> list[ir.Graph]:
    """The model's graph, and those of its functions."""
    return [model.graph, *(function.graph for function in model.functions.values())]


def scopes(model: ir.Model) -> list[tuple[ir.Graph, ...]]:
    """Every graph of the model, each followed by those around it, innermost first.

    The order is the same for a copy of the model, and for what is converted from one.
    """

    def inner(graph: ir.Graph, around: tuple[ir.Graph, ...]) -> Iterator[tuple[ir.Graph, ...]]:
        scope = (graph, *around)
        yield scope
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.GRAPH:
                    yield from inner(attribute.as_graph(), scope)
                elif attribute.type == ir.AttributeType.GRAPHS:
                    for graph in attribute.as_graphs():
                        yield from inner(graph, scope)

    return [scope for body in bodies(model) for scope in inner(body, ())]


def visible(scope: tuple[ir.Graph, ...]) -> dict[str, ir.Value]:
    """The values that a graph's nodes can read, by name: its own and those of the graphs around it.

    Branches side by side may use one name for different values.
    """
    values: dict[str, ir.Value] = {}
    for graph in reversed(scope):
        values |= graph.initializers
        values |= {str(value.name): value for value in graph.inputs}
        values |= {str(value.name): value for node in graph for value in node.outputs if value.name}
    return values


def check_model(model: ir.Model) -> None:
    """Checks that all values come from somewhere, and that the model's functions can be inlined.

    Raises:
        ModelError: If a node reads what nothing gives, if a function calls itself, or if calls
            expand to an absurd number of nodes: runtimes and checkers inline them.
    """
    for body in bodies(model):
        inputs = set(body.inputs)
        for node in body.all_nodes():
            for value in node.inputs:
                if value is not None and value not in inputs and _is_dangling(value):
                    raise ModelError(
                        f"node {node.name or node.op_type!r}",
                        f"it reads {value.name!r}, which no node computes",
                        "each value must be an input, an initializer, or the output of a node",
                        "Check the file with onnx.checker",
                    )
    _check_calls(model)


def _is_dangling(value: ir.Value) -> bool:
    return value.producer() is None and not (value.is_graph_input() or value.is_initializer())


def _check_calls(model: ir.Model) -> None:
    called = {
        key: Counter(
            node.op_identifier()
            for node in function.graph.all_nodes()
            if node.op_identifier() in model.functions
        )
        for key, function in model.functions.items()
    }
    todo = "Do not use this file"
    try:
        order = list(graphlib.TopologicalSorter(called).static_order())
    except graphlib.CycleError as error:
        name = error.args[1][0][1]
        raise ModelError(
            f"function {name!r}", "it calls itself", "functions must not be recursive", todo
        ) from error
    nodes: dict[ir.OperatorIdentifier, int] = {}
    depth: dict[ir.OperatorIdentifier, int] = {}
    for key in order:
        nodes[key] = sum(1 for _ in model.functions[key].graph.all_nodes()) + sum(
            nodes[callee] * times for callee, times in called[key].items()
        )
        depth[key] = 1 + max((depth[callee] for callee in called[key]), default=0)
        if nodes[key] > _MOST_NODES or depth[key] > _DEEPEST_CALL:
            raise ModelError(
                f"function {key[1]!r}",
                f"its calls expand to {nodes[key]:,} nodes, {depth[key]} calls deep",
                f"at most {_MOST_NODES:,} nodes and {_DEEPEST_CALL} calls are supported",
                todo,
            )


def constant(value: ir.Value | None, ir_version: int) -> ir.TensorProtocol | None:
    """The tensor of an initializer, a Constant node or a folded expression; None if it may change.

    An initializer that is a graph input too may be overridden by the caller, since IR version 4.
    """
    value = behind_identity(value)
    if value is not None and FOLDED in value.meta:
        folded: ir.TensorProtocol = value.meta[FOLDED]
        return folded
    return stored_tensor(value, ir_version)


def behind_identity(value: ir.Value | None) -> ir.Value | None:
    """Where a value comes from that Identity nodes only pass on."""
    while value is not None:
        producer = value.producer()
        if producer is None or not _is_identity(producer):
            break
        value = producer.inputs[0]
    return value


def stored_tensor(value: ir.Value | None, ir_version: int) -> ir.TensorProtocol | None:
    """The same without folded expressions: what the file holds."""
    value = behind_identity(value)
    if value is None or (value.is_graph_input() and ir_version >= 4):
        return None
    try:
        return ir.convenience.get_const_tensor(value)
    except ValueError:  # a sparse Constant
        return None


def _is_identity(node: ir.Node) -> bool:
    return node.op_type == "Identity" and node.domain in DEFAULT_DOMAINS


def is_quantizer(node: ir.Node, *op_types: str) -> bool:
    """Whether it is a QuantizeLinear or DequantizeLinear (`op_types`) of ONNX or ONNX Runtime."""
    return node.op_type in op_types and node.domain in (*DEFAULT_DOMAINS, "com.microsoft")


def _is_foreign_quantizer(node: ir.Node) -> bool:
    """Whether it is one of ONNX Runtime's own, which shape inference does not know."""
    return bool(node.domain) and is_quantizer(node, "DequantizeLinear", "QuantizeLinear")


def static_shape(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The declared shape, None for each axis that is not fixed; None if the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(n if isinstance(n, int) else None for n in value.shape)


@dataclass(frozen=True)
class Operand:
    """A value that a layer reads.

    Attributes:
        value: Where it comes from, behind Identity nodes.
        alone: Whether nothing else reads it.
    """

    value: ir.Value
    alone: bool

    @classmethod
    def of(cls, value: ir.Value | None, alone: bool = True) -> Operand:
        """The operand `value` of a node that is itself read by nothing else, if `alone`."""
        assert value is not None
        while True:
            alone = alone and len(value.uses()) == 1 and not value.is_graph_output()
            producer = value.producer()
            if producer is None or not _is_identity(producer) or producer.inputs[0] is None:
                return cls(value, alone)
            value = producer.inputs[0]


_Call = tuple[ir.Node, ir.Function | None]


class Known:
    """Shapes, types and attributes as far as they are known anywhere in a model."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._inferred: dict[ir.Value, ir.Value] | None = None
        self._calls: dict[ir.OperatorIdentifier, list[_Call]] | None = None
        self._shapes: dict[ir.Value, Any] = {}
        self._dtypes: dict[ir.Value, ir.DataType | None] = {}
        self._references: dict[tuple[ir.OperatorIdentifier, str], set[Any]] = {}

    def shape(self, value: ir.Value | None, function: ir.Function | None) -> Any:
        """Shape of a value: declared, stored, inferred, or the same at all calls of the function."""
        if value is None:
            return None
        if value not in self._shapes:
            self._shapes[value] = self._shape(value, function)
        return self._shapes[value]

    def _shape(self, value: ir.Value, function: ir.Function | None) -> Any:
        tensor = constant(value, self.model.ir_version)
        if tensor is not None:
            return tuple(int(n) for n in tensor.shape.numpy())
        shape = static_shape(value)
        # Inference may know more than the file declares. Of both, known sizes count.
        if shape is None or None in shape:
            inferred = static_shape(self._inferred_value(value))
            if inferred is not None and (shape is None or len(shape) == len(inferred)):
                pairs = zip(shape or inferred, inferred, strict=True)
                shape = tuple(own if known is None else known for own, known in pairs)
        producer = value.producer()
        if shape is None and producer is not None and _is_foreign_quantizer(producer):
            shape = self.shape(producer.inputs[0], function)
        if shape is None:
            shapes = {
                self.shape(given, caller) for given, caller in self.given(value, function) if given
            }
            shape = shapes.pop() if len(shapes) == 1 else None
        return shape

    def dtype(self, value: ir.Value | None, function: ir.Function | None) -> ir.DataType | None:
        """Type of a value's elements, found like its shape."""
        if value is None:
            return None
        if value not in self._dtypes:
            self._dtypes[value] = self._dtype(value, function)
        return self._dtypes[value]

    def _dtype(self, value: ir.Value, function: ir.Function | None) -> ir.DataType | None:
        tensor = constant(value, self.model.ir_version)
        inferred = None if tensor is not None or value.dtype else self._inferred_value(value)
        for candidate in (tensor, value, inferred):
            if candidate is not None and candidate.dtype is not None:
                return candidate.dtype
        producer = value.producer()
        if producer is not None and _is_foreign_quantizer(producer):
            dequantizes = producer.op_type == "DequantizeLinear"
            return self.dtype(producer.inputs[1], function) if dequantizes else None
        found = {self.dtype(given, caller) for given, caller in self.given(value, function)}
        return found.pop() if len(found) == 1 else None

    def given(
        self, value: ir.Value | None, function: ir.Function | None
    ) -> list[tuple[ir.Value | None, ir.Function | None]]:
        """What the calls of a function give for one of its inputs, each with the calling function.

        None is what a call leaves out. Values that are no inputs of a function are given nothing.
        """
        if value is None or function is None or value not in function.inputs:
            return []
        index = list(function.inputs).index(value)
        return [
            (call.inputs[index] if index < len(call.inputs) else None, caller)
            for call, caller in self.calls(function)
        ]

    def calls(self, function: ir.Function) -> list[_Call]:
        """The nodes that call a function, each with the function that it is in."""
        if self._calls is None:
            self._calls = {}
            for caller in (None, *self.model.functions.values()):
                for node in (self.model.graph if caller is None else caller).all_nodes():
                    if node.op_identifier() in self.model.functions:
                        self._calls.setdefault(node.op_identifier(), []).append((node, caller))
        return self._calls.get(function.identifier(), [])

    def attribute(self, node: ir.Node, name: str, function: ir.Function | None) -> Any:
        """Value of an attribute, None without; one that refers to the function's own is looked up.

        Raises:
            LookupError: If the calls of the function give it different values.
        """
        found = self._attribute(node, name, function)
        if len(found) != 1:
            raise LookupError(name)
        (value,) = found
        return list(value) if isinstance(value, tuple) else value

    def _attribute(self, node: ir.Node, name: str, function: ir.Function | None) -> set[Any]:
        """The values that an attribute has at all the calls of the function; lists as tuples."""
        attribute = node.attributes.get(name)
        if attribute is None:
            return {None}
        if not attribute.is_ref():
            return {_hashable(attribute.value)}
        assert function is not None
        key = (function.identifier(), str(attribute.ref_attr_name))
        if key not in self._references:
            default = function.attributes.get(key[1])
            absent = {None if default is None else _hashable(default.value)}
            found: set[Any] = set()
            for call, caller in self.calls(function):
                given = key[1] in call.attributes
                found |= self._attribute(call, key[1], caller) if given else absent
            self._references[key] = found or absent
        return self._references[key]

    def _inferred_value(self, value: ir.Value) -> ir.Value | None:
        if self._inferred is None:
            # On a copy, as inference writes into the model, and once, when something asks.
            copied = self.model.clone()
            with quiet():
                ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copied)
            self._inferred = {}
            for scope, copied_scope in zip(scopes(self.model), scopes(copied), strict=True):
                inferred = visible(copied_scope)
                self._inferred |= {
                    value: inferred[name] for name, value in visible(scope[:1]).items()
                }
        return self._inferred.get(value)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


@contextmanager
def quiet() -> Iterator[None]:
    """Without onnx_ir's warnings: what it does not find out stays unknown, or is an error here."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


# Before, each initializer is an input of the graph as well.
OLDEST_IR_WITH_FREE_INITIALIZERS = 4


class Names:
    """A model, and names of values that it does not have yet.

    ONNX allows no name twice in nested scopes.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._taken = {
            value.name
            for body in bodies(model)
            for value in (
                *body.inputs,
                *(v for node in body.all_nodes() for v in (*node.outputs, *node.inputs) if v),
            )
        }
        for graph in model.graphs():
            self._taken |= set(graph.initializers) | {value.name for value in graph.inputs}

    def fresh(self, stem: str) -> str:
        """`stem`, or `stem` with a number."""
        name, count = stem, 1
        while name in self._taken:
            count += 1
            name = f"{stem}_{count}"
        self._taken.add(name)
        return name

    def initializer(self, array: NDArray[Any], graph: ir.Graph, stem: str) -> ir.Value:
        """A new initializer; before IR version 4 each of them is an input of the graph as well."""
        value = ir.val(self.fresh(stem), const_value=ir.tensor(array))
        value.const_value.name = value.name  # type: ignore[union-attr]
        graph.register_initializer(value)
        if self.model.ir_version < OLDEST_IR_WITH_FREE_INITIALIZERS:
            graph.inputs.append(value)
        return value
