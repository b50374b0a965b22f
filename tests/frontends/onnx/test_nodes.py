"""Transposed convolutions under other names: converted, or named with the reason why not."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

import deconvfix
from deconvfix.frontends.onnx import disturbance, frontend, nodes
from tests.support.onnx_files import run as command
from tests.support.onnx_models import run

OP = "ConvTransposeWithDynamicPads"
RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.integers(-3, 4, (4, 3, 4, 3)).astype(np.float32)
BIAS = RANDOM.integers(-3, 4, 6).astype(np.float32)


def dynamic_pads(pads=(1, 0, 2, 1), bias=True, stored=True, **attributes):
    """The operator of ONNX Runtime whose padding is an input."""
    inputs = ["x", "w", "p", *(["b"] if bias else [])]
    node = helper.make_node(
        OP, inputs, ["y"], name="up", domain="com.microsoft", strides=[2, 3],
        kernel_shape=[4, 3], dilations=[1, 1], group=2, **attributes,
    )  # fmt: skip
    tensors = {
        "w": WEIGHT,
        **({"b": BIAS} if bias else {}),
        **({"p": np.array(pads)} if stored else {}),
    }
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("x", 1, [1, 4, "h", "v"]),
            *([] if stored else [helper.make_tensor_value_info("p", 7, [4])]),
        ],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 11), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pads", [(1, 0, 2, 1), (0, 0, 0, 0), (0, 2, 1, 0)])
def test_stored_padding_is_plain(bias, pads):
    original = dynamic_pads(pads, bias)
    conversion = deconvfix.convert(original, strict=True)
    assert not [node for node in conversion.model.graph.node if node.op_type == OP]
    for size in ((5, 6), (3, 9)):
        x = RANDOM.integers(-3, 4, (1, 4, *size)).astype(np.float32)
        (want,), (got,) = (run(each, {"x": x}) for each in (original, conversion.model))
        assert np.array_equal(want, got)


@pytest.mark.parametrize("auto_pad", ["VALID", "SAME_UPPER", "SAME_LOWER", "NOTSET"])
def test_automatic_padding_as_onnx_runtime_reads_it(auto_pad):
    """It goes by the pads for VALID, too, and ignores them for SAME_*."""
    original = dynamic_pads(auto_pad=auto_pad)
    x = RANDOM.integers(-3, 4, (1, 4, 5, 6)).astype(np.float32)
    conversion = deconvfix.convert(original, example_inputs={"x": x}, strict=True)
    (want,), (got,) = (run(each, {"x": x}) for each in (original, conversion.model))
    assert np.array_equal(want, got)


def test_padding_that_constants_make_is_plain():
    """As exporters write it: two lists, put together and cast."""
    original = dynamic_pads()
    (stored,) = [tensor for tensor in original.graph.initializer if tensor.name == "p"]
    begins, ends = np.split(numpy_helper.to_array(stored).astype(np.int32), 2)
    original.graph.initializer.remove(stored)
    original.graph.initializer.extend(
        [numpy_helper.from_array(begins, "begins"), numpy_helper.from_array(ends, "ends")]
    )
    for place, node in enumerate([
        helper.make_node("Concat", ["begins", "ends"], ["both"], axis=0),
        helper.make_node("Cast", ["both"], ["p"], to=7),
    ]):  # fmt: skip
        original.graph.node.insert(place, node)
    x = RANDOM.integers(-3, 4, (1, 4, 5, 6)).astype(np.float32)
    conversion = deconvfix.convert(original, example_inputs={"x": x}, strict=True)
    assert not [node for node in conversion.model.graph.node if node.op_type == OP]
    (want,), (got,) = (run(each, {"x": x}) for each in (original, conversion.model))
    assert np.array_equal(want, got)


def test_proof_runs_the_operator_itself(monkeypatch):
    """A padding that is read wrongly must be seen: the original is run as it was given."""
    correct = nodes.make_plain

    def wrong(model):
        correct(model)
        for node in model.graph.all_nodes():
            if node.op_type == "ConvTranspose":
                node.attributes["pads"] = ir.AttrInt64s("pads", [0, 1, 2, 1])

    for module in (nodes, frontend, disturbance):
        monkeypatch.setattr(module, "make_plain", wrong)
    x = RANDOM.integers(-3, 4, (1, 4, 5, 6)).astype(np.float32)
    with pytest.raises(deconvfix.ParityError):
        deconvfix.convert(dynamic_pads(), example_inputs={"x": x})


def test_inspect_leaves_the_model_alone():
    model = ir.from_proto(dynamic_pads())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    (layer,) = deconvfix.inspect(model).layers
    assert layer.refusal is None
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("form", ["equalized", "notch", "resize"])
def test_every_form_can_be_had(form):
    (layer,) = deconvfix.convert(dynamic_pads(), to=form, init="fit").report.layers
    assert layer.decision == "replaced", layer.reason


def test_padding_that_is_an_input_is_refused_with_a_sentence():
    (layer,) = deconvfix.convert(dynamic_pads(stored=False)).report.layers
    assert layer.decision == "refused"
    assert "its padding is computed while the model runs" in layer.reason
    (found,) = deconvfix.inspect(dynamic_pads(stored=False)).layers
    assert found.name == "up"


FOREIGN = {
    "a custom operator": helper.make_node(
        "ConvTranspose2d", ["x", "w"], ["y"], "up", domain="mine"
    ),
    "a deconvolution": helper.make_node("Deconv", ["x", "w"], ["y"], "up", domain="my.ops"),
    "a quantised one": helper.make_node(
        "QLinearConvTranspose", ["x", "w"], ["y"], "up", domain="com.microsoft"
    ),
    "a fused one": helper.make_node(
        "FusedConvTranspose", ["x", "w"], ["y"], "up", domain="com.microsoft"
    ),
    "channels last": helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], "up", domain="com.ms.internal.nhwc"
    ),
    "torch's general one": helper.make_node(
        "ATen",
        ["x", "w", "", "", "", "", "t"],
        ["y"],
        "up",
        domain="org.pytorch.aten",
        operator="convolution",
    ),
    "an operator of torch": helper.make_node(
        "ATen", ["x", "w"], ["y"], "up", domain="org.pytorch.aten", operator="conv_transpose2d"
    ),
}


def foreign(kind, transposed=True):
    node = FOREIGN[kind]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 4, 5, 6])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(np.array(transposed), "t")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(node.domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_operators_are_named(kind, tmp_path):
    (found,) = deconvfix.inspect(foreign(kind)).layers
    assert found.name == "up"
    assert FOREIGN[kind].op_type in found.refusal
    onnx.save(foreign(kind), tmp_path / "in.onnx")
    options = ("convert", tmp_path / "in.onnx", "-o", tmp_path / "out.onnx")
    result = command(*options, "--strict")
    assert result.exit_code == 1
    assert "up: " in result.stderr
    assert not (tmp_path / "out.onnx").exists()
    assert "1 refused" in command(*options).stdout


@pytest.mark.parametrize("op_type", ["Conv", "DeformConv", "ConvInteger", "TransposedReader"])
def test_other_operators_are_none(op_type):
    model = foreign("a custom operator")
    model.graph.node[0].op_type = op_type
    assert deconvfix.inspect(model).layers == ()


def test_general_convolution_of_torch_that_is_not_transposed():
    assert deconvfix.inspect(foreign("torch's general one", transposed=False)).layers == ()


def test_function_of_such_a_name_is_searched():
    """What counts is what is in it."""
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("mine", "ConvTranspose2d", ["a", "w"], ["b"], body, opsets)
    model = foreign("a custom operator")
    model.functions.append(function)
    assert deconvfix.inspect(model).layers == ()
