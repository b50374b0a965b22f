"""ConvTranspose nodes of an ONNX model, understood: attributes, weight and shapes become a spec.

Operator specification: ConvTranspose-1, -11 and -22, which agree on the attributes. Per axis, with
natural = (L - 1)*s + K + op the size without padding, and P the pixels that are cut off it:

    pads (auto_pad NOTSET)   begin and end as given
    auto_pad VALID           none
    auto_pad SAME_*          L_out = L*s, so P = max(0, K + op - s), whatever L is
    output_shape             L_out as given, pads are ignored; P = max(0, natural - L_out)

Where P is not given as pads, the begin gets floor(P/2) for SAME_UPPER and ceil(P/2) otherwise. With
output_shape beyond natural, bias alone is appended at the end. That is what ONNX Runtime computes, for
every opset; the specification says the same since opset 11, less clearly before (docs/onnx.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.errors import Refusal, SpecError
from deconvfix.frontends.onnx.fold import fold
from deconvfix.frontends.onnx.integers import Quantised, quantised
from deconvfix.frontends.onnx.nodes import Scope, foreign, opset_of, transposed_convolutions
from deconvfix.frontends.onnx.refusals import (
    DYNAMIC_SLICE,
    FUNCTION_CONSTANTS,
    MOST_PIXELS,
    MOST_TAPS,
    NEEDS_PAD,
    NO_MAP,
    NO_OPERANDS,
    UNKNOWN_CHANNELS,
    UNKNOWN_KERNEL,
    contradiction,
    depends_on_the_call,
    needs_newer_slice,
    not_floating,
    old_function,
    too_many_taps,
)
from deconvfix.frontends.onnx.values import (
    Known,
    behind_identity,
    check_model,
    constant,
    is_quantizer,
)

__all__ = ["DynamicSize", "Layer", "find_layers"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_DTYPE_NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
# Weights that are not stored are extended by Pad, which ONNX Runtime has from this opset on.
_RUNNING_PAD = 2
_QUANTISED = "its weight is quantised"
_ATTRIBUTES = (
    "auto_pad",
    "dilations",
    "group",
    "kernel_shape",
    "output_padding",
    "output_shape",
    "pads",
    "strides",
)


@dataclass(frozen=True)
class DynamicSize:
    """An output size that is fixed while the input size is not: the crop is computed at run time.

    Attributes:
        output_size: L_out per axis.
        begin_floor: Whether the begin gets floor(P/2) of the P pixels cut off, else ceil(P/2).
    """

    output_size: tuple[int, ...]
    begin_floor: bool


@dataclass(frozen=True)
class Layer:
    """One ConvTranspose node.

    Attributes:
        name: Unique in the model: names of the nodes and branches around it, and its own.
        node: The node.
        graph: The graph or function body that it is in.
        function: The model-local function that it is in.
        opset: Version of the default domain there.
        spec: Its geometry; for a `dynamic_size` that of the uncropped result. None with an obstacle.
        dynamic_size: Set if the crop depends on the input's size.
        input_size: Spatial input size, None where it is not known before running.
        dtype: In torch's words.
        obstacle: Why it cannot be converted.
        weight: The stored weight, if it is stored as floating-point numbers.
        weight_note: Why there is no stored weight.
        quantised: The stored integers of a layer whose weight is quantised, if they can be read and set.
        attributes: The node's attributes; those that refer to the function's own are looked up.
    """

    name: str
    node: ir.Node
    graph: ir.Graph
    function: ir.Function | None
    opset: int
    spec: ConvTransposeSpec | None
    dynamic_size: DynamicSize | None
    input_size: tuple[int | None, ...]
    dtype: str
    obstacle: Refusal | None
    weight: ir.TensorProtocol | None
    weight_note: str = ""
    quantised: Quantised | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def has_weight(self) -> bool:
        """Whether there is a stored weight to read, as floats or as integers."""
        return self.weight is not None or self.quantised is not None

    def read_weight(self) -> NDArray[np.float64]:
        """The stored weight in float64, (C_in, C_out / groups, *kernel_size)."""
        if self.quantised is not None:
            return self.quantised.weight.real()
        assert self.weight is not None
        return np.asarray(self.weight.numpy()).astype(np.float64)


def find_layers(model: ir.Model) -> tuple[Layer, ...]:
    """All ConvTranspose nodes of the model, in subgraphs and functions too, in the model's order.

    Raises:
        ModelError: If the model is malformed; see `check_model`.
    """
    check_model(model)
    context = Known(model)
    layers: list[Layer] = []
    taken: set[str] = set()
    for scope, node, name in transposed_convolutions(model):
        unique, count = name, 1
        # Names of nodes are optional and need not be unique in ONNX.
        while unique in taken:
            count += 1
            unique = f"{name}#{count}"
        taken.add(unique)
        layers.append(_understand(context, scope, node, unique))
    return tuple(layers)


# --- one node -----------------------------------------------------------------------------------


class _ObstacleError(Exception):
    """Why a node cannot be understood."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.found)
        self.refusal = refusal


def _understand(context: Known, scope: Scope, node: ir.Node, name: str) -> Layer:
    """A node as a layer; what stands in the way becomes its obstacle."""
    function = scope.function
    x, w, b = _operands(node)
    # First, so that folded weights and biases are constants for all that follows.
    for operand in (w, b):
        fold(context.model, scope, operand)
    dtype = context.dtype(w, function) or context.dtype(x, function)
    weight, weight_note = _stored_weight(w, context.model.ir_version)
    # Whatever is found out, the layer is listed: a refusal needs a name.
    layer = Layer(
        name=name,
        node=node,
        graph=scope.graph,
        function=function,
        opset=scope.opset,
        spec=None,
        dynamic_size=None,
        input_size=(),
        dtype="unknown" if dtype is None else _DTYPE_NAMES.get(dtype, dtype.name.lower()),
        obstacle=None,
        weight=weight,
        weight_note=weight_note,
    )
    try:
        if (unknown := foreign(node)) is not None:
            raise _ObstacleError(unknown)
        if x is None or w is None or not node.outputs:
            raise _ObstacleError(NO_OPERANDS)
        if dtype is not None and dtype not in _FLOATS:
            raise _ObstacleError(not_floating(layer.dtype))
        settings = _settings(context, scope, node)
        # An empty list stands for the default.
        given = {key: value for key, value in settings.items() if value not in (None, [])}
        layer = replace(layer, attributes=given)
        spec, input_size = _geometry(context, scope, node, settings)
        spec, dynamic_size = _cropped(spec, settings, input_size)
        lengths = spec.output_size([1 if length is None else length for length in input_size])
        if 0 in input_size or max(lengths) > MOST_PIXELS:
            raise _ObstacleError(NO_MAP)
        _check_opset(context, scope, weight is not None, dynamic_size is not None)
    except _ObstacleError as error:
        return replace(layer, obstacle=error.refusal)
    except SpecError as error:
        return replace(layer, obstacle=Refusal(error.found, error.needed, error.todo))
    layer = replace(layer, spec=spec, dynamic_size=dynamic_size, input_size=input_size)
    if weight_note != _QUANTISED:
        return layer
    integers = quantised(node, spec, context.model.ir_version)
    if isinstance(integers, str):
        return replace(layer, weight_note=integers)
    return replace(layer, weight_note="", quantised=integers)


def _operands(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None, ir.Value | None]:
    """Input, weight and bias."""
    x, w, b = [*node.inputs, None, None, None][:3]
    return x, w, b


def _settings(context: Known, scope: Scope, node: ir.Node) -> dict[str, Any]:
    """The node's attributes, None for those that it does not have.

    In a function, attributes and operands may differ from call to call: one geometry is needed.
    """
    try:
        settings = {key: context.attribute(node, key, scope.function) for key in _ATTRIBUTES}
    except LookupError as error:
        raise _ObstacleError(depends_on_the_call(f"attribute {error.args[0]}")) from error
    for what, value in zip(("input", "weight", "bias"), _operands(node), strict=True):
        if any(given is None for given, _ in context.given(value, scope.function)):
            raise _ObstacleError(depends_on_the_call(what))
    return settings


def _geometry(
    context: Known, scope: Scope, node: ir.Node, settings: dict[str, Any]
) -> tuple[ConvTransposeSpec, tuple[int | None, ...]]:
    """The spec without its padding, and the spatial input size, None for each open axis.

    Sizes come from whatever the file says: attributes first, then the shapes of weight, input, output
    and bias.
    """
    x, w, b = _operands(node)
    # Whatever is known of the four values, then the kernel, the channels, and the checks.
    x_shape, w_shape, y_shape, b_shape = (
        context.shape(value, scope.function) for value in (x, w, node.outputs[0], b)
    )
    # The kernel: its own attribute, or what the weight's shape says.
    kernel = settings["kernel_shape"] or (None if w_shape is None else w_shape[2:])
    if kernel is None or any(k is None for k in kernel):
        raise _ObstacleError(UNKNOWN_KERNEL)
    if any(k > MOST_TAPS for k in kernel):
        raise _ObstacleError(too_many_taps(kernel))
    n = len(kernel)
    if w_shape is not None:
        taps = w_shape[2:]
        agree = len(taps) == n and all(
            known in (None, k) for known, k in zip(taps, kernel, strict=True)
        )
        if not agree:
            raise _ObstacleError(contradiction("kernel_shape", kernel, taps))
    # The default of the operator.
    groups = 1 if settings["group"] is None else settings["group"]
    # Channels: from the weight, or where that is computed, from whatever has a shape.
    per_group = _at(w_shape, 1)
    # The weight is (C_in, C_out / groups, *k); the other shapes help where it has none.
    c_in = _first(_at(w_shape, 0), _at(x_shape, 1))
    c_out = _first(
        None if per_group is None else per_group * groups, _at(y_shape, 1), _at(b_shape, 0)
    )
    if c_in is None or c_out is None:
        raise _ObstacleError(UNKNOWN_CHANNELS)
    # The operator's schema does not fix the lengths of its lists.
    for key, length in (("pads", 2 * n), ("strides", n), ("dilations", n), ("output_padding", n)):
        if settings[key] and len(settings[key]) != length:
            raise _ObstacleError(contradiction(key, settings[key], kernel))
    input_size = (None,) * n if x_shape is None else tuple(x_shape[2:])
    if len(input_size) != n:
        raise _ObstacleError(contradiction("the input's shape", x_shape, kernel))
    if settings["output_shape"] and len(settings["output_shape"]) < n:
        raise _ObstacleError(contradiction("output_shape", settings["output_shape"], kernel))
    spec = ConvTransposeSpec(
        in_channels=c_in,
        out_channels=c_out,
        kernel_size=tuple(kernel),
        stride=tuple(settings["strides"] or (1,) * n),
        padding=((0, 0),) * n,
        output_padding=tuple(settings["output_padding"] or (0,) * n),
        dilation=tuple(settings["dilations"] or (1,) * n),
        groups=groups,
        bias=b is not None,
    )
    return spec, input_size


def _check_opset(context: Known, scope: Scope, is_stored: bool, is_dynamic: bool) -> None:
    """Raises where the operator set lacks what the new nodes need."""
    if is_dynamic and scope.opset < DYNAMIC_SLICE:
        raise _ObstacleError(needs_newer_slice(scope.opset))
    main = opset_of(context.model.opset_imports)
    if scope.function is not None and (scope.opset < FUNCTION_CONSTANTS or scope.opset != main):
        raise _ObstacleError(old_function(scope.opset, main))
    if not is_stored and scope.opset < _RUNNING_PAD:
        raise _ObstacleError(NEEDS_PAD)


def _cropped(
    spec: ConvTransposeSpec, settings: dict[str, Any], input_size: Sequence[int | None]
) -> tuple[ConvTransposeSpec, DynamicSize | None]:
    """The spec with the padding that the attributes ask for; see the module's text."""
    n = spec.ndim
    auto_pad = settings["auto_pad"] or "NOTSET"
    begin_floor = auto_pad == "SAME_UPPER"
    if settings["output_shape"]:
        output_size = tuple(settings["output_shape"][-n:])
        if any(length is None for length in input_size):
            return spec, DynamicSize(output_size, begin_floor)
        natural = spec.output_size([int(length or 0) for length in input_size])
        cut = [max(0, have - want) for have, want in zip(natural, output_size, strict=True)]
        more = [max(0, want - have) for have, want in zip(natural, output_size, strict=True)]
        output_padding = tuple(a + b for a, b in zip(spec.output_padding, more, strict=True))
        spec = replace(spec, output_padding=output_padding)
    elif auto_pad.startswith("SAME"):
        # SAME makes the output stride times as large as the input: so much of the natural size is cut.
        cut = [
            max(0, big_k + op - s)
            for big_k, op, s in zip(
                spec.effective_kernel_size, spec.output_padding, spec.stride, strict=True
            )
        ]
    else:
        # ONNX lists all begins, then all ends.
        pads = (0,) * 2 * n if auto_pad == "VALID" else (settings["pads"] or (0,) * 2 * n)
        return replace(spec, padding=tuple(zip(pads[:n], pads[n:], strict=True))), None
    # SAME_UPPER cuts the odd pixel off the end, SAME_LOWER and output_shape off the begin.
    begins = [p // 2 if begin_floor else p - p // 2 for p in cut]
    padding = tuple((begin, p - begin) for begin, p in zip(begins, cut, strict=True))
    return replace(spec, padding=padding), None


def _stored_weight(value: ir.Value | None, ir_version: int) -> tuple[Any, str]:
    tensor = constant(value, ir_version)
    if tensor is not None and tensor.dtype in _FLOATS:
        return tensor, ""
    source = behind_identity(value)
    producer = None if source is None else source.producer()
    if producer is not None and is_quantizer(producer, "DequantizeLinear"):
        return None, _QUANTISED
    return None, "its weight is computed while the model runs"


def _at(shape: Sequence[int | None] | None, index: int) -> Any:
    return None if shape is None or index >= len(shape) else shape[index]


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
