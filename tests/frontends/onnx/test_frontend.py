"""Every ConvTranspose node, by the operator specification and as ONNX Runtime runs it."""

import importlib

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.backend.test.case import node as node_tests

import deconvfix
from deconvfix.errors import ModelError
from deconvfix.parity.runtime import open_session, run_named
from deconvfix.plan import Options
from deconvfix.planning import make_plan
from deconvfix.targets.profile import NO_LIMITS
from tests.support.strategies import cases

FLOAT = onnx.TensorProto.FLOAT

OPSETS = (1, 2, 5, 6, 7, 8, 9, 10, 11, 13, 15, 18, 21, 22, 24)

SOURCES = ("initializer", "constant", "input", "computed")


def build(
    x_shape, weight, bias=None, *, opset=22, source="initializer", ir_version=10, **attributes
):
    """A model of one node `up` with the output `y`, and the inputs that it needs beside `x`."""
    nodes, inputs, initializers, feed = [], [], [], {}
    inputs.append(helper.make_tensor_value_info("x", FLOAT, x_shape))
    names = ["x"]
    for name, array in (("w", weight), ("b", bias)):
        if array is None:
            continue
        names.append(name)
        array = array.astype(np.float32)
        if source == "input":
            inputs.append(helper.make_tensor_value_info(name, FLOAT, array.shape))
            feed[name] = array
        elif source == "constant":
            value = numpy_helper.from_array(array)
            nodes.append(helper.make_node("Constant", [], [name], value=value))
        elif source == "computed" and array.ndim > 1:
            order = list(range(array.ndim))[::-1]
            value = numpy_helper.from_array(np.ascontiguousarray(array.transpose(order)))
            nodes.append(helper.make_node("Constant", [], ["turned"], value=value))
            nodes.append(helper.make_node("Transpose", ["turned"], [name], perm=order))
        else:
            initializers.append(numpy_helper.from_array(array, name))
            if ir_version < 4:
                inputs.append(helper.make_tensor_value_info(name, FLOAT, array.shape))
    nodes.append(helper.make_node("ConvTranspose", names, ["y"], name="up", **attributes))
    output = helper.make_tensor_value_info("y", FLOAT, [None] * weight.ndim)
    graph = helper.make_graph(nodes, "net", inputs, [output], initializers)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), feed


def convert(model, **options):
    """The front end alone: what it is held against here is not its own proof."""
    return deconvfix.convert(model, verify=False, **options).model


def outputs(model, feed):
    """Outputs of a model as it stands, and optimised."""
    content = model.SerializeToString()
    return [run_named(open_session(content, optimize=each), feed)[0] for each in (False, True)]


def passes_checks(model):
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def operators(model):
    return {node.op_type for node in model.graph.node}


anything = {
    "case": cases(),
    "opset": st.sampled_from(OPSETS),
    "source": st.sampled_from(SOURCES),
    "open_sizes": st.booleans(),
}


@given(**anything)
def test_every_geometry_by_definition(case, opset, source, open_sizes):
    """Against the loops of the oracle, which run what ONNX Runtime refuses too."""
    converted = converted_by_definition(case, opset, source, open_sizes)
    assert "ConvTranspose" not in operators(converted)


def is_possible(writing):
    """A map for each phase comes from `phases` alone, and three shuffles take no such maps."""
    return writing.convolution != "phases" or writing.shuffle in ("dcr", "whole", "slices")


@pytest.mark.parametrize("writing", [*filter(is_possible, NO_LIMITS.writings(2))], ids=str)
@pytest.mark.parametrize("open_sizes", [False, True], ids=["fixed sizes", "open sizes"])
@settings(max_examples=10, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_every_writing_by_definition(writing, open_sizes, data):
    drawn = data.draw(st.fixed_dictionaries({key: anything[key] for key in ("opset", "source")}))
    case = data.draw(cases(square=writing.shuffle in ("crd", "dcr")))
    if writing.shuffle in ("whole", "slices"):
        open_sizes = open_sizes and case.spec.ndim == 1
    asked = {"convolution": writing.convolution, "shuffle": writing.shuffle}
    converted_by_definition(case, **drawn, open_sizes=open_sizes, **asked)


def converted_by_definition(case, opset, source, open_sizes, **asked):
    """A layer in ONNX Runtime after its conversion, which is discarded where it is refused."""
    spec = case.spec
    if opset == 1 and source != "initializer":
        opset = 2  # ONNX Runtime has no Pad of opset 1, which rearranges weights at run time
    shape = [None] * case.x.ndim if open_sizes else list(case.x.shape)
    shape[1] = spec.in_channels
    pads = [b for b, _ in spec.padding] + [e for _, e in spec.padding]
    model, feed = build(
        shape,
        case.weight,
        case.bias,
        opset=opset,
        source=source,
        ir_version=3 if opset < 9 else 10,
        strides=spec.stride,
        pads=pads,
        output_padding=spec.output_padding,
        dilations=spec.dilation,
        group=spec.groups,
    )
    converted = convert(model, **asked, strict=not asked)
    if asked:
        assume(converted != model)
    assert converted.opset_import == model.opset_import
    assert passes_checks(converted)
    for got in outputs(converted, feed | {"x": case.x.astype(np.float32)}):
        np.testing.assert_array_equal(got, case.expected.astype(np.float32))
    return converted


@st.composite
def padded(draw):
    """A node whose padding ONNX Runtime computes: auto_pad, output_shape, or both."""
    case = draw(cases())
    spec = case.spec
    # ONNX Runtime refuses output_padding of a stride or more.
    output_padding = [
        min(op, s - 1) for op, s in zip(spec.output_padding, spec.stride, strict=True)
    ]
    attributes = {
        "strides": spec.stride,
        "dilations": spec.dilation,
        "group": spec.groups,
        "output_padding": output_padding,
        "auto_pad": draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])),
    }
    if draw(st.booleans()):
        natural = [
            (length - 1) * s + big_k + op
            for length, s, big_k, op in zip(
                case.x.shape[2:],
                spec.stride,
                spec.effective_kernel_size,
                output_padding,
                strict=True,
            )
        ]
        # It runs up to s - 1 positions beyond the natural size, output_padding included.
        attributes["output_shape"] = [
            draw(st.integers(1, n - op + s - 1))
            for n, op, s in zip(natural, output_padding, spec.stride, strict=True)
        ]
    if draw(st.booleans()):
        attributes["kernel_shape"] = spec.kernel_size
    return case, attributes, draw(st.booleans())


@given(padded(), st.sampled_from((10, 11, 13, 22)))
def test_padding_as_onnx_runtime_computes_it(drawn, opset):
    case, attributes, open_sizes = drawn
    shape = list(case.x.shape)
    if open_sizes:
        shape[2:] = [f"length_{axis}" for axis in range(case.spec.ndim)]
    model, feed = build(shape, case.weight, case.bias, opset=opset, **attributes)
    feed["x"] = case.x.astype(np.float32)
    want = outputs(model, feed)[0]
    converted = convert(model)
    assert "ConvTranspose" not in operators(converted)
    for got in outputs(converted, feed):
        np.testing.assert_array_equal(got, want)


# --- the parameter sets of others ---------------------------------------------------------------


importlib.import_module("onnx.backend.test.case.node.convtranspose")  # makes the tests

BACKEND = [
    pytest.param(each, id=each.name)
    for each in node_tests._NodeTestCases  # the public collector imports the tests of all operators
    if "ConvTranspose" in {node.op_type for node in each.model.graph.node}
]


def test_all_backend_tests_are_there():
    assert len(BACKEND) >= 11


@pytest.mark.parametrize("case", BACKEND)
def test_backend_test_of_onnx(case):
    """ONNX's own node tests, held against the outputs that ONNX publishes for them."""
    converted = convert(case.model)
    assert "ConvTranspose" not in operators(converted)
    assert passes_checks(converted)
    names = [each.name for each in case.model.graph.input]
    for inputs, wanted in case.data_sets:
        for got in outputs(converted, dict(zip(names, inputs, strict=True))):
            # Sums of products of integers, all exact in float32.
            np.testing.assert_array_equal(got, wanted[0])


# Geometries of ONNX Runtime's own tests of the operator: x, w, bias, attributes.
HALF = {"output_padding": [1, 1], "pads": [1] * 4, "strides": [2, 2]}

RUNTIME_SETS = {
    "1d": ((1, 1, 3), (1, 2, 3), False, {}),
    "2d": ((1, 1, 3, 3), (1, 1, 3, 3), False, HALF),
    "2d_bias_1": ((1, 1, 5, 5), (1, 1, 3, 3), True, {"pads": [1] * 4}),
    "2d_bias_2": ((1, 1, 7, 7), (1, 1, 2, 2), True, {}),
    "output_shape_1": ((1, 3, 4, 4), (3, 3, 3, 3), False, {"output_shape": [4, 4]}),
    "output_shape_1_group_2": ((1, 6, 4, 4), (6, 3, 3, 3), False, {"output_shape": [4, 4], "group": 2}),
    "output_shape_2": ((1, 1, 1, 10), (1, 1, 1, 5), True, {"output_shape": [1, 14]}),
    "output_shape_batch": ((2, 1, 1, 10), (1, 1, 1, 5), True, {"output_shape": [1, 14]}),
    "onnx": ((1, 1, 3, 3), (1, 2, 3, 3), False, {}),
    "onnx2": ((1, 2, 3, 3), (2, 3, 2, 2), False, {}),
    "onnx_group": ((1, 16, 1, 1), (16, 2, 1, 1), False, {"group": 4}),
    "dilation_1": ((1, 1, 2, 2), (1, 1, 2, 2), False, {"dilations": [2, 2]}),
    "dilation_2": ((1, 1, 2, 2), (1, 1, 2, 2), False, {"dilations": [3, 3]}),
    "dilation_3": ((1, 1, 3, 3), (1, 1, 2, 2), False, {"dilations": [2, 2]}),
    "dilation_4": ((1, 1, 3, 3), (1, 1, 2, 2), False, {"dilations": [3, 3]}),
    "dilation_group_1": ((1, 2, 3, 3), (2, 1, 2, 2), False, {"dilations": [2, 2], "group": 2}),
    "strides_and_dilations": ((1, 1, 1, 2), (1, 1, 1, 4), False, {"strides": [1, 2], "dilations": [1, 3]}),
    "no_pictures": ((0, 1, 3, 3), (1, 1, 3, 3), False, HALF),
    "3d": ((1, 1, 3, 4, 5), (1, 2, 3, 3, 3), True, {}),
    "1d_asymmetric": ((1, 1, 4), (1, 2, 2), False, {"pads": [1, 0]}),
    "1d_same_upper": ((1, 1, 4), (1, 2, 2), False, {"auto_pad": "SAME_UPPER"}),
    "1d_same_lower": ((1, 1, 4), (1, 2, 2), False, {"auto_pad": "SAME_LOWER"}),
    "same_lower_strided": ((1, 1, 3, 3), (1, 2, 3, 3), False, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
}  # fmt: skip


@pytest.mark.parametrize("weights", ["initializer", "input"])
@pytest.mark.parametrize("name", RUNTIME_SETS)
def test_parameter_set_of_onnx_runtime(name, weights):
    x_shape, w_shape, has_bias, attributes = RUNTIME_SETS[name]
    rng = np.random.default_rng(0)
    weight = rng.integers(-3, 4, w_shape)
    bias = rng.integers(-3, 4, w_shape[1] * attributes.get("group", 1)) if has_bias else None
    model, feed = build(x_shape, weight, bias, opset=11, source=weights, **attributes)
    feed["x"] = rng.integers(-3, 4, x_shape).astype(np.float32)
    (want, _), got = outputs(model, feed), outputs(convert(model), feed)
    for each in got:
        np.testing.assert_array_equal(each, want)


# --- refusals -----------------------------------------------------------------------------------


W = np.ones((2, 3, 2, 2))


def unknown_kernel():
    model, _ = build([1, 2, 4, 5], W, source="input")
    model.graph.input[1].type.tensor_type.ClearField("shape")
    return model


def unknown_channels():
    model, _ = build([1, None, 4, 5], W, source="input", kernel_shape=[2, 2])
    model.graph.input[1].type.tensor_type.shape.dim[0].Clear()
    return model


REFUSED = [
    (unknown_kernel, "neither the shape of its weight nor the attribute kernel_shape is known"),
    (unknown_channels, "its numbers of channels are not known"),
    (lambda: build([1, 2, 4, 5], W, kernel_shape=[3, 2])[0], "kernel_shape is [3, 2]"),
    (lambda: build([1, 2, 4, 5], W, strides=[2])[0], "strides is [2]"),
    (lambda: build([1, 2, 4], W)[0], "the input's shape is (1, 2, 4)"),
    (lambda: build([1, 2, 4, 5], W, pads=[-1, 0, 0, 0])[0], "padding must not be negative"),
    (lambda: build([1, 2, 4, 5], W, group=3)[0], "`groups` is 3"),
    (
        lambda: build([1, 2, None, 5], W, opset=9, output_shape=[5, 6])[0],
        "a crop that depends on the input needs opset 10",
    ),
    (
        lambda: build([1, 2, 4, 5], W, opset=1, ir_version=3, source="input")[0],
        "its weight is not stored, and the file has opset 1",
    ),
]


@pytest.mark.parametrize(("make", "fragment"), REFUSED, ids=[each[1][:30] for each in REFUSED])
def test_refusal_is_a_sentence(make, fragment):
    model = make()
    (layer,) = deconvfix.inspect(model).layers
    assert layer.name == "up"
    assert layer.refusal.startswith("up: ")
    assert fragment in layer.refusal
    conversion = deconvfix.convert(model, verify=False)
    assert conversion.plan.decisions[0].decision == "refused"
    assert conversion.model == model
    with pytest.raises(deconvfix.RefusedError, match="up: "):
        deconvfix.convert(model, verify=False, strict=True)


# --- the public calls ---------------------------------------------------------------------------


@pytest.fixture
def model():
    rng = np.random.default_rng(3)
    weight, bias = rng.integers(-3, 4, (3, 5, 4, 3)), rng.integers(-3, 4, 5)
    return build(["n", 3, "h", "w"], weight, bias, strides=[2, 3], pads=[1, 0, 2, 1])[0]


def test_conversion_is_proven_without_inputs(model):
    conversion = deconvfix.convert(model)
    report = conversion.report
    assert report.verdict() == "1 transposed convolution found: 1 replaced; verified."
    assert report.input == "ModelProto"
    kinds = {each.what for each in report.parity.comparisons}
    assert kinds == {"up", "y"}
    shapes = {each.inputs for each in report.parity.comparisons}
    assert any("n=2" in each for each in shapes)
    assert any("optimised" in each for each in shapes)
    assert deconvfix.verify(model, conversion.model, []).ok


def test_inputs_are_given_by_position_or_name(model):
    x = np.ones((2, 3, 5, 4), np.float32)
    for inputs in ((x,), x, {"x": x}, ((), {"x": x})):
        assert deconvfix.convert(model, example_inputs=inputs).report.ok


@pytest.mark.parametrize("inputs", [{"z": np.ones(3)}, (1, 2), ()], ids=["name", "many", "none"])
def test_inputs_of_other_names_are_refused(model, inputs):
    with pytest.raises(ModelError, match="the model's inputs are 'x'"):
        deconvfix.convert(model, example_inputs=inputs)


def test_verify_sees_another_model(model):
    other = onnx.ModelProto()
    other.CopyFrom(model)
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 0, 0, 0] += 1
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    assert not deconvfix.verify(model, other, []).ok


def test_a_plan_is_carried_out_on_another_copy(model):
    plan = deconvfix.convert(model, verify=False).plan
    again = deconvfix.Plan.from_json(plan.to_json())
    assert deconvfix.convert(model, plan=again).plan == plan
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.node[-1].name = "other"
    with pytest.raises(ModelError, match="the model has no such layer"):
        deconvfix.convert(other, plan=again)


def test_options_reach_the_plan(model):
    assert deconvfix.convert(model, exclude="up").plan.decisions[0].decision == "kept"
    plan = make_plan((), Options(to="resize"))
    assert plan.decisions == ()
