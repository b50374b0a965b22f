"""Quantised ConvTranspose becomes a quantised Conv: the same values, and int8 in ONNX Runtime."""

import itertools

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import (
    QuantType,
)

import deconvfix
from tests.support.int8 import (
    GEOMETRY,
    INT8,
    UINT8,
    optimized_operators,
    quantised,
    statically_quantised,
    trained_like,
)
from tests.support.onnx_models import (
    W_SHAPE,
    X_SHAPE,
    all_layers_compared,
    check,
    deconv,
    integers,
    is_valid,
    model,
    node,
    proof,
    run,
    tensor,
    value,
)

FEED = {"x": integers(X_SHAPE, 9)}


def check_int8(proto, folder, feed=FEED):
    """Equal values, optimised and not, and the layer runs in int8, which the original does not."""
    (want, *_) = run(proto, feed, optimize=False)
    assert len(np.unique(want)) > 3, "nearly constant outputs prove nothing"
    conversion = check(proto, feed)
    assert all_layers_compared(conversion)
    before = optimized_operators(proto, folder)
    after = optimized_operators(conversion.model, folder)
    assert "ConvTranspose" in before
    assert "QLinearConv" not in before
    assert "QLinearConv" in after
    assert not {"Conv", "FusedConv"} & set(after)
    return conversion


TYPES = {
    f"{np.dtype(a).name}, {np.dtype(w).name} zero {z}, {'per channel' if c else 'per tensor'}, "
    f"{b or 'no'} bias": {
        "activation": a,
        "weight": w,
        "weight_zero": z,
        "per_channel": c,
        "bias": b,
    }
    for (a, (w, z)), c, b in itertools.product(
        [(UINT8, (INT8, 0)), (UINT8, (INT8, 2)), (UINT8, (UINT8, 120)), (INT8, (INT8, 0))],
        [False, True],
        ["quantised", None],
    )
}


@pytest.mark.parametrize("kwargs", TYPES.values(), ids=TYPES)
def test_types(kwargs, tmp_path):
    check_int8(quantised(**kwargs, **GEOMETRY), tmp_path)


GEOMETRIES = {
    "square strides": {"strides": [2, 2], "pads": [1, 0, 0, 1]},
    "stride > kernel": {"strides": [5, 4]},
    "dilation": {"strides": [2, 3], "dilations": [2, 3], "pads": [1, 2, 0, 3]},
    "dilation without common factor": {"strides": [3, 2], "dilations": [2, 3]},
    "padding past the kernel": {"strides": [3, 4], "pads": [4, 1, 2, 5]},
    "output_padding": {"strides": [3, 4], "output_padding": [2, 3]},
    "kernel == stride": {"strides": [3, 2]},
    "stride 1": {"pads": [1, 0, 0, 1]},
    "1-D": {"x_shape": (2, 4, 7), "w_shape": (4, 3, 5), "strides": [2], "pads": [1, 2]},
    "3-D": {
        "x_shape": (2, 4, 3, 4, 2),
        "w_shape": (4, 3, 3, 2, 2),
        "strides": [2, 1, 3],
        "pads": [1, 0, 0, 1, 1, 0],
        "output_padding": [0, 0, 1],
    },
}


@pytest.mark.parametrize("activation", [UINT8, INT8], ids=["uint8", "int8"])
@pytest.mark.parametrize("kwargs", GEOMETRIES.values(), ids=GEOMETRIES)
def test_geometries(kwargs, activation, tmp_path):
    feed = {"x": integers(kwargs.get("x_shape", X_SHAPE), 9)}
    check_int8(quantised(activation=activation, per_channel=True, **kwargs), tmp_path, feed)


@pytest.mark.parametrize("shuffle", ["crd", "dcr"])
@pytest.mark.parametrize("zero", [0, 3])
def test_scales_per_channel_follow_the_order_of_the_phases(shuffle, zero):
    geometry = {"strides": [2, 2], "pads": [1, 0, 0, 1], "group": 1, "weight_zero": zero}
    proto = quantised(per_channel=True, **geometry)
    assert all_layers_compared(check(proto, FEED, shuffle=shuffle))


PATTERNS = {
    "Relu": {"between": [("Relu", "")], "out": (0.5, 0)},
    "float weight, quantised in the graph": {"float_weight": True},
    "the same per channel": {"float_weight": True, "per_channel": True},
    "ONNX Runtime's own operators": {"domain": "com.microsoft", "per_channel": True},
    "opset 10": {"opset": 10},
    "opset 13": {"opset": 13, "per_channel": True},
    "opset 21": {"opset": 21, "per_channel": True},
}


@pytest.mark.parametrize("kwargs", PATTERNS.values(), ids=PATTERNS)
def test_patterns(kwargs, tmp_path):
    if kwargs.get("domain"):  # shape inference does not know them, and reports an error for none
        proto = quantised(**kwargs, **GEOMETRY)
        assert all_layers_compared(check(proto, FEED))
        return
    check_int8(quantised(**kwargs, **GEOMETRY), tmp_path)


EXACT = {
    "Relu and a zero point": {"between": [("Relu", "")]},
    "Clip": {
        "between": [("Clip", " low high")],
        "stored": {"low": np.float32(-5), "high": np.float32(20)},
    },
    "Sigmoid": {"between": [("Sigmoid", "")], "out": (1 / 128, 0)},
    "slopes for each channel": {
        "between": [("PRelu", " slopes"), ("Neg", "")],
        "stored": {"slopes": integers((6, 1, 1), 4)},
    },
    "float bias": {"bias": "float"},
    "weight alone": {"quantised_output": False},
    "output read twice": {"output": "twice"},
    "float weight with zero points": {
        "weight": UINT8,
        "weight_zero": 120,
        "float_weight": True,
        "per_channel": True,
    },
}


@pytest.mark.parametrize("kwargs", EXACT.values(), ids=EXACT)
def test_values_are_the_same_where_the_pattern_is_another(kwargs):
    assert all_layers_compared(check(quantised(**kwargs, **GEOMETRY), FEED))


def test_scales_of_the_output_per_channel():
    proto = quantised(**GEOMETRY)
    for each in proto.graph.initializer:
        if each.name == "sy":
            each.CopyFrom(tensor("sy", np.array([0.5, 1, 2, 0.5, 4, 0.25], np.float32)))
        elif each.name == "zy":
            each.CopyFrom(tensor("zy", np.array([1, 2, 3, 4, 5, 6], np.uint8)))
    check(proto, FEED)


def test_a_quantised_graph_output_keeps_its_name_type_and_shape(tmp_path):
    proto = quantised(output="quantised", **GEOMETRY)
    quantize = next(each for each in proto.graph.node if "yq" in each.output)
    quantize.name, quantize.doc_string = "last", "of the decoder"
    converted = check_int8(proto, tmp_path).model
    assert list(converted.graph.output) == list(proto.graph.output)
    last = next(each for each in converted.graph.node if "yq" in each.output)
    assert (last.op_type, last.name, last.doc_string) == (
        "QuantizeLinear",
        "last",
        "of the decoder",
    )


@pytest.mark.parametrize(
    ("strides", "zero"),
    [([2, 3], None), ([3, 2], None), ([2, 3], -2)],
    ids=["one geometry", "two geometries", "two zero points"],
)
def test_two_layers_share_a_weight(strides, zero, tmp_path):
    stored = {
        "sx": np.float32(0.5),
        "zx": UINT8(3),
        "sy": np.float32(0.5),
        "zy": UINT8(5),
        "wq": integers(W_SHAPE, 3, INT8),
        "sw": np.float32(0.25),
        "zw": INT8(1),
    }
    nodes = [
        node("QuantizeLinear", "x sx zx", "xq"),
        node("DequantizeLinear", "xq sx zx", "xd"),
        node("DequantizeLinear", "wq sw zw", "wd"),
    ]
    other = "wd"
    if zero is not None:
        stored["zv"], other = INT8(zero), "vd"
        nodes.append(node("DequantizeLinear", "wq sw zv", "vd"))
    for name, weight, pace in (("a", "wd", [2, 3]), ("b", other, strides)):
        layer = deconv(f"xd {weight}", f"{name}f", name, strides=pace, output_padding=[0, 0])
        nodes += [
            layer,
            node("QuantizeLinear", f"{name}f sy zy", f"{name}q"),
            node("DequantizeLinear", f"{name}q sy zy", f"{name}y"),
        ]
    outputs = [value("ay", 4), value("by", 4)]
    proto = model(nodes, [value("x", ["N", 4, "H", "W"])], outputs, stored)
    check_int8(proto, tmp_path)


WEIGHTS = {
    "int4": (ml_dtypes.int4, (-6, 7), 21),
    "uint4": (ml_dtypes.uint4, (0, 13), 21),
    "int16": (np.int16, (-50, 50), 21),
    "float8": (ml_dtypes.float8_e4m3fn, (-3, 4), 19),
}


@pytest.mark.parametrize("zero", [False, True], ids=["", "per channel, with zero points"])
@pytest.mark.parametrize(("dtype", "limits", "opset"), WEIGHTS.values(), ids=WEIGHTS)
def test_other_types_of_the_weight(dtype, limits, opset, zero):
    stored = {"q": np.random.default_rng(1).integers(*limits, W_SHAPE).astype(dtype)}
    stored |= {"s": np.array([0.5, 1, 2], np.float32) if zero else np.float32(0.5)}
    stored |= {"z": np.array([1, 0, 1] if opset > 19 else [0, 0, 0]).astype(dtype)} if zero else {}
    dequantize = node("DequantizeLinear", "q s z" if zero else "q s", "w", axis=1)
    inputs = [value("x", ["N", 4, "H", "W"])]
    proto = model(
        [dequantize, deconv("x w")], inputs, [value("y", 4)], stored, opset=opset, ir_version=10
    )
    converted = check(proto, FEED).model
    kept = next(each for each in converted.graph.initializer if each.name == "q")
    assert kept.data_type == helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


@pytest.mark.parametrize("strides", [[2, 2], [2, 5], [5, 6]], ids=str)
@pytest.mark.parametrize("zero", [False, True], ids=["", "with zero points"])
def test_scales_of_input_channels_stay_with_stored_integers(zero, strides):
    """The layout that TensorRT's tools write, in a layer without groups."""
    shape = (4, 3, 4, 3)
    stored = {"q": integers(shape, 1, INT8), "s": np.array([0.5, 1, 2, 4], np.float32)}
    stored |= {"z": np.array([1, 0, -1, 2], np.int8)} if zero else {}
    dequantize = node("DequantizeLinear", "q s z" if zero else "q s", "w", axis=0)
    up = node("ConvTranspose", "x w", "y", name="up", strides=strides, pads=[1, 0, 0, 1])
    inputs = [value("x", ["N", 4, "H", "W"])]
    converted = check(model([dequantize, up], inputs, [value("y", 4)], stored), FEED).model
    (kept,) = [tensor for tensor in converted.graph.initializer if tensor.name == "q"]
    assert kept.data_type == TensorProto.INT8
    (again,) = [n for n in converted.graph.node if n.op_type == "DequantizeLinear"]
    assert [a.i for a in again.attribute if a.name == "axis"] == [1]


@pytest.mark.parametrize("zero", [False, True], ids=["", "with zero points"])
@pytest.mark.parametrize("strides", [[2, 2], [2, 5]], ids=str)
def test_scales_of_input_channels_of_a_depthwise_layer(strides, zero):
    """Each serves the rows of its group, so the integers stay."""
    stored = {"q": integers((4, 3, 4, 3), 1, INT8), "s": np.array([0.5, 1, 2, 4], np.float32)}
    stored |= {"z": np.array([1, 0, -1, 2], np.int8)} if zero else {}
    dequantize = node("DequantizeLinear", "q s z" if zero else "q s", "w", axis=0)
    up = node("ConvTranspose", "x w", "y", name="up", strides=strides, group=4)
    inputs = [value("x", ["N", 4, "H", "W"])]
    converted = check(model([dequantize, up], inputs, [value("y", 4)], stored), FEED).model
    (kept,) = [tensor for tensor in converted.graph.initializer if tensor.name == "q"]
    assert kept.data_type == TensorProto.INT8
    (again,) = [n for n in converted.graph.node if n.op_type == "DequantizeLinear"]
    assert [a.i for a in again.attribute if a.name == "axis"] == [0]


def test_scales_of_input_channels_in_groups_are_noted():
    """They would differ within a row: the weight is computed as floats, and the report says so."""
    stored = {"q": integers((4, 3, 4, 3), 1, INT8), "s": np.array([0.5, 1, 2, 4], np.float32)}
    dequantize = node("DequantizeLinear", "q s", "w", axis=0)
    up = node("ConvTranspose", "x w", "y", name="up", strides=[2, 2], group=2)
    inputs = [value("x", ["N", 4, "H", "W"])]
    proto = model([dequantize, up], inputs, [value("y", 4)], stored)
    assert any("computed as floats" in note for note in check(proto, FEED).report.notes)


BLOCKS = {"axis 0": (0, 2, (2, 3, 3, 2)), "axis 1": (1, 3, (4, 1, 3, 2)), "per input": (0, 0, (4,))}


@pytest.mark.parametrize(("axis", "size", "shape"), BLOCKS.values(), ids=BLOCKS)
def test_blocks_of_scales(axis, size, shape):
    """Scales along other axes than the output channels: the weight is rearranged as floats."""
    stored = {
        "q": integers(W_SHAPE, 1, INT8),
        "s": integers(shape, 2, low=1),
        "z": integers(shape, 3, INT8),
    }
    dequantize = node("DequantizeLinear", "q s z", "w", axis=axis, block_size=size)
    inputs = [value("x", ["N", 4, "H", "W"])]
    check(
        model(
            [dequantize, deconv("x w")], inputs, [value("y", 4)], stored, opset=21, ir_version=10
        ),
        FEED,
    )


@pytest.mark.parametrize("strides", [[2, 2], [2, 3]], ids=str)
@pytest.mark.parametrize(("domain", "opset"), [("", 21), ("com.microsoft", 17)])
def test_sixteen_bits(domain, opset, strides):
    proto = quantised(
        activation=np.uint16, domain=domain, opset=opset, strides=strides, pads=[1, 0, 0, 1]
    )
    check(proto, FEED)


@pytest.mark.parametrize("activation", [QuantType.QUInt8, QuantType.QInt8], ids=str)
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_what_onnxruntime_quantises(per_channel, activation, tmp_path):
    """Trained-like floats through quantize_static: one layer more runs in int8, all values equal."""
    proto = statically_quantised(
        trained_like(), tmp_path / "int8.onnx", per_channel=per_channel, activation=activation
    )
    x = {"x": np.random.default_rng(4).standard_normal((1, 3, 8, 6)).astype(np.float32)}
    conversion = deconvfix.convert(proto, example_inputs=x, strict=True)
    assert all_layers_compared(conversion)
    assert is_valid(conversion.model)
    step = max(  # the output is one quantised value, so one step is what rounding may move
        float(onnx.numpy_helper.to_array(each))
        for each in conversion.model.graph.initializer
        if each.name == "y_scale"
    )
    (want,), (got,) = (run(each, x, optimize=False) for each in (proto, conversion.model))
    assert np.abs(got - want).max() <= 1.01 * step
    assert (got != want).mean() < 0.02
    before = optimized_operators(proto, tmp_path)
    after = optimized_operators(conversion.model, tmp_path)
    assert (before.count("QLinearConv"), after.count("QLinearConv")) == (2, 3)
    assert not {"Conv", "FusedConv", "ConvTranspose"} & set(after)


def test_the_proof_sees_the_scale_of_one_phase():
    proto = quantised(per_channel=True, **GEOMETRY)
    conversion = deconvfix.convert(proto, example_inputs=FEED)
    scale = next(each for each in conversion.model.graph.initializer if each.name == "sw")
    array = onnx.numpy_helper.to_array(scale).copy()
    array[1] *= 2
    scale.CopyFrom(tensor("sw", array))
    report = proof(proto, conversion.model, [FEED], conversion.plan)
    assert not report.ok


def test_nothing_is_known_of_a_scale_that_the_caller_gives():
    """Exact all the same, with the shuffle before QuantizeLinear."""
    proto = quantised(output="quantised", **GEOMETRY)
    stored = {each.name: each for each in proto.graph.initializer}
    proto.graph.initializer.remove(stored["sy"])
    proto.graph.input.append(value("sy", [], TensorProto.FLOAT))
    check(proto, FEED | {"sy": np.array(0.5, np.float32)})
