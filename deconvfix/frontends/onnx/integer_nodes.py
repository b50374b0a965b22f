"""The nodes of quantised layers with new weights: DequantizeLinear of integers, and steps on bytes.

    DQ(q), DQ(w) -> ConvTranspose -> Q   becomes   Q, Resize, Pad, DQ, DQ(w') -> Conv -> Q   (form `resize`)

Runtimes drop a DequantizeLinear with the QuantizeLinear that undoes it, and run Resize and Pad on bytes and
the convolution in integers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.rearrange import Verb, rearrange
from deconvfix.core.steps import Crop, Pad, Resize, Step
from deconvfix.frontends.onnx.find import Layer
from deconvfix.frontends.onnx.integers import Integers
from deconvfix.frontends.onnx.requantised import bias_integers, bias_scales, copies_of, widened
from deconvfix.frontends.onnx.steps import Operands, Writer
from deconvfix.frontends.onnx.values import Operand
from deconvfix.frontends.onnx.weights import Store
from deconvfix.plan import Replaced

__all__ = ["on_integers", "write_bias", "write_kernel"]

# Pad takes bytes from this opset on.
_PAD_OF_BYTES = 13


def write_kernel(
    store: Store,
    writer: Writer,
    layer: Layer,
    decision: Replaced,
    verbs: tuple[Verb, ...] | None,
    *,
    alone: bool,
) -> ir.Value:
    """The new kernel behind a DequantizeLinear; `decision` is that of `as_stored`.

    Args:
        store: The tensors of the model.
        writer: Of the new nodes.
        layer: The layer.
        decision: What it becomes.
        verbs: From the form's kernel to the weight of a convolution; None for a layer that stays.
        alone: Whether nothing else reads the old weight.
    """
    fitted = decision.fitted
    assert fitted is not None
    assert fitted.scales is not None
    assert layer.quantised is not None
    own, groups = layer.quantised.weight, decision.spec.groups
    integers = np.rint(fitted.kernel / fitted.scales).astype(np.int64)
    scales = fitted.scales
    zeros = widened(own.zeros(), decision, copies_of(fitted.kernel, decision))
    axis = {"all": None, "outputs": 1}.get(own.layout, 0)
    if verbs is not None:
        # What is appended means zero, so the zero points of its row come last.
        shape = integers.shape
        integers = rearrange(verbs, integers, groups)
        scales, zeros = (
            rearrange(verbs, np.broadcast_to(numbers, shape), groups, "copies")
            for numbers in (scales, zeros)
        )
        axis = {"all": None, "inputs": 1}.get(own.layout, 0)
    arrays = [(integers + zeros).astype(own.stored.dtype.numpy()), _along(scales, axis, own.scale)]
    arrays += [] if own.zero is None else [_along(zeros, axis, own.zero)]
    key = (verbs, decision.name)
    values = _put(store, writer, own, arrays, alone=alone, key=key)
    # In its own place, so that the node keeps its name; new Constant nodes come too late for that.
    if verbs is not None or not alone or writer.nodes:
        return _dequantised(writer, own, values, axis)
    for index, value in enumerate(values):
        own.node.replace_input_with(index, value)
    output = own.node.outputs[0]
    output.shape = None if output.shape is None else ir.Shape(integers.shape)
    result = layer.node.inputs[1]
    assert result is not None
    return result


def write_bias(
    store: Store, writer: Writer, layer: Layer, decision: Replaced, verbs: tuple[Verb, ...]
) -> ir.Value:
    """The new bias of integers behind a DequantizeLinear; as `write_kernel`."""
    fitted, found = decision.fitted, layer.quantised
    assert fitted is not None
    assert fitted.bias is not None
    assert fitted.scales is not None
    assert found is not None
    assert found.bias is not None
    own = found.bias
    scales = bias_scales(found, fitted.scales, decision)
    integers = bias_integers(own, fitted.bias, scales, decision).astype(np.int64) + own.zeros()
    arrays = [rearrange(verbs, integers).astype(own.stored.dtype.numpy())]
    axis = None if own.layout == "all" else 0
    for numbers, like in ((scales, own.scale), (own.zeros(), own.zero)):
        if like is not None:
            spread = np.broadcast_to(numbers, integers.shape)
            arrays.append(_along(rearrange(verbs, spread), axis, like))
    alone = Operand.of(layer.node.inputs[2]).alone
    values = _put(store, writer, own, arrays, alone=alone, key=(verbs, decision.name))
    return _dequantised(writer, own, values, axis)


def on_integers(
    writer: Writer, layer: Layer, steps: Sequence[Step], operands: Operands
) -> tuple[ir.Value, list[int | None], Sequence[Step]]:
    """The first steps of a layer, as far as they only move values: they do so with its input's integers.

    They stand between a QuantizeLinear and a DequantizeLinear, both as the input has. The first undoes the
    DequantizeLinear of the input, and runtimes drop the two. ONNX Runtime turns pairs of int8 into pairs of
    uint8, and a convolution with one of each runs as floats: there each step stands between pairs.

    Returns:
        The dequantised map, its spatial sizes, and the other steps.
    """
    found, spec, x = layer.quantised, layer.spec, layer.node.inputs[0]
    assert found is not None
    assert spec is not None
    assert x is not None
    sizes, zero = list(layer.input_size), found.input_zero
    moved = tuple(itertools.takewhile(_only_moves, steps))
    in_bytes = zero is not None and zero.dtype in (np.int8, np.uint8)
    if not (moved and in_bytes and layer.opset >= _PAD_OF_BYTES):
        return x, sizes, steps
    assert zero is not None
    assert found.input is not None
    node = found.input

    def other(op_type: str, value: ir.Value) -> ir.Value:
        return writer.op(op_type, value, *node.inputs[1:], domain=node.domain)

    whole = zero.dtype == np.uint8
    for part in [moved] if whole else [(step,) for step in moved]:
        x = other("QuantizeLinear", x) if whole else x
        maps, sizes = writer.steps(part, x, operands, spec.in_channels, sizes)
        assert isinstance(maps, ir.Value)
        x = other("DequantizeLinear", maps if whole else other("QuantizeLinear", maps))
    return x, sizes, steps[len(moved) :]


def _only_moves(step: Step) -> bool:
    """Linear interpolation makes new values, and zeros are no integers where there is a zero point."""
    match step:
        case Resize(_, interpolation):
            return interpolation == "nearest"
        case Pad(_, mode):
            return mode != "zeros"
    return isinstance(step, Crop)


def _along(numbers: NDArray[Any], axis: int | None, like: NDArray[Any]) -> NDArray[Any]:
    """The one number, or those along an axis, in the type of the old ones."""
    if axis is None:
        return np.full(like.shape, numbers.flat[0], like.dtype)
    return np.moveaxis(numbers, axis, 0).reshape(numbers.shape[axis], -1)[:, 0].astype(like.dtype)


def _put(
    store: Store,
    writer: Writer,
    own: Integers,
    arrays: list[NDArray[Any]],
    *,
    alone: bool,
    key: Any,
) -> list[ir.Value]:
    """Integers, scales and zero points in the places of the old ones; what did not change stays."""
    values = []
    for old, array in zip(own.node.inputs, arrays, strict=False):
        assert old is not None
        before = store.read(old)
        if before is None or before.shape != array.shape or (before != array).any():
            old = store.put(writer, Operand.of(old, alone), array, key)
        values.append(old)
    return values


def _dequantised(
    writer: Writer, own: Integers, values: list[ir.Value], axis: int | None
) -> ir.Value:
    """The same DequantizeLinear on other values."""
    result = writer.op("DequantizeLinear", *values, domain=own.node.domain)
    attributes = writer.nodes[-1].attributes
    attributes.update({k: v for k, v in own.node.attributes.items() if k != "axis"})
    if axis is not None:
        attributes["axis"] = ir.AttrInt64("axis", axis)
    return result
