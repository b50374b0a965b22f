"""Files of quantised layers with new weights: what runs in integers, and what is refused."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime.quantization import QuantType

import deconvfix
from deconvfix.frontends.onnx.frontend import FRONTEND
from tests.support.int8 import (
    INT8,
    UINT8,
    converted,
    dequantised,
    optimized_operators,
    quantised,
    quantised_layer,
    statically_quantised,
    trained_like,
    wide,
)
from tests.support.onnx_models import (
    X_SHAPE,
    constant,
    deconv,
    integers,
    model,
    node,
    run,
    value,
)

FEED = {"x": integers(X_SHAPE, 9)}
FORMS = ["equalized", "notch", "resize"]
# All phases of both axes have taps.
STRIDES = {"strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 0]}


PATTERNS = {
    "uint8": {},
    "int8": {"activation": INT8},
    "zero points": {"weight": UINT8, "weight_zero": 120, "per_channel": True},
    "float bias": {"bias": "float"},
    "Relu": {"between": [("Relu", "")], "out": (0.5, 0)},
    "opset 10": {"opset": 10},
    "opset 21": {"opset": 21, "per_channel": True},
    "weight alone": {"quantised_output": False},
    "output read twice": {"output": "twice"},
    "quantised output": {"output": "quantised"},
    "ONNX Runtime's own operators": {"domain": "com.microsoft", "per_channel": True},
}


@pytest.mark.parametrize("kwargs", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("to", FORMS)
def test_patterns(to, kwargs):
    # The match of integers is not measured, and nothing else is missing there.
    strict = kwargs.get("output") != "quantised"
    conversion = converted(quantised(**kwargs, **STRIDES), to, FEED, strict=strict)
    [found] = dequantised(conversion.model)
    assert found["weight"][2] == kwargs.get("weight", INT8)


@pytest.mark.parametrize("activation", [QuantType.QUInt8, QuantType.QInt8], ids=str)
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate"])
def test_a_resize_convolution_runs_in_integers(mode, per_channel, activation, tmp_path):
    proto = statically_quantised(
        trained_like(), tmp_path / "int8.onnx", per_channel=per_channel, activation=activation
    )
    feed = {"x": np.random.default_rng(4).standard_normal((1, 3, 8, 6)).astype(np.float32)}
    conversion = converted(proto, "resize", feed, padding_mode=mode)
    after = optimized_operators(conversion.model, tmp_path)
    assert after.count("QLinearConv") == 3
    assert not {"Conv", "FusedConv", "ConvTranspose"} & set(after)
    # Resize moves bytes, and so does Pad where they are unsigned.
    signed = activation == QuantType.QInt8
    behind = (
        {"DequantizeLinear"} if signed and mode != "zeros" else {"Pad", "QLinearConv", "Transpose"}
    )
    assert after[after.index("Resize") + 1] in behind


def test_an_equalized_layer_goes_on_to_the_exact_form_and_has_no_grid_in_integers(tmp_path):
    """The quantised outputs of all phases are the same for a constant."""
    proto = statically_quantised(trained_like(), tmp_path / "int8.onnx")
    flat = {"x": np.full((1, 3, 20, 20), 0.7, np.float32)}
    even = converted(proto, "equalized", flat).model
    exact = deconvfix.convert(even, example_inputs=flat, strict=True).model
    assert optimized_operators(exact, tmp_path).count("QLinearConv") == 3
    for each, grid in ((proto, True), (even, False), (exact, False)):
        (y,) = run(each, flat)
        middle = y[..., 18:22, 18:22]
        assert (np.ptp(middle, axis=(2, 3)) > 0).any() == grid


@pytest.mark.parametrize("to", FORMS)
def test_calibrated_fits_are_integers_too(to, tmp_path):
    proto = statically_quantised(trained_like(), tmp_path / "int8.onnx")
    rng = np.random.default_rng(5)
    data = [{"x": rng.standard_normal((8, 3, 8, 6)).astype(np.float32)} for _ in range(4)]
    conversion = converted(proto, to, data[0], init=None, calibration=data)
    (layer,) = conversion.report.layers
    assert "calibrated" in layer.reason
    assert "rounded to int8" in layer.reason
    assert layer.ripple_db_after == -300
    rounded = dequantised(conversion.model)
    assert [each["weight"][2] for each in rounded] == [np.int8] * 3
    assert [each["bias"][2] for each in rounded[:2]] == [np.int32] * 2
    # The fit brings it closer to the original than that to the weights alone.
    distances = []
    for model_ in (conversion.model, converted(proto, to, data[0]).model):
        pairs = [(run(proto, each)[0], run(model_, each)[0]) for each in data]
        distances.append(sum(np.square(a - b).sum() for a, b in pairs))
    assert distances[0] < distances[1]


def test_layers_that_share_a_weight_get_their_own():
    stored = {
        "sx": np.float32(0.5),
        "zx": UINT8(3),
        "wq": integers((4, 3, 3, 2), 3, INT8),
        "sw": np.float32(0.25),
        "zw": INT8(0),
    }
    nodes = [
        node("QuantizeLinear", "x sx zx", "xq"),
        node("DequantizeLinear", "xq sx zx", "xd"),
        node("DequantizeLinear", "wq sw zw", "wd"),
        deconv("xd wd", "ay", "a", strides=[2, 2], output_padding=[0, 0]),
        deconv("xd wd", "by", "b", strides=[3, 2], output_padding=[0, 0]),
    ]
    outputs = [value("ay", 4), value("by", 4)]
    proto = model(nodes, [value("x", ["N", 4, "H", "W"])], outputs, stored)
    conversion = converted(proto, "equalized", FEED)
    assert [layer.ripple_db_after for layer in conversion.report.layers] == [-300, -300]


def as_constants(proto):
    """The same with Constant nodes, in front, instead of initializers."""
    nodes = [
        constant(each.name, onnx.numpy_helper.to_array(each)) for each in proto.graph.initializer
    ]
    nodes += proto.graph.node
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


@pytest.mark.parametrize("to", FORMS)
def test_stored_in_constant_nodes(to):
    proto, feed = quantised_layer(wide(), layout="outputs")
    floats = converted(proto, to, feed, grow=1).model
    constants = converted(as_constants(proto), to, feed, grow=1).model
    np.testing.assert_array_equal(run(constants, feed)[0], run(floats, feed)[0])


def test_an_input_that_is_quantised_while_the_model_runs():
    """What stays as it was: such a layer runs as floats."""
    stored = {"q": integers((4, 3, 4, 3), 1, INT8), "s": np.float32(0.25)}
    nodes = [
        node("DynamicQuantizeLinear", "x", "xq sx zx"),
        node("DequantizeLinear", "xq sx zx", "xd"),
        node("DequantizeLinear", "q s", "w"),
        node("ConvTranspose", "xd w", "y", name="up", strides=[2, 2]),
    ]
    proto = model(nodes, [value("x", ["N", 4, "H", "W"])], [value("y", 4)], stored)
    for to in FORMS:
        assert dequantised(converted(proto, to, FEED).model)[0]["weight"][2] == np.int8


def test_layers_of_quantised_files_are_refitted_as_integers(tmp_path):
    """What `fix` does to a file: to outputs without a grid."""
    proto = statically_quantised(trained_like(), tmp_path / "int8.onnx")
    rng = np.random.default_rng(5)
    data = [{"x": rng.standard_normal((1, 3, 16, 12)).astype(np.float32)} for _ in range(6)]
    refitter = FRONTEND.refitter(ir.from_proto(proto), data, 4, 0)
    fitted, plan, notes = refitter.refit(refitter.names, 20.0)
    assert (list(refitter.names), notes) == (["up"], [])
    assert "rounded to int8" in plan.replaced[0].reason
    after = ir.to_proto(fitted)
    assert dequantised(after)[1]["weight"][2] == np.int8
    assert (dequantised(after)[1]["weight"][0] != dequantised(proto)[1]["weight"][0]).any()


# --- what is refused ------------------------------------------------------------------------------------


def weight_alone(stored, dequantize, strides=(2, 2), opset=17, **attributes):
    up = node("ConvTranspose", "x w", "y", name="up", strides=list(strides), **attributes)
    inputs = [value("x", ["N", 4, "H", "W"])]
    return model([dequantize, up], inputs, [value("y", 4)], stored, opset=opset, ir_version=10)


Q = integers((4, 3, 4, 3), 1, INT8)
REFUSED = {
    "int16": (
        {"q": Q.astype(np.int16), "s": np.float32(0.5)},
        {"opset": 21},
        "its weight is quantised, and stored as int16",
    ),
    "groups": (
        {"q": Q, "s": np.array([0.5, 1, 2, 4], np.float32)},
        {"group": 2, "axis": 0},
        "its weight is quantised, and its scales lie in blocks, or for input channels in groups",
    ),
    "shapes": (
        {"q": Q, "s": np.array([0.5, 1], np.float32)},
        {"axis": 1},
        "its weight is quantised, and its integers, scales and zero points do not have the shapes that "
        "belong together",
    ),
    "shapes of zero points": (
        {"q": Q, "s": np.array([0.5, 1, 2], np.float32), "z": np.zeros(2, INT8)},
        {"axis": 1},
        "its weight is quantised, and its integers, scales and zero points do not have the shapes that "
        "belong together",
    ),
    "no scale": (
        {"q": Q, "s": np.float32(0)},
        {},
        "its weight is quantised, and a scale is no positive number",
    ),
    "zero points": (
        {"q": Q.astype(UINT8) % 9, "s": np.float32(0.5), "z": UINT8(9)},
        {},
        "its weight is quantised, and a zero point leaves too few integers to one sign",
    ),
}


@pytest.mark.parametrize(("stored", "more", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("to", FORMS)
def test_refusals(to, stored, more, words):
    more = dict(more)
    axis = {"axis": more.pop("axis")} if "axis" in more else {}
    dequantize = node("DequantizeLinear", " ".join(stored), "w", **axis)
    (refused,) = deconvfix.convert(
        weight_alone(stored, dequantize, **more), to=to, init="fit"
    ).plan.refused
    assert refused.reason.startswith(f"up: {words}; another form needs a stored weight (floats")
    assert refused.reason.endswith(
        "Convert the float file, and quantise what comes out; or make this layer 'subpixel'."
    )


def test_scales_that_the_caller_gives_are_refused():
    proto = weight_alone({"q": Q}, node("DequantizeLinear", "q s", "w"))
    proto.graph.input.append(value("s", []))
    (refused,) = deconvfix.convert(proto, to="resize", init="fit").plan.refused
    assert "its integers, scales or zero points are not stored" in refused.reason


def test_weights_that_are_quantised_while_the_model_runs_are_refused():
    plan = deconvfix.convert(quantised(float_weight=True), to="resize", init="fit").plan
    assert "its integers, scales or zero points are not stored" in plan.refused[0].reason


def divisible(factor):
    """The kernel of nearest upsampling by 2 and some integers: one that divides."""
    w = integers((4, 3, 2), 5, np.int64) * factor
    kernel = np.zeros((4, 3, 3, 1), np.int64)
    kernel[:, :, :2, 0] += w
    kernel[:, :, 1:, 0] += w
    return kernel.astype(INT8)


def test_a_kernel_that_divides_in_integers_stays_the_same_function():
    stored = {"q": divisible(3), "s": np.float32(0.25)}
    proto = weight_alone(stored, node("DequantizeLinear", "q s", "w"), (2, 1))
    conversion = converted(proto, "resize", FEED, init="exact")
    assert conversion.plan.replaced[0].exact
    (want,), (got,) = run(proto, FEED), run(conversion.model, FEED)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("most", "whole"), [(31, True), (42, False)])
def test_a_kernel_that_divides_is_refused_where_its_integers_are_too_large(most, whole):
    """By h = 1/4 3/4 3/4 1/4 w = 4 q is left, and 168 is no int8: larger scales round it."""
    q = integers((4, 3, 1, 1), 5, np.int64, -most, most + 1)
    q.flat[:2] = most, 1 - most
    stored = {"q": (q * np.array([1, 3, 3, 1]).reshape(-1, 1)).astype(INT8), "s": np.float32(0.25)}
    proto = weight_alone(stored, node("DequantizeLinear", "q s", "w"), (2, 1))
    options = {"to": "resize", "interpolation": "linear"}
    (decision,) = deconvfix.convert(proto, **options).plan.decisions
    assert (decision.decision, decision.exact) == ("replaced" if whole else "refused", True)
    if whole:
        return
    assert "the kernel of the same function is none of integers with its scales" in decision.reason
    # Asked for by name, it is rounded, and no longer said to be the same.
    conversion = converted(proto, "resize", FEED, interpolation="linear")
    (decision,) = conversion.plan.replaced
    assert not decision.exact
    assert 1e-4 < decision.relative_residual < 1e-2
    assert f"moves its kernel by {decision.relative_residual:.3g} of its size" in decision.reason
