"""The nodes that took the place of one ConvTranspose, cut out and compared with it or with their form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.rearrange import rearrange
from deconvfix.errors import ExportError
from deconvfix.frontends.onnx.elementwise import APPROXIMATED
from deconvfix.frontends.onnx.find import Layer, find_layers
from deconvfix.frontends.onnx.folded import ORIGIN, as_upsampled, with_folded
from deconvfix.frontends.onnx.nodes import plain
from deconvfix.frontends.onnx.parts import cut_out, is_stored, serialized
from deconvfix.frontends.onnx.requantised import as_stored
from deconvfix.frontends.onnx.tail import NO_TAIL, Tail, tail_of
from deconvfix.frontends.onnx.values import (
    scopes,
    stored_tensor,
    visible,
)
from deconvfix.parity.bounds import LIMIT, Comparison, compare_arrays, rounding_unit
from deconvfix.parity.definition import Definition, by_definition, sum_unit
from deconvfix.parity.progress import step_by_step
from deconvfix.parity.runtime import open_session, run_named
from deconvfix.plan import Plan, Replaced

__all__ = ["compare_layers"]

Array = NDArray[Any]
# Of quantised outputs so many may differ, by one step: those that lie between two steps.
_FLIPPED = 0.01


def compare_layers(
    before: ir.Model, after: ir.Model, plan: Plan
) -> tuple[list[Comparison], list[str]]:
    """Every converted layer on its own, and a note for each that cannot be cut out of its model."""
    before = plain(before)
    if plan.folded:
        before = with_folded(before.clone(), plan.folded)
    layers = {layer.name: layer for layer in find_layers(before)}
    # Walked through once, and not for each layer: the work is in proportion to the number of layers.
    old, new = _Places(before), _Places(after)
    comparisons: list[Comparison] = []
    notes: list[str] = []
    for decision in step_by_step("Comparing layers", plan.replaced):
        layer = layers[decision.name]
        try:
            comparisons += _compare(old, new, layer, decision)
        except (ValueError, ExportError) as error:
            reason = error.found if isinstance(error, ExportError) else str(error)
            notes.append(f"{layer.name} was not compared on its own ({reason}).")
    return comparisons, notes


class _Places:
    """A model, and what the nodes of each of its graphs can read.

    Args:
        model: It does not change as long as this is used.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._scopes = scopes(model)
        self._numbers = {scope[0]: number for number, scope in enumerate(self._scopes)}
        self._visible: dict[int, dict[str, ir.Value]] = {}

    def number(self, graph: ir.Graph) -> int:
        """Of a graph, which is the same for what the model was converted into: objects differ there."""
        return self._numbers[graph]

    def values(self, number: int) -> dict[str, ir.Value]:
        """See `visible`; values of graphs around are seen too, as the layer may read them."""
        if number not in self._visible:
            self._visible[number] = visible(self._scopes[number])
        return self._visible[number]


def _compare(before: _Places, after: _Places, layer: Layer, decision: Replaced) -> list[Comparison]:
    """One layer on made-up inputs of the sizes that it gets, or of small ones where those are open."""
    if layer.quantised is not None:
        decision = as_stored(layer, decision)
    spec, x = layer.spec, layer.node.inputs[0]
    assert spec
    assert x
    # What stands for upsampling and a convolution is compared with the two, from the small map on.
    origin = layer.node.meta.get(ORIGIN)
    source = str(x.name) if origin is None else origin.source
    number = before.number(layer.graph)
    # Where what follows came before the shuffle, the new nodes reach to its end.
    own_output = str(layer.node.outputs[0].name)
    tail = NO_TAIL if own_output in after.values(number) else tail_of(layer)
    result = str(tail.output.name) if tail.nodes else own_output
    dtype = np.float16 if layer.dtype == "float16" else np.float32
    rng = np.random.default_rng(5)
    # What runs, on what: operands, shapes at the boundary, the part of the converted model.
    operands, running = _operands(before.model, layer, dtype, rng)
    shape = (2, spec.in_channels, *_sizes(layer))
    boundary: dict[str, Sequence[int | None]] = {source: shape}
    boundary |= {name: operands[role].shape for role, name in running.items()}
    part = _part(after, number, layer, boundary, result, dtype)
    inputs = _inputs(shape, dtype, rng)
    # New nodes that work on the integers of an input are no function of any other.
    if layer.quantised is not None and not decision.target.is_exact:
        inputs = [(kind, layer.quantised.on_grid(array)) for kind, array in inputs]
    # The original comes first: what ONNX Runtime does not run there says nothing about the new nodes.
    alone = _alone(layer, operands, dtype) if origin is None else as_upsampled(origin, dtype)
    original = open_session(alone, optimize=False)
    run_named(original, {"x": inputs[0][1], **operands})
    try:
        converted = open_session(part, optimize=False)
    except ExportError as error:
        return [_failed(layer, decision, error)]
    # The original gets what follows from its own nodes.
    following = None
    if tail.nodes:
        any_size = {own_output: [None] * (spec.ndim + 2)}
        rest = _part(before, number, layer, any_size, result, dtype)
        following = open_session(rest, optimize=tail.quantised)
    # Three kinds of inputs: noise, a constant that shows the border, and zeros that leave the bias.
    comparisons = []
    for kind, array in inputs:
        feed = {source: array} | {name: operands[role] for role, name in running.items()}
        # A value of the boundary may be gone in the converted model.
        taken = {value.name for value in converted.get_inputs()}
        try:
            (actual,) = run_named(converted, {n: v for n, v in feed.items() if n in taken})
        except ExportError as error:
            return [_failed(layer, decision, error)]
        definition = _expected(layer, decision, array, operands, original)
        expected = definition.value.astype(dtype)
        if following is not None and tail.quantised:
            (steps,) = run_named(following, {own_output: expected})
            comparisons.append(_compare_steps(layer.name, kind, actual, steps))
            continue
        if following is not None:
            definition = _behind(tail, following, definition, dtype)
            expected = definition.value
        comparisons.append(compare_arrays(layer.name, kind, actual, expected, definition.rounding))
    return comparisons


def _behind(tail: Tail, following: Any, definition: Definition, dtype: Any) -> Definition:
    """What a layer's tail makes of its result, and of the rounding error that this may have.

    The functions of a tail do not jump, and between two near values hardly any of them turns: the ends of
    the interval of rounding tell how far the result may move. Runtimes approximate some of them up to an
    absolute error, which differs between the places of a vector.
    """
    (name,) = (value.name for value in following.get_inputs())
    reach = LIMIT * np.asarray(definition.rounding)
    value, *ends = (
        run_named(following, {name: (definition.value + move).astype(dtype)})[0]
        for move in (0, reach, -reach)
    )
    moved = np.max([np.abs(end.astype(np.float64) - value) for end in ends], axis=0) / LIMIT
    size = np.abs(value.astype(np.float64))
    if any(node.op_type in APPROXIMATED for node in tail.nodes):
        size = np.maximum(1.0, max(size.max(initial=0), np.abs(definition.value).max(initial=0)))
    return Definition(value, moved + np.finfo(dtype).eps * size)


def _operands(
    model: ir.Model, layer: Layer, dtype: Any, rng: np.random.Generator
) -> tuple[dict[str, Array], dict[str, str]]:
    """Weight and bias of a layer; what the model computes from its inputs is drawn at random.

    Returns:
        The values as "weight" and, if there is one, "bias"; and the names in the model of those that are
        not stored, which are inputs of a part that is cut out.
    """
    assert layer.spec
    shapes = {"weight": layer.spec.weight_shape, "bias": (layer.spec.out_channels,)}
    operands: dict[str, Array] = {}
    running: dict[str, str] = {}
    origin = layer.node.meta.get(ORIGIN)
    for role, value in zip(shapes, layer.node.inputs[1:], strict=False):
        if value is None:
            continue
        if is_stored(value, model.ir_version):
            stored = None if origin is None or role == "bias" else origin.weight
            stored = _evaluate(model, layer, value) if stored is None else stored
            operands[role] = stored.astype(dtype)
        else:
            operands[role] = rng.standard_normal(shapes[role]).astype(dtype)
            running[role] = str(value.name)
    return operands, running


def _expected(
    layer: Layer, decision: Replaced, x: Array, operands: Mapping[str, Array], original: Any
) -> Definition:
    """What the new nodes should give on an input of shape (N, C_in, *L).

    Args:
        layer: The layer in the original.
        decision: What it became.
        x: The input, in the dtype that the nodes run in.
        operands: The original's "weight" and, if it has one, "bias", in the same dtype.
        original: A session of the ConvTranspose node alone, with its operands as inputs.
    """
    eps = float(np.finfo(x.dtype).eps)
    weight, bias = operands["weight"], operands.get("bias")
    if decision.target.is_exact:
        # The same function: the node itself says what it gives, also where its operands are computed.
        spec = decision.spec
        terms = spec.in_channels // spec.groups * math.prod(spec.kernel_size)
        origin = layer.node.meta.get(ORIGIN)
        unit = rounding_unit(eps, terms) if origin is None else sum_unit(origin.folded.steps, eps)
        magnitudes = {name: np.abs(operand) for name, operand in operands.items()}
        (value,) = run_named(original, {"x": x, **operands})
        # |W| (*) |x| + |b|, by the node itself.
        (magnitude,) = run_named(original, {"x": np.abs(x), **magnitudes})
        return Definition(value, unit * magnitude.astype(np.float64))
    # In NumPy: no runtime has the other forms as one node, and that of a grown kernel is another one.
    # What is folded means upsampling and then a convolution, whose taps are summed before they are rounded.
    target = decision.target
    folded = target.folds and target.folding(decision.spec, decision.settings) is not None
    decision = decision.apart()
    compiled = decision.compiled()
    kernel = decision.kernel(layer.read_weight())
    if decision.fitted is not None and decision.fitted.bias is not None:
        bias = decision.fitted.bias.astype(x.dtype)
    if compiled.weight:
        kernel = rearrange(compiled.weight, kernel, decision.spec.groups)
    kernel = kernel if folded else kernel.astype(weight.dtype)
    return by_definition(compiled, x, kernel, bias, eps)


def _failed(layer: Layer, decision: Replaced, error: ExportError) -> Comparison:
    """For a corrected layer that ONNX Runtime does not run, as it does run the original.

    Raises:
        ExportError: For other forms: a reflection wider than a made-up map stops them too.
    """
    if not decision.target.keeps_layer:
        raise error
    return Comparison(layer.name, f"any input ({error.found})", math.inf, math.inf, False)


def _compare_steps(name: str, kind: str, actual: Array, expected: Array) -> Comparison:
    """Quantised outputs: rounding moves the few values that lie between two steps, by one step."""
    if actual.shape != expected.shape or actual.size == 0:
        return compare_arrays(name, kind, actual, expected, 0.0)
    # In int64, as differences of unsigned numbers would wrap around.
    difference = np.abs(actual.astype(np.int64) - expected.astype(np.int64))
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
    # Different on each axis, so that swapped axes are seen.
    origin = layer.node.meta.get(ORIGIN)
    border = None if origin is None else origin.folded.border
    more = [0] * spec.ndim if border is None else [begin + end for begin, end in border.amounts]
    sizes = [
        3 + axis if have is None else have - more[axis]
        for axis, have in enumerate(layer.input_size)
    ]
    least = (1,) * spec.ndim if layer.dynamic_size is None else layer.dynamic_size.output_size
    for axis, have in enumerate(layer.input_size):
        while have is None and spec.output_size(sizes)[axis] < least[axis]:
            sizes[axis] += 1
    return tuple(sizes)


# --- parts of models ----------------------------------------------------------------------------


def _evaluate(model: ir.Model, layer: Layer, value: ir.Value) -> Array:
    tensor = stored_tensor(value, model.ir_version)
    if tensor is not None:
        return np.asarray(tensor.numpy())
    return run_named(
        open_session(serialized(cut_out({}, value), model, layer.function, layer.opset)), {}
    )[0]


def _alone(layer: Layer, operands: Mapping[str, Array], dtype: Any) -> bytes:
    """A model of the ConvTranspose node alone, with its operands as inputs."""
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    spec = layer.spec
    assert spec
    inputs = [ir.val("x", kind, [None] * (spec.ndim + 2))]
    inputs += [ir.val(role, kind, list(operand.shape)) for role, operand in operands.items()]
    node = ir.node("ConvTranspose", inputs, layer.attributes)
    y = node.outputs[0]
    y.name, y.dtype, y.shape = "y", kind, ir.Shape([None] * (spec.ndim + 2))
    # The attributes mean the same in all opsets.
    graph = ir.Graph(inputs, [y], nodes=[node], opset_imports={"": 11}, name="alone")
    return bytes(ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString())


def _part(
    places: _Places,
    number: int,
    layer: Layer,
    boundary: Mapping[str, Sequence[int | None]],
    result: str,
    dtype: Any,
) -> bytes:
    """The nodes of a model between some values and a result, as a model of their own.

    Args:
        places: The original or the converted model.
        number: Of the graph that the layer is in.
        layer: The layer, for the operator set.
        boundary: Names of the values that become inputs, with their shapes.
        result: Name of the value that becomes the output.
        dtype: Of the inputs.
    """
    values = places.values(number)
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    stops = {
        values[name]: ir.val(name, kind, shape)
        for name, shape in boundary.items()
        if name in values
    }
    part = cut_out(stops, values[result])
    return serialized(part, places.model, layer.function, layer.opset)
