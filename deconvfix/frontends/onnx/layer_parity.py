"""The nodes that took the place of one ConvTranspose, cut out and held against it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.rearrange import rearrange
from deconvfix.core.steps import run
from deconvfix.errors import ExportError
from deconvfix.forms import form
from deconvfix.frontends.onnx.find import Layer, find_layers
from deconvfix.frontends.onnx.surgery import quantised_tail
from deconvfix.frontends.onnx.values import (
    DEFAULT_DOMAINS,
    RANDOM,
    constant,
    is_quantizer,
    scopes,
    visible,
)
from deconvfix.parity.arrays import compare_arrays
from deconvfix.parity.bounds import LIMIT, Comparison, rounding_unit
from deconvfix.parity.runtime import open_session, run_named
from deconvfix.plan import Plan, Replaced

__all__ = ["compare_layers"]

Array = NDArray[Any]
# Of quantised outputs so many may differ, by one step: those that lie between two steps.
_FLIPPED = 0.01
_WIDE = (ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


def compare_layers(
    before: ir.Model, after: ir.Model, plan: Plan, notes: list[str]
) -> list[Comparison]:
    """Every converted layer on its own; a note for each that cannot be cut out of its model."""
    layers = {layer.name: layer for layer in find_layers(before)}
    comparisons: list[Comparison] = []
    for decision in plan.replaced:
        layer = layers[decision.name]
        try:
            comparisons += _compare(before, after, layer, decision)
        except (ValueError, ExportError) as error:
            reason = error.found if isinstance(error, ExportError) else str(error)
            notes.append(f"{layer.name} was not compared on its own ({reason}).")
    return comparisons


def _compare(
    before: ir.Model, after: ir.Model, layer: Layer, decision: Replaced
) -> list[Comparison]:
    assert layer.spec
    spec, node = layer.spec, layer.node
    tail = quantised_tail(node) if decision.form == "subpixel" else []
    x, w, b = [*node.inputs, None, None][:3]
    assert x
    assert w
    operands: dict[str, ir.Value] = {"weight": w} | ({} if b is None else {"bias": b})
    rng = np.random.default_rng(5)
    dtype = np.float16 if layer.dtype == "float16" else np.float32
    shapes = {"weight": spec.weight_shape, "bias": (spec.out_channels,)}
    # What the layer reads that is not stored is an input of the part that is cut out.
    running = {name: v for name, v in operands.items() if not _is_stored(v, before.ir_version)}
    values: dict[str, Array] = {
        name: rng.standard_normal(shapes[name]).astype(dtype)
        if name in running
        else _evaluate(before, layer, value).astype(dtype)
        for name, value in operands.items()
    }
    result = tail[-1].outputs[0] if tail else node.outputs[0]
    boundary = {str(x.name): (2, spec.in_channels, *_sizes(layer))}
    boundary |= {str(v.name): shapes[name] for name, v in running.items()}
    number = [scope[0] for scope in scopes(before)].index(layer.graph)
    part = _part(after, number, layer, boundary, str(result.name), dtype)
    original = open_session(_alone(layer, values, dtype), optimize=False)
    inputs = _inputs(boundary[str(x.name)], dtype, rng)
    run_named(original, {"x": inputs[0][1], **values})
    try:
        converted = open_session(part, optimize=False)
    except ExportError as error:
        return [_failed(layer, decision, error)]
    follow = None
    if tail:
        y, rank = str(node.outputs[0].name), [None] * (spec.ndim + 2)
        follow = open_session(_part(before, number, layer, {y: rank}, str(result.name), dtype))
    comparisons = []
    for kind, array in inputs:
        feed = {str(x.name): array} | {str(v.name): values[name] for name, v in running.items()}
        wanted = {each.name for each in converted.get_inputs()}
        try:
            (got,) = run_named(converted, {name: v for name, v in feed.items() if name in wanted})
        except ExportError as error:
            return [_failed(layer, decision, error)]
        want, magnitude = _expected(layer, decision, array, values, original)
        terms = int(np.prod(spec.weight_shape)) // spec.weight_shape[1] // spec.groups
        bound = rounding_unit(float(np.finfo(dtype).eps), terms) * magnitude
        if follow is None:
            comparisons.append(compare_arrays(layer.name, kind, got, want, bound))
        else:
            (steps,) = run_named(follow, {str(node.outputs[0].name): want.astype(dtype)})
            comparisons.append(_compare_steps(layer.name, kind, got, steps))
    return comparisons


def _expected(
    layer: Layer, decision: Replaced, x: Array, values: dict[str, Array], original: Any
) -> tuple[Array, Array]:
    """What the new nodes should give, and the sum of the magnitudes of its terms."""
    spec, settings = decision.spec, decision.settings
    assert spec
    assert settings
    bias = values.get("bias")
    weight = values["weight"]

    def transposed(x: Array, weight: Array, bias: Array | None) -> Array:
        feed = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
        return run_named(original, feed)[0]

    magnitude_bias = None if bias is None else np.abs(bias)
    if decision.form == "subpixel":
        want = transposed(x, weight, bias)
        return want, transposed(np.abs(x), np.abs(weight), magnitude_bias).astype(np.float64)
    # In NumPy: the node of a kernel that has grown is another one.
    assert decision.form
    target = form(decision.form)
    compiled = target.compile(spec, settings)
    kernel = decision.kernel(layer.read_weight())
    if decision.fitted is not None and decision.fitted.bias is not None:
        bias = decision.fitted.bias.astype(x.dtype)
    if compiled.weight:
        kernel = rearrange(compiled.weight, kernel, spec.groups)
    wide, kernel = x.astype(np.float64), kernel.astype(weight.dtype).astype(np.float64)
    if bias is not None:
        bias = rearrange(compiled.bias, bias)
        magnitude_bias = np.abs(bias)
    want = run(compiled.steps, wide, kernel, bias)
    magnitude = run(compiled.steps, np.abs(wide), np.abs(kernel), magnitude_bias)
    return want.astype(x.dtype), magnitude


def _failed(layer: Layer, decision: Replaced, error: ExportError) -> Comparison:
    """For a corrected layer that ONNX Runtime does not run, as it does run the original.

    Raises:
        ExportError: For other forms: a reflection wider than a made-up map stops them too.
    """
    if decision.form != "equalized":
        raise error
    return Comparison(layer.name, f"any input ({error.found})", math.inf, math.inf, False)


def _compare_steps(name: str, kind: str, got: Array, want: Array) -> Comparison:
    """Quantised outputs: rounding moves the few values that lie between two steps, by one step."""
    if got.shape != want.shape or got.size == 0:
        return compare_arrays(name, kind, got, want, 0.0)
    difference = np.abs(got.astype(np.int64) - want.astype(np.int64))
    flipped = float((difference > 0).mean())
    worst = float(difference.max())
    ratio = LIMIT * max(worst, flipped / _FLIPPED)
    ratio = 0.0 if worst == 0 else ratio
    return Comparison(name, f"{kind}, in steps", worst, ratio, worst <= 1 and flipped <= _FLIPPED)


def _inputs(shape: Sequence[int], dtype: Any, rng: np.random.Generator) -> list[tuple[str, Array]]:
    return [
        ("seeded noise", rng.standard_normal(shape).astype(dtype)),
        ("a constant", np.full(shape, 0.5, dtype)),
        ("zeros", np.zeros(shape, dtype)),
    ]


def _sizes(layer: Layer) -> tuple[int, ...]:
    """Spatial sizes to compare on: the file's where they are fixed, else small and all different."""
    spec = layer.spec
    assert spec
    sizes = [have or 3 + axis for axis, have in enumerate(layer.input_size)]
    least = (1,) * spec.ndim if layer.dynamic_size is None else layer.dynamic_size.output_size
    for axis, have in enumerate(layer.input_size):
        while have is None and spec.output_size(sizes)[axis] < least[axis]:
            sizes[axis] += 1
    return tuple(sizes)


# --- parts of models ----------------------------------------------------------------------------


def _is_stored(value: ir.Value, ir_version: int) -> bool:
    """Whether a value is a constant, or computed from constants alone."""
    if constant(value, ir_version) is not None:
        return True
    node = value.producer()
    if node is None or node.op_type in RANDOM or not _is_understood(node):
        return False
    return bool(node.inputs) and all(
        each is None or _is_stored(each, ir_version) for each in node.inputs
    )


def _is_understood(node: ir.Node) -> bool:
    return node.domain in DEFAULT_DOMAINS or is_quantizer(
        node, "DequantizeLinear", "QuantizeLinear"
    )


def _evaluate(model: ir.Model, layer: Layer, value: ir.Value) -> Array:
    tensor = constant(value, model.ir_version)
    if tensor is not None:
        return np.asarray(tensor.numpy())
    return run_named(open_session(_serialized(_cut_out({}, value), model, layer)), {})[0]


def _alone(layer: Layer, values: dict[str, Array], dtype: Any) -> bytes:
    """A model of the ConvTranspose node alone, with its operands as inputs."""
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    spec = layer.spec
    assert spec
    inputs = [ir.val("x", kind, [None] * (spec.ndim + 2))]
    inputs += [ir.val(name, kind, list(each.shape)) for name, each in values.items()]
    node = ir.node("ConvTranspose", inputs, layer.attributes)
    y = node.outputs[0]
    y.name, y.dtype, y.shape = "y", kind, ir.Shape([None] * (spec.ndim + 2))
    # The attributes mean the same in all opsets.
    graph = ir.Graph(inputs, [y], nodes=[node], opset_imports={"": 11}, name="alone")
    return bytes(ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString())


def _part(
    model: ir.Model, number: int, layer: Layer, boundary: dict[str, Any], result: str, dtype: Any
) -> bytes:
    """The nodes of a model between some values and a result, as a model of their own.

    Args:
        model: The original or the converted model.
        number: Of the graph that the layer is in, among `scopes`.
        layer: The layer, for the operator set.
        boundary: Names of the values that become inputs, with their shapes.
        result: Name of the value that becomes the output.
        dtype: Of the inputs.
    """
    values = visible(scopes(model)[number])
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    stops = {
        values[name]: ir.val(name, kind, shape)
        for name, shape in boundary.items()
        if name in values
    }
    return _serialized(_cut_out(stops, values[result]), model, layer)


def _cut_out(stops: Mapping[ir.Value, ir.Value], result: ir.Value) -> ir.Graph:
    """A graph of copies of the nodes that compute `result` from the stops and from constants.

    float64 and bfloat16 become float32, which ONNX Runtime runs.

    Raises:
        ValueError: If it depends on anything else.
    """
    copies = dict(stops)
    nodes: list[ir.Node] = []
    constants: list[ir.Value] = []

    def copied(value: ir.Value) -> ir.Value:
        if value in copies:
            return copies[value]
        node = value.producer()
        if node is None:
            if value.const_value is None:
                raise ValueError(f"it depends on {value.name!r}")
            new = ir.val(value.name, const_value=_narrow(value.const_value))
            constants.append(new)
            copies[value] = new
            return new
        if not _is_understood(node) or any(
            each.is_ref() or each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for each in node.attributes.values()
        ):
            raise ValueError(f"it depends on the node {node.name!r} ({node.op_type})")
        inputs = [None if each is None else copied(each) for each in node.inputs]
        outputs = [ir.Value(name=each.name) for each in node.outputs]
        attributes = [
            ir.AttrTensor(each.name, _narrow(each.as_tensor()))
            if each.type == ir.AttributeType.TENSOR
            else each
            for each in node.attributes.values()
        ]
        nodes.append(ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs))
        copies.update(zip(node.outputs, outputs, strict=True))
        return copies[value]

    output = copied(result)
    if result.dtype is not None:  # else ONNX Runtime infers it
        output.dtype = ir.DataType.FLOAT if result.dtype in _WIDE else result.dtype
    return ir.Graph(
        list(stops.values()), [output], nodes=nodes, initializers=constants, name="part"
    )


def _narrow(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype not in _WIDE:
        return tensor
    return ir.tensor(np.asarray(tensor.numpy()).astype(np.float32), name=tensor.name)


def _serialized(graph: ir.Graph, model: ir.Model, layer: Layer) -> bytes:
    for imports in (
        model.opset_imports,
        {} if layer.function is None else layer.function.opset_imports,
    ):
        graph.opset_imports.update(imports)
    graph.opset_imports[""] = layer.opset
    part = ir.Model(graph, ir_version=max(model.ir_version, 4))
    ir.external_data.load_to_model(part)
    return bytes(ir.to_proto(part).SerializeToString())
