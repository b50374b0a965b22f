"""Weights that an expression of constants makes, such as Transpose(kernel): evaluated once.

Exporters that fold nothing leave such expressions. ONNX Runtime evaluates them here, as it would do at each
run, and the value is noted beside the expression (`values.FOLDED`), which stays as it is for the proof.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.errors import ExportError
from deconvfix.frontends.onnx.parts import cut_out, expression, serialized
from deconvfix.frontends.onnx.values import (
    FOLDED,
    behind_identity,
    constant,
    is_quantizer,
    stored_tensor,
)
from deconvfix.parity.runtime import open_session, run_named

__all__ = ["fold"]

Array = NDArray[Any]

# Operators that give at most as much as their largest operand, and those that broadcast. Others could fill
# any memory from a few bytes of a file.
_SAME_SIZE = frozenset({
    "Abs", "BatchNormalization", "Cast", "CastLike", "Ceil", "Clip", "Compress", "Cos", "Cosh", "CumSum",
    "DepthToSpace", "Elu", "Erf", "Exp", "Flatten", "Floor", "HardSigmoid", "HardSwish", "Identity",
    "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log", "LpNormalization", "Neg", "Not",
    "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Round",
    "ScatterElements", "ScatterND", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax",
    "Softplus", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Tan", "Tanh", "Transpose", "Trilu",
    "Unsqueeze",
})  # fmt: skip
_BROADCAST = frozenset(
    {"Add", "Div", "Max", "Mean", "Min", "Mod", "Mul", "PRelu", "Pow", "Sub", "Sum", "Where"}
)
# A shape has as many elements as its operand has axes.
_MOST_AXES = 64
# Of a weight: half a gigabyte in float32.
_MOST_ELEMENTS = 2**27


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
    nodes = expression(value, model.ir_version)
    # Folding would turn integers into floats, and the layer would not run in int8 any more.
    if not nodes or any(is_quantizer(n, "DequantizeLinear", "QuantizeLinear") for n in nodes):
        return
    known: dict[ir.Value, Array] = {}
    try:
        # One node after the other: what each can give is known from what it gets, before it runs.
        for node in nodes:
            operands = {
                operand: _read(operand, known, model.ir_version)
                for operand in node.inputs
                if operand
            }
            if _largest(node, [operands[o] for o in node.inputs if o]) > _MOST_ELEMENTS:
                return
            stops = {
                operand: ir.val(
                    f"operand{number}", ir.DataType.from_numpy(array.dtype), array.shape
                )
                for number, (operand, array) in enumerate(operands.items())
            }
            feed = {str(stops[operand].name): array for operand, array in operands.items()}
            for output in node.outputs:
                # In its own type, as the result is stored, and unoptimised, as it runs once.
                part = cut_out(stops, output, narrow=False)
                session = open_session(
                    serialized(part, model, place.function, place.opset), optimize=False
                )
                (known[output],) = run_named(session, feed)
    except (ExportError, ValueError, TypeError):
        return  # ONNX Runtime has no kernel for it, so it stays what is computed while the model runs
    made = behind_identity(value)
    assert made is not None
    made.meta[FOLDED] = ir.tensor(known[made], name=made.name)


def _read(value: ir.Value, known: dict[ir.Value, Array], ir_version: int) -> Array:
    if value in known:
        return known[value]
    tensor = stored_tensor(value, ir_version)
    if tensor is None:
        raise ValueError("it is no constant")
    return np.asarray(tensor.numpy())


def _largest(node: ir.Node, operands: list[Array]) -> int:
    """The most elements that a node can give; too many where that is not known."""
    sizes = [array.size for array in operands]
    if node.op_type in _SAME_SIZE:
        return max(sizes)
    if node.op_type in _BROADCAST:
        return math.prod(np.broadcast_shapes(*(array.shape for array in operands)))
    first, second = [*operands, np.zeros(0), np.zeros(0)][:2]
    # In Python's integers, which do not wrap around. What an operand says is bounded only here.
    numbers = [int(n) for n in second.reshape(-1)[:_MOST_AXES]] if second.dtype.kind in "iu" else []
    match node.op_type:
        case "Concat":
            return sum(sizes)
        case "Shape":
            return _MOST_AXES
        case "Expand" if all(n > 0 for n in numbers):
            return math.prod(np.broadcast_shapes(first.shape, tuple(numbers)))
        case "Tile" if len(numbers) == first.ndim:
            return first.size * math.prod(map(abs, numbers))
        case "Pad" if len(numbers) == 2 * first.ndim:
            return math.prod(size + sum(map(abs, numbers)) for size in first.shape)
        case "Gather":
            return _without_shortest(first) * second.size
        case "MatMul" | "Gemm":
            # Without the axis that is summed over, whichever it is.
            return _without_shortest(first) * _without_shortest(second)
    return _MOST_ELEMENTS + 1


def _without_shortest(array: Array) -> int:
    """An upper bound of the size without one axis."""
    return array.size // max(1, min(array.shape, default=1))
