"""Weights and biases of an ONNX model in the layout of a new form.

Stored ones are rearranged now, everything else in the graph. Through QuantizeLinear and DequantizeLinear
the rearrangement goes on to what they quantise: per channel, axis 1 of the transposed convolution's
weight becomes axis 0, each scale and zero point repeated for the phases of its channel. Axis 0, the input
channels, becomes axis 1 in a layer without groups, and stays axis 0 in a depthwise one.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.rearrange import Verb, rearrange
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.frontends.onnx.steps import Writer
from deconvfix.frontends.onnx.values import (
    FOLDED,
    OLDEST_IR_WITH_FREE_INITIALIZERS,
    Names,
    Operand,
    constant,
    is_quantizer,
)

__all__ = ["Scales", "Store", "Weights", "scales_of"]

# Whom the scales of quantised values serve: all of them, output channels, or input channels, of which a
# depthwise layer has one in each group.
Scales = Literal["all", "outputs", "inputs", "groups"]


def scales_of(
    node: ir.Node, scale: NDArray[Any], shape: tuple[int, ...], spec: ConvTransposeSpec
) -> Scales | None:
    """How the scales of a quantised weight or bias lie.

    Args:
        node: Its QuantizeLinear or DequantizeLinear.
        scale: The scales.
        shape: Of the weight or bias.
        spec: The layer.

    Returns:
        None where they would differ within the rows and columns of the convolution's weight, so that it
        cannot be stored as integers.
    """
    blocks = node.attributes.get("block_size")
    if blocks is not None and blocks.value:
        return None
    if scale.size <= 1:
        return "all"
    axis = (node.attributes["axis"].as_int() if "axis" in node.attributes else 1) % len(shape)
    # A bias has the output channels alone.
    if len(shape) > 1 and axis == 0:
        if spec.groups == 1:
            return "inputs"
        return "groups" if spec.groups == spec.in_channels else None
    return "outputs" if axis == min(1, len(shape) - 1) else None


class Store:
    """The stored tensors of one model; weights that several layers share stay shared."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.names = Names(model)
        self._stored: dict[Any, ir.Value] = {}

    def put(self, writer: Writer, operand: Operand, array: NDArray[Any], key: Any) -> ir.Value:
        """Keeps a new weight where the old one was: under its name, if nothing else uses that.

        Args:
            writer: Writes a Constant node where there can be no initializer.
            operand: The initializer, or output of a Constant node, that it comes from.
            array: The new values.
            key: What was done to the old ones: equal keys give equal arrays.
        """
        old = operand.value
        # Rearranged for another layer already.
        if (old, key) in self._stored:
            return self._stored[old, key]
        owner = old.graph
        free = self.model.ir_version >= OLDEST_IR_WITH_FREE_INITIALIZERS
        array = np.ascontiguousarray(array)
        if FOLDED in old.meta and free and owner is self.model.graph:
            # The expression goes, if nothing else uses it.
            value = self.names.initializer(array, owner, f"{old.name}_{writer.prefix}")
            self._stored[old, key] = value
            return value
        # Functions have no initializers, and old IR versions have them in the main graph alone.
        if not old.is_initializer() or owner is None or not (free or owner is self.model.graph):
            return writer.constant(array, (old.name or "weight").rpartition("/")[2])
        # In its own place, so that the file keeps the weight's name.
        if operand.alone:
            old.const_value = ir.tensor(array, name=old.name)
            old.shape = ir.Shape(array.shape)
            return old
        value = self.names.initializer(array, owner, f"{old.name}_{writer.prefix}")
        self._stored[old, key] = value
        return value

    def read(self, value: ir.Value | None) -> NDArray[Any] | None:
        """The stored values behind a value, or None."""
        tensor = constant(value, self.model.ir_version)
        return None if tensor is None else np.asarray(tensor.numpy())


class Weights:
    """Rearranges the operands of one layer.

    Args:
        store: The tensors of the model.
        writer: Writes what is rearranged in the graph.
        spec: The layer.
    """

    def __init__(self, store: Store, writer: Writer, spec: ConvTransposeSpec) -> None:
        self.store = store
        self.writer = writer
        self.spec = spec

    def rearranged(
        self, operand: Operand, verbs: tuple[Verb, ...], shape: tuple[int, ...]
    ) -> ir.Value:
        """The same operand, of the given shape, in the layout of the convolution."""
        groups = self.spec.groups
        array = self.store.read(operand.value)
        # Stored values now, quantised ones behind their node, everything else at run time.
        if array is not None:
            new = rearrange(verbs, array, groups)
            return self.store.put(self.writer, operand, new, (verbs, groups))
        producer = operand.value.producer()
        if producer is not None and is_quantizer(producer, "DequantizeLinear", "QuantizeLinear"):
            quantised = self._requantised(producer, operand.alone, verbs, shape)
            if quantised is not None:
                return quantised
        return self.writer.rearrange(verbs, operand.value, shape, groups)

    def _channels_of_rows(
        self, verbs: tuple[Verb, ...], shape: tuple[int, ...], axis: int
    ) -> NDArray[Any]:
        """Which channel along an axis of the old weight (or bias) each row of the new one is made of."""
        axis = min(axis, len(shape) - 1)
        numbers = np.arange(shape[axis]).reshape(-1, *(1,) * (len(shape) - 1 - axis))
        rows = rearrange(verbs, np.broadcast_to(numbers, shape), self.spec.groups, "copies")
        return rows.reshape(len(rows), -1)[:, 0]

    def _requantised(
        self, node: ir.Node, alone: bool, verbs: tuple[Verb, ...], shape: tuple[int, ...]
    ) -> ir.Value | None:
        """The same QuantizeLinear or DequantizeLinear on rearranged values; None if it cannot be."""
        # What the node has, what can be done with it, then values, scales, zero points, node.
        inner, scale_value, zero_value = [*node.inputs, None, None][:3]
        scale, zero = self.store.read(scale_value), self.store.read(zero_value)
        unreadable = zero_value is not None and zero is None
        if inner is None or scale is None or unreadable:
            return None
        layout = scales_of(node, scale, shape, self.spec)
        if layout is None:
            return None
        repeated = layout in ("outputs", "groups")
        rows = self._channels_of_rows(verbs, shape, 0 if layout == "groups" else 1)

        def per_phase(channels: NDArray[Any]) -> NDArray[Any]:
            return channels[rows] if repeated else channels

        values = self.store.read(inner)
        offset = node.op_type == "DequantizeLinear" and zero is not None and zero.astype(bool).any()
        if values is not None:
            new = rearrange(verbs, values, self.spec.groups)
            key: tuple[Any, ...] = (verbs, self.spec.groups)
            if offset:
                # What is appended must mean zero.
                assert zero is not None
                kept = rearrange(verbs, np.ones(shape, np.bool_), self.spec.groups)
                zeros = per_phase(zero.reshape(-1)).reshape(-1, *(1,) * (new.ndim - 1))
                zeros = np.moveaxis(zeros, 0, 1) if layout == "inputs" else zeros
                new = np.where(kept, new, zeros)
                key = (*key, zero.tobytes())
            quantised = self.store.put(self.writer, Operand.of(inner, alone), new, key)
        elif offset:
            return None  # zeros that are appended in the graph would not mean zero
        else:
            quantised = self.rearranged(Operand.of(inner, alone), verbs, shape)
        operands = [quantised]
        # One scale for the whole tensor holds for any layout.
        for value, array in ((scale_value, scale), (zero_value, zero)):
            if value is None or array is None or not repeated:
                operands += [] if value is None else [value]
                continue
            new = per_phase(array.reshape(-1))
            operands.append(
                self.store.put(self.writer, Operand.of(value, alone), new, (rows.tobytes(),))
            )
        result = self.writer.op(node.op_type, *operands, domain=node.domain)
        attributes = self.writer.nodes[-1].attributes
        attributes.update({k: attribute for k, attribute in node.attributes.items() if k != "axis"})
        if layout != "all":
            attributes["axis"] = ir.AttrInt64("axis", 1 if layout == "inputs" else 0)
        return result
