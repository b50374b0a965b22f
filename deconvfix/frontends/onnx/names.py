"""New names and new initializers of an ONNX model."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.frontends.onnx.values import bodies

__all__ = ["OLDEST_IR_WITH_FREE_INITIALIZERS", "Names"]

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

    def fresh(self, wanted: str) -> str:
        """`wanted`, or `wanted` with a number."""
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name

    def initializer(self, array: NDArray[Any], graph: ir.Graph, wanted: str) -> ir.Value:
        """A new initializer; before IR version 4 each of them is an input of the graph as well."""
        value = ir.val(self.fresh(wanted), const_value=ir.tensor(array))
        value.const_value.name = value.name  # type: ignore[union-attr]
        graph.register_initializer(value)
        if self.model.ir_version < OLDEST_IR_WITH_FREE_INITIALIZERS:
            graph.inputs.append(value)
        return value
