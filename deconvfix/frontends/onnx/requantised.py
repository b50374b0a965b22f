"""The new weights of quantised layers: fitted as floats, rounded to integers again, and written.

The integers keep their type, their zero points, and the axis of their scales. A scale stays as it was where
the new kernel fits, and grows as far as it must. Taps are rounded together (`fit.integers`), so that what
is free of the grid by its phase sums is so in integers. The bias of integers gets the scale that runtimes
ask for, that of the input times that of the weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.decibels import LOWEST_DB
from deconvfix.core.phases import phase_of_taps
from deconvfix.core.rearrange import Verb, rearrange
from deconvfix.core.steps import Crop, Pad, Resize, Step
from deconvfix.errors import ModelError
from deconvfix.fit.integers import rounded_with_sums
from deconvfix.fit.least_squares import relative_distance
from deconvfix.frontends.onnx.find import Layer
from deconvfix.frontends.onnx.integers import Integers, Quantised
from deconvfix.frontends.onnx.steps import Operands, Writer
from deconvfix.frontends.onnx.values import Operand
from deconvfix.frontends.onnx.weights import Store
from deconvfix.grid.kernel import ripple_db
from deconvfix.plan import Fitted, Replaced

__all__ = [
    "as_stored",
    "on_integers",
    "same_kernel",
    "steps_on_integers",
    "write_bias",
    "write_kernel",
]

Array = NDArray[np.float64]
# A tap may be so much larger than the largest integer times the scale: less than rounding it moves.
_SLACK = 1e-3
# A kernel that divides does so to float32 (`forms.resize`).
_EXACT = 1e-6
# Pad takes bytes from this opset on.
_PAD_OF_BYTES = 13
# Scales of a bias that are those of a product, in float32 or narrower.
_SAME = 1e-3


def as_stored(layer: Layer, decision: Replaced) -> Replaced:
    """A decision with the kernel, and the bias where it changes, as a quantised layer stores them.

    Floating-point layers, and forms that rearrange the integers, are left as they are.

    Raises:
        ModelError: If the integers of the bias cannot hold it.
    """
    own, fitted = layer.quantised, decision.fitted
    if (
        own is None
        or decision.target.is_exact
        or (fitted is not None and fitted.scales is not None)
    ):
        return decision
    kernel = decision.kernel(layer.read_weight())
    scales = _scales(own.weight, kernel, decision)
    taps = _rounded(own.weight, kernel / scales, decision)
    bias = None if fitted is None else fitted.bias
    if own.bias is not None:
        steps = _bias_scales(own, scales, decision)
        if bias is None and not np.array_equal(steps, own.bias.scales()):
            bias = own.bias.real()
        if bias is not None:
            bias = _bias_integers(own.bias, bias, steps, decision) * steps
    words = _in_words(own.weight, taps, scales, decision)
    return replace(
        decision,
        fitted=Fitted(taps * scales, bias, scales),
        reason=f"{decision.reason}; {words}",
    )


def _in_words(own: Integers, taps: Array, scales: Array, decision: Replaced) -> str:
    """What rounding did, for the report."""
    target = decision.target
    spread = target.spread(decision.spec, decision.settings, taps)
    even = target.evens_sums and ripple_db(*spread) <= LOWEST_DB
    before = _widened(own.scales(), decision, _copies(taps, decision))
    grown = float((scales / before).max(initial=1))
    return (
        f"rounded to {own.stored.dtype.name.lower()}"
        f"{' with equal phase sums' if even else ''}"
        f"{'' if grown == 1 else f', scales up to x{grown:.3g}'}"
    )


def same_kernel(layer: Layer, stored: Replaced) -> bool:
    """Whether rounding left a kernel as it is, to what a fit may round."""
    assert stored.fitted is not None
    kernel = replace(stored, fitted=None).kernel(layer.read_weight())
    return relative_distance(stored.fitted.kernel, kernel) <= _EXACT


def _copies(kernel: Array, decision: Replaced) -> int:
    """How many kernels there are for each channel of the layer."""
    return len(kernel) // decision.spec.in_channels


def _widened(numbers: NDArray[Any], decision: Replaced, copies: int = 1) -> NDArray[Any]:
    """Numbers (C_in or 1, C_out / groups or 1, 1 ...) for the copies of each channel, group by group."""
    if len(numbers) == 1 or copies == 1:
        return numbers
    # (C_in, ...) -> (g, 1, C_in/g, ...) -> (g, copies, C_in/g, ...)
    parts = numbers.reshape(decision.spec.groups, 1, -1, *numbers.shape[1:])
    return np.repeat(parts, copies, 1).reshape(-1, *numbers.shape[1:])


def _scales(own: Integers, kernel: Array, decision: Replaced) -> Array:
    """The scales of a new kernel, (C_in or 1, C_out / groups or 1, 1 ...)."""
    copies = _copies(kernel, decision)
    low, high = (_widened(limit, decision, copies) for limit in own.limits())
    # What each tap asks of its scale, then the largest of all that have the same one.
    needed = np.maximum(kernel / high, kernel / low)
    old = own.scales()
    taps = tuple(range(2, kernel.ndim))
    needed = needed.max(taps, keepdims=True)
    if old.shape[1] == 1:
        needed = needed.max(1, keepdims=True)
    if len(old) == 1:
        needed = needed.max(0, keepdims=True)
    else:
        groups = needed.reshape(decision.spec.groups, copies, -1, *needed.shape[1:])
        needed = groups.max(1).reshape(-1, *needed.shape[1:])
    larger = needed.astype(own.scale.dtype).astype(np.float64)
    new = np.where(needed <= old * (1 + _SLACK), old, larger)
    return _widened(new, decision, copies)


def _rounded(own: Integers, taps: Array, decision: Replaced) -> Array:
    """Taps in units of their scales, as integers; the copies of a channel share their sums."""
    spec, settings = decision.spec, decision.settings
    copies = _copies(taps, decision)
    size = taps[0, 0].size
    everything = np.arange(copies * size)
    phases = [everything]
    if decision.target.evens_sums:
        grown, _ = decision.target.spread(spec, settings, taps)
        number = np.zeros((), np.int64)
        axes = phase_of_taps(grown.kernel_size, grown.stride, grown.dilation)
        for phase, s in zip(axes, grown.stride, strict=True):
            number = np.add.outer(number * s, phase)
        each = np.tile(number.ravel(), copies)
        phases = [everything[each == f] for f in np.unique(each)]
    # (copies*C_in, C_out/g, *k) -> (g, copies, C_in/g, C_out/g, k) -> (C_in*C_out/g, copies*k)
    parts = taps.reshape(spec.groups, copies, -1, taps.shape[1], size)
    ordered = np.moveaxis(parts, 1, 3)
    pairs = (spec.in_channels, taps.shape[1])
    low, high = (
        np.broadcast_to(limit.reshape(limit.shape[:2]), pairs).ravel() for limit in own.limits()
    )
    rounded = rounded_with_sums(ordered.reshape(-1, copies * size), phases, low, high)
    return np.moveaxis(rounded.reshape(ordered.shape), 3, 1).reshape(taps.shape).astype(np.float64)


# --- the bias ------------------------------------------------------------------------------------------


def _of_outputs(scales: Array, decision: Replaced) -> Array | None:
    """The weight's scale for each output channel, (C_out,) or (1,); None where input channels have them."""
    spec = decision.spec
    if scales.size == 1:
        return scales.reshape(1)
    if len(scales) == 1:
        return np.tile(scales.reshape(-1), spec.groups)
    if spec.groups < spec.in_channels or spec.groups == 1:
        return None
    # Of a depthwise layer, with its copies: (C_in * copies) -> (C_in) -> (C_out)
    first = scales.reshape(spec.groups, -1)[:, 0]
    return np.repeat(first, spec.out_channels // spec.groups)


def _bias_scales(own: Quantised, scales: Array, decision: Replaced) -> Array:
    """The scales of the bias, for new scales of the weight: as they were where they are no product."""
    assert own.bias is not None
    old, new = (_of_outputs(s, decision) for s in (own.weight.scales(), scales))
    current = own.bias.scales()
    if own.input_scale is None or old is None or new is None:
        return current
    step = float(own.input_scale.reshape(-1)[0])
    if not np.allclose(current, step * old, rtol=_SAME, atol=0) or np.array_equal(old, new):
        return current
    return (step * new).astype(own.bias.scale.dtype).astype(np.float64)


def _bias_integers(own: Integers, bias: Array, scales: Array, decision: Replaced) -> Array:
    """A bias in units of its scales."""
    steps = np.rint(bias / scales)
    info = np.iinfo(np.int32)
    zeros = own.zeros()
    if not ((steps + zeros >= info.min) & (steps + zeros <= info.max)).all():
        raise ModelError(
            decision.name,
            "its new bias is larger than int32 can hold in units of its scale",
            "the scale is that of the input times that of the weight",
            "Quantise the model again with inputs of its real range, or exclude this layer",
        )
    return steps


# --- what is written -----------------------------------------------------------------------------------


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
    zeros = _widened(own.zeros(), decision, _copies(fitted.kernel, decision))
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
    scales = _bias_scales(found, fitted.scales, decision)
    integers = _bias_integers(own, fitted.bias, scales, decision).astype(np.int64) + own.zeros()
    arrays = [rearrange(verbs, integers).astype(own.stored.dtype.numpy())]
    axis = None if own.layout == "all" else 0
    for numbers, like in ((scales, own.scale), (own.zeros(), own.zero)):
        if like is not None:
            spread = np.broadcast_to(numbers, integers.shape)
            arrays.append(_along(rearrange(verbs, spread), axis, like))
    alone = Operand.of(layer.node.inputs[2]).alone
    values = _put(store, writer, own, arrays, alone=alone, key=(verbs, decision.name))
    return _dequantised(writer, own, values, axis)


def steps_on_integers(layer: Layer, steps: Sequence[Step]) -> tuple[Step, ...]:
    """The first steps of a layer that only move values: they do so with the integers of its input.

    ONNX Runtime runs Resize and Pad on bytes, and the convolution behind them in integers. Zeros are no
    integers of the input where it has a zero point, and linear interpolation makes new values.
    """
    found = layer.quantised
    zero = None if found is None else found.input_zero
    if zero is None or layer.opset < _PAD_OF_BYTES or zero.dtype not in (np.int8, np.uint8):
        return ()
    return tuple(itertools.takewhile(_only_moves, steps))


def _only_moves(step: Step) -> bool:
    match step:
        case Resize(_, interpolation):
            return interpolation == "nearest"
        case Pad(_, mode):
            return mode != "zeros"
    return isinstance(step, Crop)


def on_integers(
    writer: Writer, layer: Layer, steps: Sequence[Step], operands: Operands
) -> tuple[ir.Value, list[int | None]]:
    """Steps between a QuantizeLinear of a layer's input and a DequantizeLinear, both as the input has.

    The first undoes the DequantizeLinear of the input, and runtimes drop the two. ONNX Runtime turns pairs
    of int8 into pairs of uint8, and a convolution with one of each runs as floats: there each step stands
    between pairs.

    Returns:
        The dequantised map, and its spatial sizes.
    """
    found, spec, x = layer.quantised, layer.spec, layer.node.inputs[0]
    assert found is not None
    assert found.input is not None
    assert found.input_zero is not None
    assert spec is not None
    assert x is not None
    node, sizes = found.input, list(layer.input_size)

    def other(op_type: str, value: ir.Value) -> ir.Value:
        return writer.op(op_type, value, *node.inputs[1:], domain=node.domain)

    whole = found.input_zero.dtype == np.uint8
    for part in [steps] if whole else [(step,) for step in steps]:
        x = other("QuantizeLinear", x) if whole else x
        maps, sizes = writer.steps(part, x, operands, spec.in_channels, sizes)
        assert isinstance(maps, ir.Value)
        x = other("DequantizeLinear", maps if whole else other("QuantizeLinear", maps))
    return x, sizes


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
