"""Quantised models: built by hand, and a small network by ONNX Runtime's static quantisation."""

import warnings

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

import deconvfix
from deconvfix.core.spec import ConvTransposeSpec
from tests.support.onnx_models import (
    GROUPS,
    W_SHAPE,
    X_SHAPE,
    all_layers_compared,
    deconv,
    integers,
    is_valid,
    model,
    node,
    operators,
    value,
)
from tests.support.strategies import Case

__all__ = [
    "GEOMETRY",
    "INT8",
    "UINT8",
    "converted",
    "dequantised",
    "optimized_operators",
    "quantised",
    "quantised_layer",
    "statically_quantised",
    "trained_like",
    "wide",
]


UINT8, INT8 = np.uint8, np.int8

# Strides that differ, unequal pads, one pixel more.
GEOMETRY = {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 0]}

PLAIN = {"kernel_shape": None, "strides": None, "pads": None, "output_padding": None}


def quantised(
    *,
    activation=UINT8,
    weight=INT8,
    weight_zero=0,
    per_channel=False,
    bias="quantised",
    between=(),
    x_shape=X_SHAPE,
    w_shape=W_SHAPE,
    out=(0.5, 5),
    float_weight=False,
    quantised_output=True,
    output="dequantised",
    domain="",
    opset=17,
    stored=None,
    **geometry,
):
    """QDQ around a layer, by default with two groups. Scales are powers of two, so that all sums are exact.

    Args:
        activation: dtype of input and output.
        weight: dtype of the stored weight.
        weight_zero: Its zero point; per channel some that are close to it.
        per_channel: Whether each output channel of a group has a scale.
        bias: "quantised", "float" or None.
        between: (op_type, further inputs) of nodes between the layer and QuantizeLinear.
        x_shape: Of the input.
        w_shape: Of the weight.
        out: Scale and zero point of the output.
        float_weight: Store the weight as floats that are quantised in the graph.
        quantised_output: Whether QuantizeLinear follows.
        output: "dequantised", "quantised" or "twice": what the model gives.
        domain: Of QuantizeLinear and DequantizeLinear.
        opset: Of the model.
        stored: Further initializers.
        geometry: Attributes of the layer.
    """
    rng = np.random.default_rng(7)
    ndim, channels = len(w_shape) - 2, w_shape[1]
    groups = geometry.get("group", GROUPS)
    scale, zero = np.float32(0.25), np.array(weight_zero, weight)
    if per_channel:
        scale = (2.0 ** rng.integers(-2, 2, channels)).astype(np.float32)
        zero = (weight_zero + (weight_zero != 0) * rng.integers(-2, 3, channels)).astype(weight)
    around = zero.astype(np.int64).reshape(-1, *(1,) * ndim)
    taps = rng.integers(-6, 7, w_shape)
    tensors = {
        "sx": np.float32(0.5),
        "zx": np.array(3, activation),
        "sw": scale,
        "zw": zero,
        "sy": np.float32(out[0]),
        "zy": np.array(out[1], activation),
        **(stored or {}),
    }
    axis = {"axis": 1} if per_channel else {}
    nodes = [
        node("QuantizeLinear", "x sx zx", "xq", domain=domain),
        node("DequantizeLinear", "xq sx zx", "xd", domain=domain),
    ]
    if float_weight:
        tensors["w"] = (taps * scale.reshape(-1, *(1,) * ndim)).astype(np.float32)
        nodes.append(node("QuantizeLinear", "w sw zw", "wq", **axis, domain=domain))
    else:
        tensors["wq"] = (taps + around).astype(weight)
    nodes.append(node("DequantizeLinear", "wq sw zw", "wd", **axis, domain=domain))
    inputs = "xd wd"
    if bias == "quantised":
        inputs += " bd"
        tensors["bq"] = rng.integers(-40, 40, groups * channels).astype(np.int32)
        tensors["sb"] = np.float32(0.5) * (np.tile(scale, groups) if per_channel else scale)
        nodes.append(
            node("DequantizeLinear", "bq sb", "bd", **({"axis": 0} if per_channel else {}))
        )
    elif bias == "float":
        inputs += " bd"
        tensors["bd"] = integers((groups * channels,), 3)
    nodes.append(deconv(inputs, "t0", **(PLAIN | geometry)))
    last = "t0"
    for number, (op_type, further) in enumerate(between, start=1):
        nodes.append(node(op_type, f"{last}{further}", f"t{number}"))
        last = f"t{number}"
    outputs = []
    if quantised_output:
        nodes.append(node("QuantizeLinear", f"{last} sy zy", "yq", domain=domain))
        if output == "quantised":
            dtype = helper.np_dtype_to_tensor_dtype(np.dtype(activation))
            outputs.append(value("yq", ["N", 2 * channels, *[None] * ndim], dtype))
        else:
            nodes.append(node("DequantizeLinear", "yq sy zy", "y", domain=domain))
            outputs.append(value("y", ndim + 2))
    if output == "twice" or not quantised_output:
        nodes.append(node("Neg", last, "second"))
        outputs.append(value("second", ndim + 2))
    sizes = [f"d{i}" for i in range(ndim)]
    return model(
        nodes,
        [value("x", ["N", x_shape[1], *sizes])],
        outputs,
        tensors,
        opset=opset,
        ir_version=10 if opset > 18 else 8,
        domains=[domain] if domain else [],
    )


def optimized_operators(proto, folder):
    """What ONNX Runtime runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return operators(onnx.load(options.optimized_model_filepath))


def quantised_layer(case, *, layout="all", weight=INT8, zero=0, activation=UINT8):
    """One layer between DequantizeLinear and floats, of a case's integers; scales are powers of two.

    Args:
        case: Of `strategies`; its weight, bias and input are what is stored, less the zero points.
        layout: "all", "outputs" or "inputs": whom the scales serve.
        weight: dtype of the stored weight.
        zero: Its zero point.
        activation: dtype of the input.

    Returns:
        The model; and its input, for which the layer gets the case's times a scale of 0.5.
    """
    spec = case.spec
    count = {"all": 1, "outputs": spec.weight_shape[1], "inputs": spec.in_channels}[layout]
    exponents = np.random.default_rng(count).integers(-2, 2, count)
    scale = (2.0**exponents).astype(np.float32)
    scale = scale[0] if layout == "all" else scale
    zeros = np.full(np.shape(scale), zero, weight)
    stored = {
        "sx": np.float32(0.5),
        "zx": np.array(3, activation),
        "wq": (case.weight + zero).astype(weight),
        "sw": scale,
        "zw": zeros,
    }
    axis = {"all": {}, "outputs": {"axis": 1}, "inputs": {"axis": 0}}[layout]
    nodes = [
        node("QuantizeLinear", "x sx zx", "xq"),
        node("DequantizeLinear", "xq sx zx", "xd"),
        node("DequantizeLinear", "wq sw zw", "wd", **axis),
    ]
    inputs = "xd wd"
    if case.bias is not None:
        of_outputs = np.tile(scale, spec.groups) if layout == "outputs" else np.max(scale)
        stored["bq"] = case.bias.astype(np.int32)
        stored["sb"] = (np.float32(0.5) * of_outputs).astype(np.float32)
        nodes.append(
            node("DequantizeLinear", "bq sb", "bd", **({"axis": 0} if of_outputs.ndim else {}))
        )
        inputs += " bd"
    pads = [*(b for b, _ in spec.padding), *(e for _, e in spec.padding)]
    nodes.append(
        deconv(
            inputs, strides=spec.stride, pads=pads, output_padding=spec.output_padding,
            dilations=spec.dilation, group=spec.groups, kernel_shape=spec.kernel_size,
        )
    )  # fmt: skip
    shape = ["N", spec.in_channels, *case.x.shape[2:]]
    proto = model(nodes, [value("x", shape)], [value("y", spec.ndim + 2)], stored)
    return proto, {"x": (0.5 * case.x).astype(np.float32)}


def dequantised(proto):
    """By the file alone: for each convolution the numbers behind its weight and bias, in float64.

    Returns:
        For each a dict of "weight" and "bias", each with the integers less their zero points, the scales
        with axes of 1, and the type that is stored.
    """
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    made = {each.output[0]: each for each in proto.graph.node}
    found = []
    for each in proto.graph.node:
        if each.op_type not in ("Conv", "ConvTranspose"):
            continue
        operands = {}
        for role, name in zip(("weight", "bias"), each.input[1:], strict=False):
            source = made.get(name)
            if source is None or source.op_type != "DequantizeLinear":
                continue
            q, scale, *zero = (stored[name] for name in source.input)
            axes = [a.i for a in source.attribute if a.name == "axis"] or [1]
            shape = [1] * q.ndim
            if scale.size > 1:
                shape[axes[0]] = scale.size
            zeros = zero[0].astype(np.int64).reshape(shape) if zero else 0
            scales = scale.astype(np.float64).reshape(shape)
            operands[role] = (q.astype(np.int64) - zeros, scales, q.dtype)
        found.append(operands)
    return found


def wide(seed=0, most=127, bias=True, groups=2):
    """A layer whose taps use all of their range in some channels, and a part of it in the others."""
    rng = np.random.default_rng(seed)
    spec = ConvTransposeSpec.create(
        4, 3 * groups, (3, 4), stride=(2, 3), padding=1, groups=groups, bias=bias
    )
    weight = rng.integers(-most, most + 1, spec.weight_shape)
    weight[:, 1] //= 9
    b = rng.integers(-4000, 4000, spec.out_channels).astype(float) if bias else None
    return Case(spec, rng.integers(-3, 4, (1, 4, 6, 5)).astype(float), weight.astype(float), b)


def converted(proto, to, feed, **options):
    """The conversion, proven, with its only layer replaced."""
    before = proto.SerializeToString(deterministic=True)
    conversion = deconvfix.convert(
        proto, to=to, example_inputs=feed, **{"init": "fit", "strict": True, **options}
    )
    assert proto.SerializeToString(deterministic=True) == before, "the input was changed"
    assert conversion.report.parity.ok
    assert all_layers_compared(conversion)
    assert is_valid(conversion.model) or not is_valid(proto)
    return conversion


class _Pictures(CalibrationDataReader):
    def __init__(self):
        rng = np.random.default_rng(1)
        self.rest = iter(rng.standard_normal((4, 1, 3, 8, 6)).astype(np.float32))

    def get_next(self):
        x = next(self.rest, None)
        return None if x is None else {"x": x}


def trained_like():
    """A convolution, a transposed one with a stride, and a convolution, with open sizes."""
    rng = np.random.default_rng(3)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 6, 4, 4), "b2": (6,), "w3": (2, 6, 3, 3)}
    stored = {k: 0.3 * rng.standard_normal(v).astype(np.float32) for k, v in shapes.items()}
    nodes = [
        node("Conv", "x w1 b1", "h1", pads=[1, 1, 1, 1]),
        node("Relu", "h1", "h2"),
        node("ConvTranspose", "h2 w2 b2", "h3", name="up", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "h3", "h4"),
        node("Conv", "h4 w3", "y", pads=[1, 1, 1, 1]),
    ]
    return model(nodes, [value("x", ["N", 3, "H", "W"])], [value("y", 4)], stored)


def statically_quantised(proto, path, *, per_channel=True, activation=QuantType.QUInt8):
    """As ONNX Runtime quantises a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the quantiser
        quantize_static(
            onnx.ModelProto.FromString(proto.SerializeToString()),  # it is changed
            path,
            _Pictures(),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=activation,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "ConvTranspose"],
        )
    return onnx.load(path)
