"""An ONNX model with its numbers moved by one rounding: how far its outputs move, rounding may move them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.frontends.onnx.find import find_layers
from deconvfix.frontends.onnx.nodes import make_plain
from deconvfix.frontends.onnx.tail import tail_of
from deconvfix.frontends.onnx.values import (
    Names,
    bodies,
    constant,
    is_quantizer,
)
from deconvfix.plan import Plan

__all__ = ["disturbed", "one_eps_off"]

# Operands whose every element is a coefficient: moving one by eps is what rounding does anyway.
_COEFFICIENTS = {
    "BatchNormalization": (1, 2, 3, 4),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "GRU": (1, 2, 3),
    "Gemm": (0, 1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "RNN": (1, 2, 3),
}


def one_eps_off(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Each number moved by about one eps of its dtype, at random."""
    eps = np.finfo(array.dtype).eps
    moved = array.astype(np.float64) * (1 + eps * rng.standard_normal(array.shape))
    return np.asarray(moved.astype(array.dtype))


def disturbed(model: ir.Model, plan: Plan | None, seed: int) -> ir.Model:
    """A copy in which coefficients are off by one eps, and quantised layers by half a step."""
    model = model.clone()
    make_plain(model)
    rng = np.random.default_rng(seed)
    # A shared weight is moved once.
    done: set[ir.Value] = set()
    for body in bodies(model):
        for node in list(body.all_nodes()):
            for index in _COEFFICIENTS.get(node.op_type, ()):
                value = node.inputs[index] if index < len(node.inputs) else None
                if value is not None and value not in done:
                    done.add(value)
                    _disturb(value, lambda array: one_eps_off(array, rng))
    replaced = None if plan is None else {decision.name for decision in plan.replaced}
    names = Names(model)
    # What a layer is takes a search of the whole model, and only quantised ones are asked.
    quantised = any(
        is_quantizer(node, "QuantizeLinear") for body in bodies(model) for node in body.all_nodes()
    )
    for layer in find_layers(model) if quantised else ():
        tail = tail_of(layer)
        if not tail.quantised or (replaced is not None and layer.name not in replaced):
            continue
        assert layer.spec is not None
        scale = tail.nodes[-1].inputs[1]
        tensor = constant(scale, 0)
        assert tensor is not None
        # Half a step is as far as two runtimes may round differently.
        step = float(np.asarray(tensor.numpy()).reshape(-1)[0])
        noise = rng.uniform(-0.5, 0.5, (1, layer.spec.out_channels, *(1,) * layer.spec.ndim)) * step
        dtype = np.asarray(tensor.numpy()).dtype
        stored = ir.node("Constant", [], {"value": ir.tensor(noise.astype(dtype))})
        readers = list(layer.node.outputs[0].uses())
        moved = ir.node("Add", [layer.node.outputs[0], stored.outputs[0]])
        for node in (stored, moved):
            node.outputs[0].name = names.fresh("disturbed")
        # Noise at the layer's output, in front of what follows it.
        for reader, index in readers:
            reader.replace_input_with(index, moved.outputs[0])
        layer.graph.insert_after(layer.node, [stored, moved])
    return model


def _disturb(value: ir.Value, move: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    """Replaces a stored floating-point tensor, of an initializer or a Constant node."""
    tensor = ir.convenience.get_const_tensor(value) if _plain_constant(value) else None
    if tensor is None or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return
    moved = ir.tensor(move(np.asarray(tensor.numpy())), name=tensor.name)
    producer = value.producer()
    if producer is None:
        value.const_value = moved
    else:
        producer.attributes.clear()
        producer.attributes["value"] = ir.AttrTensor("value", moved)


def _plain_constant(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is None:
        return value.const_value is not None
    return producer.op_type == "Constant" and "value" in producer.attributes
