"""One ConvTranspose node replaced by the nodes of its new form.

    ConvTranspose(x, W, b) -> y            becomes   Conv(x, W', b'), shuffle, crop -> y
    DQ -> ConvTranspose -> Relu -> Q -> y  becomes   DQ -> Conv -> Relu -> Q -> DQ, shuffle, crop -> Q -> y

The second keeps the pattern that runtimes execute in int8: the shuffle and the crop commute with
everything that treats elements alike, so they follow the QuantizeLinear, in a pair of their own that
changes no value (ONNX Runtime drops it, and runs int8 convolutions only where DQ follows Q). Nothing may
stand between DQ and Conv, so phases without a tap are computed from zero taps (zero points, once
quantised).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.rearrange import Merge, Split, Verb, ZeroExtend, rearrange
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Conv, ConvTranspose, Crop, Step
from deconvfix.forms.base import Compiled, Settings
from deconvfix.frontends.onnx.find import DynamicSize, Layer
from deconvfix.frontends.onnx.steps import NEWEST_WITHOUT_BROADCAST, Writer
from deconvfix.frontends.onnx.values import (
    DEFAULT_DOMAINS,
    OLDEST_IR_WITH_FREE_INITIALIZERS,
    Operand,
    constant,
    is_quantizer,
)
from deconvfix.frontends.onnx.weights import Store, Weights
from deconvfix.plan import Replaced

__all__ = ["Surgeon", "quantised_tail"]

# Functions of each element alone, which runtimes fuse between a convolution and QuantizeLinear.
_ELEMENTWISE = ("Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh")


class Surgeon:
    """Replaces layers of one model.

    Args:
        model: The model, which is changed.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.store = Store(model)

    def replace(self, layer: Layer, decision: Replaced) -> None:
        """Carries out one decision of a plan."""
        # Noted before the node is gone: what only it has used is removed last.
        operands = layer.node.inputs[1:]
        if decision.target.keeps_layer:
            self._set_weight(layer, decision)
        else:
            _Operation(self, layer, decision).replace()
        for value in operands:
            self._remove_if_unused(value)

    def _set_weight(self, layer: Layer, decision: Replaced) -> None:
        assert layer.weight
        new = decision.kernel(layer.read_weight())
        writer = Writer(self.store.names, layer.name, layer.opset)
        array = new.astype(layer.weight.dtype.numpy())
        # Layers that share a weight share the new one, if they get the same.
        key = (decision.spec, decision.settings, _own(decision))
        value = self.store.put(writer, Operand.of(layer.node.inputs[1]), array, key)
        layer.node.replace_input_with(1, value)
        if decision.fitted is not None and decision.fitted.bias is not None:
            bias = self.fitted_bias(layer.node, decision.fitted.bias, (), writer, layer.name)
            layer.node.replace_input_with(2, bias)
        layer.graph.insert_before(layer.node, writer.nodes)
        (step,) = decision.compiled().steps
        assert isinstance(step, ConvTranspose)
        if step.spec.kernel_size != decision.spec.kernel_size:
            _set_geometry(layer.node, step.spec)

    def fitted_bias(
        self,
        node: ir.Node,
        bias: NDArray[np.float64],
        verbs: tuple[Verb, ...],
        writer: Writer,
        name: str,
    ) -> ir.Value:
        """A new bias in the place of the stored one, rearranged; `name` is that of the layer."""
        operand = Operand.of(node.inputs[2])
        old = self.store.read(operand.value)
        assert old is not None, "only what is stored is fitted"
        array = rearrange(verbs, bias.astype(old.dtype))
        return self.store.put(writer, operand, array, (verbs, name))

    def _remove_if_unused(self, value: ir.Value | None) -> None:
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
                self._remove_if_unused(operand)
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


def quantised_tail(node: ir.Node) -> list[ir.Node]:
    """The elementwise nodes and the QuantizeLinear that follow, if both sides are quantised."""
    x = node.inputs[0]
    source = None if x is None else x.producer()
    if source is None or not is_quantizer(source, "DequantizeLinear"):
        return []
    tail: list[ir.Node] = []
    value = node.outputs[0]
    # What has a second reader, or is an output itself, must keep its layout.
    while not value.is_graph_output() and len(value.uses()) == 1:
        ((following, index),) = value.uses()
        if index != 0 or following.graph is not node.graph:
            break
        tail.append(following)
        if is_quantizer(following, "QuantizeLinear"):
            scale = following.inputs[1]
            tensor = None if scale is None else constant(scale, 0)
            # A scale per channel counts channels, which the shuffle moves.
            return tail if tensor is not None and tensor.size == 1 else []
        if following.op_type not in _ELEMENTWISE or following.domain not in DEFAULT_DOMAINS:
            break
        value = following.outputs[0]
    return []


@dataclass(frozen=True)
class _Written:
    """The exact form as ONNX writes it: what to do before the shuffle, and after."""

    weight: tuple[Verb, ...]
    bias: tuple[Verb, ...]
    before: tuple[Step, ...]
    after: tuple[Step, ...]


class _Operation:
    """One layer of one model."""

    def __init__(self, surgeon: Surgeon, layer: Layer, decision: Replaced) -> None:
        self.surgeon = surgeon
        self.layer = layer
        self.decision = decision
        self.form = decision.target
        self.settings: Settings = decision.settings
        self.node = layer.node
        self.dynamic: DynamicSize | None = layer.dynamic_size
        self.spec: ConvTransposeSpec = decision.spec
        if self.dynamic is not None:
            # Up to s - 1 positions of bias alone may follow: ONNX Runtime refuses more.
            more = zip(self.spec.output_padding, self.spec.stride, strict=True)
            self.spec = replace(self.spec, output_padding=tuple(op + s - 1 for op, s in more))
        # The prefix of the new names: the node's own name, unique by the fresh names.
        own = layer.node.name or layer.node.outputs[0].name or "ConvTranspose"
        self.writer = Writer(surgeon.store.names, own, layer.opset, like=layer.node)
        self.weights = Weights(surgeon.store, self.writer, self.spec)

    def replace(self) -> None:
        """Writes the new nodes, and puts their result under the name of the old one."""
        tail = quantised_tail(self.node) if self.form.is_exact else []
        # A quantised layer needs DQ -> Conv with nothing between, and old opsets have no Add that broadcasts
        # a bias later on.
        plain = bool(tail) or self.layer.opset <= NEWEST_WITHOUT_BROADCAST
        # The form as ONNX writes it: what comes before the shuffle, and what after.
        written = self._written(plain)
        # Conv with its pads first, then the tail, the shuffle, and the crop.
        x, spec = self.node.inputs[0], self.spec
        assert x is not None
        weight = self._weight(written.weight)
        bias = self._bias(written.bias)
        sizes = self.layer.input_size
        y, sizes = self.writer.steps(  # type: ignore[assignment]
            written.before, x, weight, bias, spec.in_channels, sizes
        )
        # Elementwise nodes and the shuffle change places: each value is treated alike wherever it lies.
        conv = next(step for step in written.before if isinstance(step, Conv))
        moves = bool(written.after) or self.dynamic is not None
        for node in tail[:-1]:
            y = self._again(node, y)
        # The shuffle works on the quantised numbers, so that the Conv before it stays an integer one.
        if tail and moves:
            y = self.writer.op(
                "DequantizeLinear",
                *(self._again(tail[-1], y, what="QuantizeLinear"), *tail[-1].inputs[1:]),
                domain=tail[-1].domain,
            )
        y, _ = self.writer.steps(written.after, y, None, bias, conv.out_channels, sizes)
        if self.dynamic is not None:
            y = self._dynamic_crop(x, y)
        if tail:
            y = self._again(tail[-1], y)
        # The result takes the name of the old one, so that nothing behind it changes.
        replaced = [self.node, *tail]
        old = replaced[-1].outputs[0]
        y.metadata_props.update(old.metadata_props)
        y.doc_string = old.doc_string
        ir.convenience.replace_nodes_and_values(
            self.layer.graph, replaced[-1], replaced, self.writer.nodes, [old], [y]
        )

    def _again(self, node: ir.Node, y: ir.Value, what: str = "") -> ir.Value:
        """A node of the tail on another value; under its own name, unless it is `what`."""
        result = self.writer.op(node.op_type, y, *node.inputs[1:], domain=node.domain, what=what)
        copied = self.writer.nodes[-1]
        copied.name = copied.name if what else node.name
        copied.doc_string = node.doc_string
        copied.attributes.update(node.attributes)
        copied.metadata_props.clear()
        copied.metadata_props.update(node.metadata_props)
        return result

    def _written(self, plain: bool) -> _Written:
        """The form's steps, cut at the convolution; `plain`: nothing but a Conv before the shuffle."""
        spec, verbs = (self.spec, ()) if not plain else _dense(self.spec)
        compiled = self.form.compile(spec, self.settings)
        # Without padding in the spec no crop comes first. The crop at the end does its work.
        if self.form.is_exact and _crops_first(compiled):
            crop = Crop(spec.padding)
            spec = replace(spec, padding=((0, 0),) * spec.ndim)
            compiled = self.form.compile(spec, self.settings)
            compiled = replace(compiled, steps=(*compiled.steps, crop))
        steps = compiled.steps
        cut = 1 + next(i for i, step in enumerate(steps) if isinstance(step, Conv))
        return _Written((*verbs, *compiled.weight), compiled.bias, steps[:cut], steps[cut:])

    # --- operands ---

    def _weight(self, verbs: tuple[Verb, ...]) -> ir.Value:
        operand = Operand.of(self.node.inputs[1])
        # Fitted kernels are computed here in float64, and rounded once.
        if not self.form.is_exact:
            assert self.layer.weight
            kernel = self.decision.kernel(self.layer.read_weight())
            array = rearrange(verbs, kernel, self.spec.groups)
            array = array.astype(self.layer.weight.dtype.numpy())
            key = (verbs, self.settings, _own(self.decision))
            return self.surgeon.store.put(self.writer, operand, array, key)
        return self.weights.rearranged(operand, verbs, self.spec.weight_shape)

    def _bias(self, verbs: tuple[Verb, ...]) -> ir.Value | None:
        old = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        fitted = self.decision.fitted
        if fitted is not None and fitted.bias is not None:
            return self.surgeon.fitted_bias(
                self.node, fitted.bias, verbs, self.writer, self.decision.name
            )
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


def _crops_first(compiled: Compiled) -> bool:
    """Whether a crop of the input follows a padding of it, which Conv's own pads cannot express."""
    kinds = [type(step) for step in compiled.steps]
    return Crop in kinds[: kinds.index(Conv)]


def _dense(spec: ConvTransposeSpec) -> tuple[ConvTransposeSpec, tuple[Verb, ...]]:
    """The same layer with all its taps written out, and zero taps for what no tap reaches.

    Returns:
        A spec without dilation and output_padding and with at least one tap for each phase, and the
        verbs that bring a weight, group axis first, to its kernel.
    """
    kernel = tuple(
        max(big_k + op, s)
        for big_k, op, s in zip(
            spec.effective_kernel_size, spec.output_padding, spec.stride, strict=True
        )
    )
    n = spec.ndim
    verbs: list[Verb] = []
    if max(spec.dilation) > 1:
        # (k) -> (k, 1) -> (k, d) -> (k*d)
        verbs += [Split(3 + i, (-1, 1)) for i in reversed(range(n))]
        gaps = (amount for d in spec.dilation for amount in (0, d - 1))
        verbs += [ZeroExtend((0, 0, 0, *gaps)), *(Merge(3 + i, 4 + i) for i in range(n))]
    spread = [k * d for k, d in zip(spec.kernel_size, spec.dilation, strict=True)]
    verbs.append(ZeroExtend((0, 0, 0, *(big - k for big, k in zip(kernel, spread, strict=True)))))
    grown = [
        big - big_k - op
        for big, big_k, op in zip(
            kernel, spec.effective_kernel_size, spec.output_padding, strict=True
        )
    ]
    dense = replace(
        spec,
        kernel_size=kernel,
        padding=tuple((b, e + more) for (b, e), more in zip(spec.padding, grown, strict=True)),
        output_padding=(0,) * n,
        dilation=(1,) * n,
    )
    return dense, tuple(verbs)
