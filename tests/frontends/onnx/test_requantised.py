"""Quantised layers with new weights: integers again, with equal phase sums, and what the form means."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnxruntime.quantization import QuantType

import deconvfix
from deconvfix.core.rearrange import rearrange
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import run as run_steps
from deconvfix.forms import form
from deconvfix.frontends.onnx.find import find_layers
from deconvfix.frontends.onnx.frontend import FRONTEND
from deconvfix.frontends.onnx.requantised import as_stored
from deconvfix.grid.kernel import ripple_db
from deconvfix.plan import Fitted, Plan, Replaced
from tests.support.fits import settings_drawn
from tests.support.int8 import (
    INT8,
    UINT8,
    dequantised,
    optimized_operators,
    quantised,
    quantised_layer,
    statically_quantised,
    trained_like,
)
from tests.support.onnx_models import (
    X_SHAPE,
    all_layers_compared,
    constant,
    deconv,
    integers,
    is_valid,
    model,
    node,
    proof,
    run,
    value,
)
from tests.support.strategies import Case, cases

FEED = {"x": integers(X_SHAPE, 9)}
FORMS = ["equalized", "notch", "resize"]
# All phases of both axes have taps.
STRIDES = {"strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 0]}


def converted(proto, to, feed=FEED, **options):
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


def by_definition(conversion, x):
    """The layer's steps in float64, with the weights that the file holds."""
    (decision,) = conversion.plan.replaced
    compiled = decision.compiled()
    ((operands),) = dequantised(conversion.model)
    q, scales, _ = operands["weight"]
    bias = None
    if "bias" in operands:
        steps, of_bias, _ = operands["bias"]
        bias = (steps * of_bias).reshape(-1)
    weight = q * scales
    # The file's weight is the rearranged one of the plan, exactly.
    kernel = decision.fitted.kernel
    verbs = compiled.weight
    wanted = rearrange(verbs, kernel, decision.spec.groups) if verbs else kernel
    np.testing.assert_array_equal(weight, wanted)
    return run_steps(compiled.steps, x, weight, bias)


@pytest.mark.parametrize("to", FORMS)
@given(
    cases(),
    settings_drawn,
    st.sampled_from(["all", "outputs", "inputs"]),
    st.sampled_from([(INT8, 0), (INT8, 3), (UINT8, 120)]),
    st.sampled_from([UINT8, INT8]),
)
def test_any_layer_is_what_its_form_means_with_the_integers_of_the_file(
    to, case, settings, layout, weight, activation
):
    """Equality, for all sums of scales that are powers of two are exact in float32."""
    if layout == "inputs" and 1 < case.spec.groups < case.spec.in_channels:
        layout = "outputs"  # others are refused
    dtype, zero = weight
    proto, feed = quantised_layer(
        case, layout=layout, weight=dtype, zero=zero, activation=activation
    )
    options = {"grow": settings.grow}
    if to == "resize":
        options |= {"padding_mode": settings.padding_mode}
    if to == "notch":
        options |= {"reach": settings.reach}
    # ONNX Runtime runs no ConvTranspose with a larger output_padding.
    pairs = zip(case.spec.output_padding, case.spec.stride, strict=True)
    assume(to != "equalized" or all(more < s for more, s in pairs))
    conversion = deconvfix.convert(
        proto, to=to, init="fit", include=("up",), verify=False, **options
    )
    # As for floats: what is refused or kept is so for its geometry or its equal sums.
    if not conversion.plan.replaced:
        return
    (decision,) = conversion.plan.replaced
    if decision.target.is_exact or decision.exact:
        return
    (got,) = run(conversion.model, feed, optimize=False)
    np.testing.assert_array_equal(got, by_definition(conversion, 0.5 * case.x))
    kernel, scales = decision.fitted.kernel, decision.fitted.scales
    spread, whole = decision.target.spread(decision.spec, decision.settings, kernel / scales)
    np.testing.assert_array_equal(kernel / scales, np.rint(kernel / scales))
    if to != "resize":
        assert ripple_db(spread, whole) == -300


# --- scales ---------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("layout", ["all", "outputs", "inputs"])
@pytest.mark.parametrize("to", FORMS)
def test_a_scale_grows_where_it_must_and_no_tap_moves_by_a_unit(to, layout):
    case = wide(groups=1 if layout == "inputs" else 2)
    proto, feed = quantised_layer(case, layout=layout)
    [before] = dequantised(proto)
    conversion = converted(proto, to, feed, grow=1)
    [after] = dequantised(conversion.model)
    (decision,) = conversion.plan.replaced
    q, _, dtype = after["weight"]
    assert dtype == np.int8
    assert np.abs(q).max() <= 127
    kernel, scales = decision.fitted.kernel, decision.fitted.scales
    chosen = form(to)
    wanted = chosen.fit(decision.spec, decision.settings, before["weight"][0] * before["weight"][1])
    # Below one unit, and a scale in float32 is half a part in 2^24 off.
    assert (np.abs(kernel - wanted) < scales * (1 + 1e-5)).all()
    old = before["weight"][1]
    old = np.concatenate([old, old]) if len(scales) > max(len(old), 1) else old
    needed = np.abs(wanted) / 127
    axes = tuple(i for i in range(needed.ndim) if scales.shape[i] == 1)
    needed = needed.max(axes, keepdims=True)
    if len(scales) > 1:  # one for a channel and its means
        needed = needed.reshape(-1, 4, *needed.shape[1:]).max(0)
        old, scales = old[:4], scales[:4]
    stays = needed <= old
    assert (scales[stays] == old[stays]).all()
    np.testing.assert_allclose(scales[~stays], needed[~stays], rtol=1e-6)
    if layout == "outputs":
        assert stays.any(), "the channel of small taps keeps its scale"


def quantised_with(case, to):
    proto, feed = quantised_layer(case, layout="outputs")
    return proto, to, feed


@pytest.mark.parametrize("to", FORMS)
def test_seven_bits_stay_seven_bits(to):
    """`reduce_range` is for CPUs whose sums would saturate with more."""
    case = wide(most=64)
    case.weight[0, 0, 0, 0] = 64
    [found] = dequantised(converted(*quantised_with(case, to)).model)
    assert np.abs(found["weight"][0]).max() <= 64


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("to", FORMS)
def test_the_scale_of_the_bias_is_that_of_the_products(to, per_channel):
    """In the bits that runtimes compare, and each bias off by half a unit at most."""
    case = wide()
    proto, feed = quantised_layer(case, layout="outputs" if per_channel else "all")
    [before] = dequantised(proto)
    [after] = dequantised(converted(proto, to, feed).model)
    (q, scales, dtype), (_, of_weight, _) = after["bias"], after["weight"]
    assert dtype == np.int32
    bias = (before["bias"][0] * before["bias"][1]).reshape(-1)
    rows = 3 * 2
    if to == "notch":  # each of the phases has it
        bias = np.repeat(bias, len(q) // rows)
    np.testing.assert_array_less(np.abs(q * scales.reshape(-1) - bias), 0.51 * scales.max())
    products = np.float32(0.5) * of_weight.astype(np.float32)
    products = products.reshape(-1)
    if to == "equalized" and per_channel:
        products = np.tile(products, 2)  # the weight's serve both groups
    np.testing.assert_array_equal(scales.reshape(-1).astype(np.float32), products)


# --- sums -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["equalized", "notch"])
def test_the_report_has_no_ripple_where_plain_rounding_has_one(to):
    """The negative control: the same kernel, each tap rounded on its own."""
    proto, feed = quantised_layer(wide(), layout="outputs")
    conversion = converted(proto, to, feed)
    (layer,) = conversion.report.layers
    assert layer.ripple_db_after == -300
    (decision,) = conversion.plan.replaced
    layer = find_layers(ir.from_proto(proto))[0]
    scales = decision.fitted.scales
    kernel = decision.target.fit(decision.spec, decision.settings, layer.read_weight())
    plain = np.rint(kernel / scales) * scales
    assert ripple_db(*decision.target.spread(decision.spec, decision.settings, plain)) > -60


def test_a_part_of_the_grid_stays_as_in_floats():
    proto, feed = quantised_layer(wide(), layout="outputs")
    conversion = converted(proto, "equalized", feed, strength=0.5)
    (decision,), (layer,) = conversion.plan.replaced, conversion.report.layers
    weight = find_layers(ir.from_proto(proto))[0].read_weight()
    floats = ripple_db(*decision.target.equivalent(decision.spec, decision.settings, weight))
    # The sum of each phase is off by a unit at most, and the sums are some hundred units.
    assert layer.ripple_db_after == pytest.approx(floats, abs=0.1)
    assert layer.ripple_db_after > layer.ripple_db_before - 7


def test_rounding_twice_changes_nothing():
    proto, _ = quantised_layer(wide(), layout="outputs")
    layer = find_layers(ir.from_proto(proto))[0]
    plan = deconvfix.convert(proto, to="equalized", init="fit").plan
    (decision,) = plan.replaced
    assert as_stored(layer, decision) is decision
    kernel = decision.fitted.kernel
    again = as_stored(layer, replace(decision, fitted=Fitted(kernel, None)))
    assert isinstance(again, Replaced)
    np.testing.assert_array_equal(again.fitted.kernel, kernel)


@pytest.mark.parametrize("to", FORMS)
def test_the_proof_sees_one_integer(to):
    proto, feed = quantised_layer(wide(), layout="outputs")
    conversion = converted(proto, to, feed)
    for each in conversion.model.graph.initializer:
        if each.name == "wq":
            q = onnx.numpy_helper.to_array(each).copy()
            q.flat[q.argmin()] += 1
            each.CopyFrom(onnx.numpy_helper.from_array(q, "wq"))
    assert not proof(proto, conversion.model, [feed], conversion.plan).ok


def test_a_recipe_gives_the_same_integers():
    """It holds no weights, so that they are rounded again."""
    proto, feed = quantised_layer(wide(), layout="outputs")
    conversion = converted(proto, "notch", feed)
    recipe = Plan.from_json(conversion.plan.to_json())
    again = deconvfix.convert(proto, plan=recipe, example_inputs=feed)
    assert again.model == conversion.model


# --- what runs ------------------------------------------------------------------------------------------

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
    conversion = converted(quantised(**kwargs, **STRIDES), to, strict=strict)
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
    conversion = converted(proto, "equalized")
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
        assert dequantised(converted(proto, to).model)[0]["weight"][2] == np.int8


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
    conversion = converted(proto, "resize", init="exact")
    assert conversion.plan.replaced[0].exact
    (want,), (got,) = run(proto, FEED), run(conversion.model, FEED)
    np.testing.assert_array_equal(got, want)


def test_a_kernel_that_divides_and_is_none_of_integers_is_refused():
    """The integers of nearest upsampling in 1-D, over h = 1/4 3/4 3/4 1/4: what is left are quarters."""
    kernel = integers((4, 3, 1, 1), 5, INT8) * np.array([1, 3, 3, 1], INT8).reshape(-1, 1)
    stored = {"q": kernel, "s": np.float32(0.25)}
    proto = weight_alone(stored, node("DequantizeLinear", "q s", "w"), (2, 1))
    options = {"to": "resize", "interpolation": "linear"}
    # w = 4 q is an integer, and the same function.
    assert deconvfix.convert(proto, **options).plan.replaced[0].exact
