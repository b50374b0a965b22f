"""The stored integers of quantised layers, read as the weights that they stand for.

DequantizeLinear(q, s, z)   is   (q - z) * s, with one scale, or one for each channel along an axis
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.frontends.onnx.values import behind_identity, constant, is_quantizer
from deconvfix.frontends.onnx.weights import Scales, scales_of

__all__ = ["Integers", "Quantised", "quantised"]

_WEIGHTS = (ir.DataType.INT8, ir.DataType.UINT8)
# What ONNX Runtime's `reduce_range` leaves of these, for CPUs whose sums saturate.
_REDUCED = {"int8": (-64, 64), "uint8": (0, 127)}
# New taps have both signs: so much of the range each of them needs.
_LEAST_PART = 1 / 4


@dataclass(frozen=True, eq=False)
class Integers:
    """A weight or bias that is stored as integers.

    Attributes:
        node: Its DequantizeLinear.
        stored: The integers.
        scale: As stored.
        zero: The zero points as stored, or None.
        layout: Whom the scales serve.
    """

    node: ir.Node
    stored: ir.TensorProtocol
    scale: NDArray[Any]
    zero: NDArray[Any] | None
    layout: Scales

    def along(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Scales or zero points with axes of 1, for arithmetic with the values."""
        rank = len(self.stored.shape)
        if self.layout == "all":
            return numbers.reshape((1,) * rank)
        axis = 0 if self.layout in ("inputs", "groups") else min(1, rank - 1)
        return numbers.reshape(*(1,) * axis, -1, *(1,) * (rank - 1 - axis))

    def scales(self) -> NDArray[np.float64]:
        """In float64, with axes of 1."""
        return self.along(self.scale).astype(np.float64)

    def zeros(self) -> NDArray[np.int64]:
        """The zero points, with axes of 1."""
        rank = len(self.stored.shape)
        return (
            np.zeros((1,) * rank, np.int64)
            if self.zero is None
            else self.along(self.zero).astype(np.int64)
        )

    def real(self) -> NDArray[np.float64]:
        """What they stand for."""
        taps = np.asarray(self.stored.numpy()).astype(np.int64) - self.zeros()
        return taps * self.scales()

    def limits(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Smallest and largest q - z that may be stored, with axes of 1; as the integers there are."""
        stored = np.asarray(self.stored.numpy())
        info, (low, high) = np.iinfo(stored.dtype), _REDUCED[stored.dtype.name]
        if stored.min(initial=0) < low or stored.max(initial=0) > high:
            low, high = info.min, info.max
        # Symmetric ones leave out -128, which has no opposite.
        if low == -128 and stored.min(initial=0) > low:
            low = -127
        return low - self.zeros(), high - self.zeros()


@dataclass(frozen=True, eq=False)
class Quantised:
    """A layer whose weight is stored as integers.

    Attributes:
        weight: Its weight.
        bias: Its bias, if that is stored as integers too.
        input: The DequantizeLinear of its input, if that has one stored scale.
        input_scale: This scale.
        input_zero: The zero point beside it, or None.
    """

    weight: Integers
    bias: Integers | None
    input: ir.Node | None
    input_scale: NDArray[Any] | None
    input_zero: NDArray[Any] | None

    def on_grid(self, x: NDArray[Any]) -> NDArray[Any]:
        """Values that the layer's input can have, close to others of any kind."""
        if self.input_scale is None or self.input_zero is None:
            return x
        scale, zero = self.input_scale.reshape(()), self.input_zero.reshape(())
        info = np.iinfo(zero.dtype)
        steps = np.rint(x / scale).astype(np.int64) + zero
        moved: NDArray[Any] = scale * (np.clip(steps, info.min, info.max) - zero)
        return moved.astype(x.dtype)


def quantised(node: ir.Node, spec: ConvTransposeSpec, ir_version: int) -> Quantised | str:
    """The integers behind a layer's operands.

    Args:
        node: A ConvTranspose whose weight comes from a DequantizeLinear.
        spec: The layer.
        ir_version: Of the model.

    Returns:
        A clause for why its weight cannot be read and set, where it cannot.
    """
    weight = _integers(node.inputs[1], spec.weight_shape, spec, ir_version)
    if isinstance(weight, str):
        return f"its weight is quantised, and {weight}"
    if weight.stored.dtype not in _WEIGHTS:
        return f"its weight is quantised, and stored as {weight.stored.dtype.name.lower()}"
    low, high = weight.limits()
    if (np.minimum(-low, high) < _LEAST_PART * (high - low)).any():
        return "its weight is quantised, and a zero point leaves too few integers to one sign"
    bias = _integers([*node.inputs, None][2], (spec.out_channels,), spec, ir_version)
    stored = isinstance(bias, Integers) and bias.stored.dtype == ir.DataType.INT32
    x = behind_identity(node.inputs[0])
    source = None if x is None else x.producer()
    scale, zero = None, None
    if source is not None and is_quantizer(source, "DequantizeLinear"):
        scale, zero = (_array(operand, ir_version) for operand in [*source.inputs, None, None][1:3])
    known = scale is not None and scale.size == 1
    return Quantised(
        weight,
        bias if isinstance(bias, Integers) and stored else None,
        source if known else None,
        scale if known else None,
        zero if known else None,
    )


def _array(value: ir.Value | None, ir_version: int) -> NDArray[Any] | None:
    tensor = constant(value, ir_version)
    return None if tensor is None else np.asarray(tensor.numpy())


def _integers(
    value: ir.Value | None, shape: tuple[int, ...], spec: ConvTransposeSpec, ir_version: int
) -> Integers | str:
    """What a value is dequantised from; a clause where that cannot be read."""
    value = behind_identity(value)
    node = None if value is None else value.producer()
    if node is None or not is_quantizer(node, "DequantizeLinear"):
        return "it has no DequantizeLinear"
    inner, scale_of, zero_of = [*node.inputs, None, None][:3]
    integers = constant(inner, ir_version)
    scale, zero = _array(scale_of, ir_version), _array(zero_of, ir_version)
    if integers is None or scale is None or (zero is None and zero_of is not None):
        return "its integers, scales or zero points are not stored"
    layout = scales_of(node, scale, shape, spec)
    if not (np.isfinite(scale) & (scale > 0)).all():
        return "a scale is no positive number"
    if layout is None:
        return "its scales lie in blocks, or for input channels in groups"
    found = Integers(node, integers, scale, zero, layout)
    same = (
        tuple(integers.shape) == shape
        and (zero is None or zero.size == scale.size)
        and scale.size > 0
    )
    # One for all, or one for each channel; ONNX Runtime runs no other file.
    if not same or any(
        n not in (1, size) for n, size in zip(found.scales().shape, shape, strict=True)
    ):
        return "its integers, scales and zero points do not have the shapes that belong together"
    return found
