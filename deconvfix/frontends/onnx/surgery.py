"""One ConvTranspose node replaced by the nodes of its new form.

    ConvTranspose(x, W, b) -> Relu -> y    becomes   Conv(x, W', b') -> Relu, shuffle, crop -> y
    DQ -> ConvTranspose -> Relu -> Q -> y  becomes   DQ -> Conv -> Relu -> Q -> DQ, shuffle, crop -> Q -> y

The shuffle and the crop commute with everything that treats elements alike, or channels once their numbers
are repeated for the phases. So they follow it, and runtimes fuse it with the convolution (`tail`). The second
keeps the pattern that they execute in int8: the shuffle follows the QuantizeLinear, in a pair of its own that
changes no value (ONNX Runtime drops it, and runs int8 convolutions only where DQ follows Q). Nothing may
stand between DQ and Conv, so phases without a tap are computed from zero taps (zero points, once
quantised). Where these come as zeros behind the convolution, other tails stay behind the shuffle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from deconvfix.core.rearrange import Verb, rearrange
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import ConvTranspose, Crop, PhaseConvs, PixelShuffle, Step
from deconvfix.forms.base import Settings
from deconvfix.forms.windowed import verbs_of_phase
from deconvfix.frontends.onnx.find import DynamicSize, Layer
from deconvfix.frontends.onnx.integer_nodes import (
    on_integers,
    write_bias,
    write_kernel,
)
from deconvfix.frontends.onnx.pixel_shuffle import by_phase
from deconvfix.frontends.onnx.requantised import as_stored
from deconvfix.frontends.onnx.steps import NEWEST_WITHOUT_BROADCAST, Operands, Writer
from deconvfix.frontends.onnx.structured import Structures
from deconvfix.frontends.onnx.structures import structure_of
from deconvfix.frontends.onnx.tail import NO_TAIL, Tail, tail_of
from deconvfix.frontends.onnx.values import OLDEST_IR_WITH_FREE_INITIALIZERS, Operand
from deconvfix.frontends.onnx.weights import Store, Weights
from deconvfix.frontends.onnx.written import Written, written
from deconvfix.plan import Replaced
from deconvfix.targets.profile import NO_LIMITS, Profile

__all__ = ["Operation", "Surgeon"]


class Surgeon:
    """Replaces layers of one model.

    Args:
        model: The model, which is changed.
        profile: What the target accepts.
    """

    def __init__(self, model: ir.Model, profile: Profile = NO_LIMITS) -> None:
        self.model = model
        self.profile = profile
        self.store = Store(model)

    def replace(self, layer: Layer, decision: Replaced) -> None:
        """Carries out one decision of a plan."""
        if layer.quantised is not None:
            decision = as_stored(layer, decision)
        # Noted before the node is gone: what only it has used is removed last.
        operands = layer.node.inputs[1:]
        if decision.target.keeps_layer:
            self._set_weight(layer, decision)
        else:
            Operation(self, layer, decision).replace()
        for value in operands:
            self.remove_if_unused(value)

    def _set_weight(self, layer: Layer, decision: Replaced) -> None:
        writer = Writer(self.store.names, layer.name, layer.opset)
        operand = Operand.of(layer.node.inputs[1])
        if layer.quantised is not None:
            alone = operand.alone
            value = write_kernel(self.store, writer, layer, decision, None, alone=alone)
        else:
            assert layer.weight
            array = decision.kernel(layer.read_weight()).astype(layer.weight.dtype.numpy())
            # Layers that share a weight share the new one, if they get the same.
            key = (decision.spec, decision.settings, _own(decision))
            value = self.store.put(writer, operand, array, key)
        layer.node.replace_input_with(1, value)
        if decision.fitted is not None and decision.fitted.bias is not None:
            bias = self.fitted_bias(layer, decision, (), writer)
            layer.node.replace_input_with(2, bias)
        layer.graph.insert_before(layer.node, writer.nodes)
        (step,) = decision.compiled().steps
        assert isinstance(step, ConvTranspose)
        if step.spec.kernel_size != decision.spec.kernel_size:
            _set_geometry(layer.node, step.spec)

    def fitted_bias(
        self, layer: Layer, decision: Replaced, verbs: tuple[Verb, ...], writer: Writer
    ) -> ir.Value:
        """A new bias in the place of the stored one, rearranged."""
        assert decision.fitted is not None
        assert decision.fitted.bias is not None
        if layer.quantised is not None and layer.quantised.bias is not None:
            return write_bias(self.store, writer, layer, decision, verbs)
        operand = Operand.of(layer.node.inputs[2])
        old = self.store.read(operand.value)
        assert old is not None, "only what is stored is fitted"
        array = rearrange(verbs, decision.fitted.bias.astype(old.dtype))
        return self.store.put(writer, operand, array, (verbs, decision.name))

    def remove_if_unused(self, value: ir.Value | None) -> None:
        """Removes what only the replaced node has used: constants, and what computes with them."""
        if value is None or value.uses() or value.is_graph_output():
            return
        producer = value.producer()
        if producer is not None:
            # Another output of the same node may still be needed.
            if any(output.uses() or output.is_graph_output() for output in producer.outputs):
                return
            if producer.graph is None:
                return  # removed already, by another way to it
            operands = dict.fromkeys(producer.inputs)
            producer.graph.remove(producer, safe=True)
            for operand in operands:
                self.remove_if_unused(operand)
        elif value.is_initializer() and value.graph is not None:
            if value.is_graph_input():
                if self.model.ir_version >= OLDEST_IR_WITH_FREE_INITIALIZERS:
                    return  # callers may set it
                value.graph.inputs.remove(value)
            graph = value.graph
            if graph is not None:
                graph.initializers.pop(str(value.name), None)


def _own(decision: Replaced) -> str | None:
    """What was fitted to data is the layer's own, even where the weight was shared."""
    return None if decision.fitted is None else decision.name


def _set_geometry(node: ir.Node, spec: ConvTransposeSpec) -> None:
    """Kernel and padding in plain numbers: auto_pad and output_shape would mean others now.

    ONNX Runtime refuses an output_padding of a stride or more, which an output_shape may have asked for.
    A pixel that is appended at the end is one pixel less of the padding there.
    """
    # As much as there is padding to take it from; the rest stays an output_padding.
    both = [min(e, op) for (_, e), op in zip(spec.padding, spec.output_padding, strict=True)]
    begins = [b for b, _ in spec.padding]
    ends = [e - more for (_, e), more in zip(spec.padding, both, strict=True)]
    rest = [op - more for op, more in zip(spec.output_padding, both, strict=True)]
    for name in ("auto_pad", "output_padding", "output_shape"):
        node.attributes.pop(name, None)
    node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", list(spec.kernel_size))
    node.attributes["pads"] = ir.AttrInt64s("pads", begins + ends)
    if any(rest):
        node.attributes["output_padding"] = ir.AttrInt64s("output_padding", rest)


class Operation:
    """One layer of one model.

    Args:
        surgeon: Of the model.
        layer: The layer.
        decision: What it becomes.
    """

    def __init__(self, surgeon: Surgeon, layer: Layer, decision: Replaced) -> None:
        self.surgeon = surgeon
        self.layer = layer
        self.decision = decision
        self.form = decision.target
        self.settings: Settings = decision.settings
        self.node = layer.node
        self.dynamic: DynamicSize | None = layer.dynamic_size
        self.spec: ConvTransposeSpec = decision.spec
        self.structured = structure_of(layer, decision)
        if self.structured is not None:
            self.spec = self.structured.layer.spec
        if self.dynamic is not None:
            # Up to s - 1 positions of bias alone may follow: ONNX Runtime refuses more.
            more = zip(self.spec.output_padding, self.spec.stride, strict=True)
            self.spec = replace(self.spec, output_padding=tuple(op + s - 1 for op, s in more))
        # The prefix of the new names: the node's own name, unique by the fresh names.
        own = layer.node.name or layer.node.outputs[0].name or "ConvTranspose"
        self.writer = Writer(
            surgeon.store.names, own, layer.opset, like=layer.node, profile=surgeon.profile
        )
        self.weights = Weights(surgeon.store, self.writer, self.spec)
        # Nodes of the model itself, in another place.
        self.copied: set[ir.Node] = set()

    def replace(self) -> None:
        """Writes the new nodes, and puts their result under the name of the old one."""
        y, tail = self.write()
        # The result takes the name of the old one, so that nothing behind it changes.
        replaced = [self.node, *tail.nodes]
        own = {value for node in replaced for value in node.outputs}
        operands = [value for node in tail.nodes for value in node.inputs if value not in own]
        old = replaced[-1].outputs[0]
        y.metadata_props.update(old.metadata_props)
        y.doc_string = old.doc_string
        ir.convenience.replace_nodes_and_values(
            self.layer.graph, replaced[-1], replaced, self.writer.nodes, [old], [y]
        )
        for value in operands:
            self.surgeon.remove_if_unused(value)

    def write(self) -> tuple[ir.Value, Tail]:
        """Writes the new nodes; their result, and what they replace behind the layer."""
        found = self.structured
        if found is not None and found.structure != "reduced":
            ways = Structures(self.writer, self.surgeon.store, self.layer, self.form, self._bias)
            return ways.written(found), NO_TAIL
        steps, tail = self._planned()
        # Conv with its pads first, then the tail, the shuffle, and the crop.
        x, spec = self.node.inputs[0], self.spec
        assert x is not None
        operands = Operands(
            self._weights(steps), self._bias(steps.bias), np.dtype(self.layer.dtype)
        )
        before: Sequence[Step] = steps.before
        sizes = list(self.layer.input_size)
        if self.layer.quantised is not None and not self.form.is_exact:
            x, sizes, before = on_integers(self.writer, self.layer, before, operands)
        maps, sizes = self.writer.steps(before, x, operands, spec.in_channels, sizes)
        if isinstance(maps, list):
            maps = [self._tailed(tail, y, (), moves=True) for y in maps]
        else:
            maps = self._tailed(tail, maps, steps.bias, moves=self._moves(steps))
        maps, _ = self.writer.steps(
            steps.after, maps, operands, steps.channels, sizes, self.settings.shuffle
        )
        # One phase needs no shuffle to become one map.
        y = maps if isinstance(maps, ir.Value) else maps[0]
        if self.dynamic is not None:
            y = self._dynamic_crop(x, y)
        if tail.quantised:
            y = self._again(tail.nodes[-1], [y])
        return y, tail

    def tail(self) -> Tail:
        """What comes before the shuffle."""
        found = self.structured
        if found is not None and found.structure != "reduced":
            return NO_TAIL
        return self._planned()[1]

    def _planned(self) -> tuple[Written, Tail]:
        """The form as ONNX writes it, and what comes between its convolution and its shuffle."""
        tail = tail_of(self.layer) if self.form.is_exact else NO_TAIL
        # A quantised layer needs DQ -> Conv with nothing between, and old opsets have no Add that broadcasts
        # a bias later on.
        plain = tail.quantised or self.layer.opset <= NEWEST_WITHOUT_BROADCAST
        plain = (plain or self._fills_phases()) and self.settings.convolution in (None, "cropped")
        steps = written(self.form, self.spec, self.settings, plain=plain)
        # Zeros and a bias that come behind the convolution must come before the tail.
        moved = self._moves(steps) and all(isinstance(s, PixelShuffle | Crop) for s in steps.after)
        return steps, tail if tail.quantised or moved else NO_TAIL

    def _fills_phases(self) -> bool:
        """Whether phases without a tap need kernels of zeros: nothing may stand before the shuffle."""
        forbidden = {"Gather", "Pad"} & set(self.writer.profile.forbidden)
        return by_phase(self.settings.shuffle) or bool(forbidden)

    def _moves(self, steps: Written) -> bool:
        """Whether something moves values behind the convolution."""
        return bool(steps.after) or self.dynamic is not None

    def _tailed(self, tail: Tail, y: ir.Value, verbs: tuple[Verb, ...], *, moves: bool) -> ir.Value:
        """The tail on a convolution's result: each value is treated alike wherever it lies.

        Args:
            tail: The tail.
            y: The result.
            verbs: From a number for each channel of the layer to one for each of the result.
            moves: Whether something moves values behind it.
        """
        nodes = tail.nodes[:-1] if tail.quantised else tail.nodes
        # Values of the old nodes, and what stands for them.
        new: dict[ir.Value | None, ir.Value] = {self.node.outputs[0]: y}
        for node in nodes:
            operands = [new.get(value, value) for value in node.inputs]
            for index in tail.channel_operands[node]:
                operands[index] = self._repeated(operands[index], verbs)
            y = new[node.outputs[0]] = self._again(node, operands)
            self.copied.add(self.writer.nodes[-1])
        if not (tail.quantised and moves):
            return y
        # The shuffle works on the quantised numbers, so that the Conv before it stays an integer one.
        quantize = tail.nodes[-1]
        y = self._again(quantize, [y], what="QuantizeLinear")
        return self.writer.op("DequantizeLinear", y, *quantize.inputs[1:], domain=quantize.domain)

    def _again(
        self, node: ir.Node, operands: Sequence[ir.Value | None], what: str = ""
    ) -> ir.Value:
        """A node of the tail on other values, and on its own from where they end.

        It keeps its name, unless it is `what` or was written before.
        """
        inputs = [*operands, *node.inputs[len(operands) :]]
        result = self.writer.op(node.op_type, *inputs, domain=node.domain, what=what)
        copied = self.writer.nodes[-1]
        if not what and all(node.name != other.name for other in self.writer.nodes):
            copied.name = node.name
        copied.doc_string = node.doc_string
        copied.attributes.update(node.attributes)
        copied.metadata_props.clear()
        copied.metadata_props.update(node.metadata_props)
        return result

    def _repeated(self, value: ir.Value | None, verbs: tuple[Verb, ...]) -> ir.Value | None:
        """A number for each channel, as one for each channel of the convolution's result."""
        if not verbs:
            return value
        operand = Operand.of(value)
        array = self.surgeon.store.read(operand.value)
        assert array is not None, "only what is stored moves"
        shape = [-1 if n > 1 else 1 for n in array.shape] if array.size > 1 else [-1]
        new = rearrange(verbs, array.reshape(-1)).reshape(shape)
        return self.surgeon.store.put(self.writer, operand, new, (verbs, "channels"))

    # --- operands ---

    def _weights(self, steps: Written) -> list[ir.Value]:
        operand = Operand.of(self.node.inputs[1])
        convs = steps.before[-1]
        if not isinstance(convs, PhaseConvs):
            return [self._weight(operand, steps.weight)]
        # Each is a part of the old one, which they cannot replace in its own place.
        operand = Operand.of(operand.value, alone=False)
        return [
            self._weight(operand, verbs_of_phase(phase, convs.kernel_size))
            for phase in convs.phases
        ]

    def _weight(self, operand: Operand, verbs: tuple[Verb, ...]) -> ir.Value:
        # Fitted kernels are computed here in float64, and rounded once.
        if not self.form.is_exact and self.layer.quantised is not None:
            store, writer, alone = self.surgeon.store, self.writer, operand.alone
            return write_kernel(store, writer, self.layer, self.decision, verbs, alone=alone)
        if not self.form.is_exact:
            assert self.layer.weight
            kernel = self.decision.kernel(self.layer.read_weight())
            array = rearrange(verbs, kernel, self.spec.groups)
            array = array.astype(self.layer.weight.dtype.numpy())
            key = (verbs, self.settings, _own(self.decision))
            return self.surgeon.store.put(self.writer, operand, array, key)
        if self.structured is not None:
            array = rearrange(verbs, self.structured.layer.weight, self.spec.groups)
            return self.surgeon.store.put(self.writer, operand, array, (verbs, self.spec))
        return self.weights.rearranged(operand, verbs, self.spec.weight_shape)

    def _bias(self, verbs: tuple[Verb, ...]) -> ir.Value | None:
        old = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        fitted = self.decision.fitted
        if fitted is not None and fitted.bias is not None:
            return self.surgeon.fitted_bias(self.layer, self.decision, verbs, self.writer)
        # A bias that need not be rearranged is used as it is, shared or not.
        if old is None or not verbs:
            return old
        return self.weights.rearranged(Operand.of(old), verbs, (self.spec.out_channels,))

    # --- sizes that are known at run time only ---

    def _dynamic_crop(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """y from `begin` on, begin = floor or ceil of max(0, (L - 1)*s + K + op - L_out) / 2."""
        assert self.dynamic is not None
        spec, write = self.layer.spec, self.writer
        assert spec is not None
        n = spec.ndim
        # Per axis K + op - s - L_out, which with L*s added is natural - L_out.
        rest = [
            big_k + op - s - length
            for big_k, op, s, length in zip(
                spec.effective_kernel_size,
                spec.output_padding,
                spec.stride,
                self.dynamic.output_size,
                strict=True,
            )
        ]

        def numbers(values: Sequence[float], dtype: Any) -> ir.Value:
            return write.constant(np.array(values, dtype), "numbers")

        size = write.gather(write.op("Shape", x), range(2, n + 2), 0)
        # Relu and halves in float32: sizes are exact there.
        size = write.op("Cast", size, to=int(ir.DataType.FLOAT))
        natural = write.op("Mul", size, numbers(spec.stride, np.float32))
        cut = write.op("Relu", write.op("Add", natural, numbers(rest, np.float32)))
        half = write.op("Mul", cut, numbers([0.5] * n, np.float32))
        half = write.op("Floor" if self.dynamic.begin_floor else "Ceil", half)
        begin = write.op("Cast", half, to=int(ir.DataType.INT64))
        end = write.op("Add", begin, numbers(self.dynamic.output_size, np.int64))
        return write.op("Slice", y, begin, end, numbers(range(2, n + 2), np.int64))
