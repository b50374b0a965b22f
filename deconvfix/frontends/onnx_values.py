"""What an ONNX model says about its values: constants, shapes, types, attributes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

__all__ = ["DEFAULT_DOMAINS", "Known", "Operand", "bodies", "constant", "static_shape"]

DEFAULT_DOMAINS = ("", "ai.onnx")


def bodies(model: ir.Model) -> list[ir.Graph]:
    """The model's graph, and those of its functions."""
    return [model.graph, *(function.graph for function in model.functions.values())]


def constant(value: ir.Value | None, ir_version: int) -> ir.TensorProtocol | None:
    """The tensor of an initializer or Constant node, through Identity; None if it may change.

    An initializer that is a graph input too may be overridden by the caller, since IR version 4.
    """
    while value is not None:
        producer = value.producer()
        if producer is None or producer.op_type != "Identity" or producer.domain != "":
            break
        value = producer.inputs[0]
    if value is None or (value.is_graph_input() and ir_version >= 4):
        return None
    try:
        return ir.convenience.get_const_tensor(value)
    except ValueError:  # a sparse Constant
        return None


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
            if producer is None or producer.op_type != "Identity" or producer.inputs[0] is None:
                return cls(value, alone)
            value = producer.inputs[0]


class Known:
    """Shapes, types and attributes as far as they are known anywhere in a model."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._inferred: dict[str, ir.Value] | None = None
        self._calls: dict[Any, list[ir.Node]] | None = None

    def shape(self, value: ir.Value | None, function: ir.Function | None) -> Any:
        """Shape of a value: declared, stored, inferred, or the same at all calls of the function."""
        if value is None:
            return None
        tensor = constant(value, self.model.ir_version)
        if tensor is not None:
            return tuple(int(n) for n in tensor.shape.numpy())
        shape = static_shape(value)
        if shape is None or None in shape:
            inferred = static_shape(self._inferred_value(value))
            if inferred is not None and (shape is None or len(shape) == len(inferred)):
                pairs = zip(shape or inferred, inferred, strict=True)
                shape = tuple(mine if theirs is None else theirs for mine, theirs in pairs)
        if shape is None and function is not None and value in function.inputs:
            index = list(function.inputs).index(value)
            shapes = {
                self.shape(call.inputs[index], caller)
                for call, caller in self.calls(function)
                if index < len(call.inputs)
            }
            shape = shapes.pop() if len(shapes) == 1 else None
        return shape

    def dtype(self, value: ir.Value | None, function: ir.Function | None) -> ir.DataType | None:
        """Type of a value's elements, found like its shape."""
        if value is None:
            return None
        tensor = constant(value, self.model.ir_version)
        if tensor is not None:
            return tensor.dtype
        if value.dtype is not None:
            return value.dtype
        inferred = self._inferred_value(value)
        if inferred is not None and inferred.dtype is not None:
            return inferred.dtype
        if function is not None and value in function.inputs:
            index = list(function.inputs).index(value)
            for call, caller in self.calls(function):
                if index < len(call.inputs):
                    return self.dtype(call.inputs[index], caller)
        return None

    def calls(self, function: ir.Function) -> list[tuple[ir.Node, ir.Function | None]]:
        """The nodes that call a function, each with the function that it is in."""
        if self._calls is None:
            self._calls = {}
            for body in (None, *self.model.functions.values()):
                nodes = (self.model.graph if body is None else body).all_nodes()
                for node in nodes:
                    if node.op_identifier() in self.model.functions:
                        self._calls.setdefault(node.op_identifier(), []).append((node, body))  # type: ignore[arg-type]
        return self._calls.get(function.identifier(), [])  # type: ignore[return-value]

    def attribute(self, node: ir.Node, name: str, function: ir.Function | None) -> Any:
        """Value of an attribute, None without; one that refers to the function's own is looked up.

        Raises:
            LookupError: If the calls of the function give it different values.
        """
        attribute = node.attributes.get(name)
        if attribute is None:
            return None
        if not attribute.is_ref():
            return attribute.value
        assert function is not None
        reference = str(attribute.ref_attr_name)
        default = function.attributes.get(reference)
        values = [
            self.attribute(call, reference, caller)
            if reference in call.attributes
            else (None if default is None else default.value)
            for call, caller in self.calls(function)
        ]
        if not values or any(each != values[0] for each in values):
            raise LookupError(name)
        return values[0]

    def _inferred_value(self, value: ir.Value) -> ir.Value | None:
        if self._inferred is None:
            clone = self.model.clone()
            with _quiet():
                ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(clone)
            self._inferred = {
                name: each
                for graph in clone.graphs()
                for name, each in ir.convenience.create_value_mapping(graph).items()
            }
        return self._inferred.get(value.name or "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Shape inference that fails logs a warning; what it would have found stays unknown."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
