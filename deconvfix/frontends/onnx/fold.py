"""Weights that an expression of constants makes, such as Transpose(kernel): evaluated once.

Exporters that fold nothing leave such expressions. ONNX Runtime evaluates them here, as it would do at each
run, and the value is noted beside the expression (`values.FOLDED`), which stays as it is for the proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import onnx_ir as ir

from deconvfix.errors import ExportError
from deconvfix.frontends.onnx.parts import cut_out, is_stored, serialized
from deconvfix.frontends.onnx.values import FOLDED, constant, is_quantizer
from deconvfix.parity.runtime import open_session, run_named

__all__ = ["fold"]

# Operators that make more than they get: a few bytes of a file could fill any memory.
_GROWING = (
    *(
        "ConstantOfShape",
        "Expand",
        "EyeLike",
        "OneHot",
        "Pad",
        "Range",
        "Resize",
        "Tile",
        "Upsample",
    ),
    *("If", "Loop", "Scan"),
)


class _Place(Protocol):
    @property
    def function(self) -> ir.Function | None: ...

    @property
    def opset(self) -> int: ...


def fold(model: ir.Model, place: _Place, value: ir.Value | None) -> None:
    """Notes what an expression of constants gives; nothing where it is none, or cannot be evaluated.

    Quantised weights are expressions, too, and stay: they are rearranged as they are stored.

    Args:
        model: The model; nothing that is written changes.
        place: The operator set and the function around.
        value: A weight or bias.
    """
    if value is None or constant(value, model.ir_version) is not None:
        return
    if not is_stored(value, model.ir_version):
        return
    nodes = [*_expression(value, model.ir_version)]
    # Folding would turn integers into floats, and the layer would not run in int8 any more.
    if any(is_quantizer(node, "DequantizeLinear", "QuantizeLinear") for node in nodes):
        return
    if any(node.op_type in _GROWING for node in nodes):
        return
    try:
        # In its own type, as the result is stored, and unoptimised, as it runs once.
        part = serialized(cut_out({}, value, narrow=False), model, place.function, place.opset)
        (array,) = run_named(open_session(part, optimize=False), {})
    except (ExportError, ValueError):
        return  # ONNX Runtime has no kernel for it, so it stays what is computed while the model runs
    value.meta[FOLDED] = ir.tensor(array, name=value.name)


def _expression(value: ir.Value, ir_version: int) -> Iterator[ir.Node]:
    """The nodes of an expression of constants, some of them more than once."""
    node: Any = value.producer()
    if node is None or constant(value, ir_version) is not None:
        return
    yield node
    for operand in node.inputs:
        if operand is not None:
            yield from _expression(operand, ir_version)
