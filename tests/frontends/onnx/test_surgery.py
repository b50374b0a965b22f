"""What is not replaced stays: names, order, metadata."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import deconvfix
from tests.support.onnx_layers import (
    FEED,
    W,
    X,
    Y,
    Z,
    branch,
    choice,
    doubled,
    function,
    plain,
    sparse,
)
from tests.support.onnx_models import (
    C_OUT,
    check,
    deconv,
    model,
    node,
    operators,
    value,
)


def rich():
    """A model with a bit of everything that a conversion must not touch."""
    odd = helper.make_node("Odd", ["x"], ["odd"], domain="custom", name="odd", level=3)
    layer = deconv("h w b", "y")
    layer.doc_string = "the layer"
    layer.metadata_props.add(key="scope", value="decoder")
    proto = model(
        [odd, node("Relu", "x", "h"), layer, node("Neg", "y", "n"), node("Add", "y n", "z")],
        [X],
        [Y, Z, value("odd", 1)],
        {"unused": np.ones(2, np.float32), **W, "last": np.ones(1, np.float32)},
        ir_version=10,
        domains=["custom", "never.used", "local"],
        functions=[function([node("Add", "x w", "y")], "x w", "Other")],
        doc_string="a model",
        producer_name="someone",
        producer_version="7",
        model_version=3,
        domain="org.example",
    )
    for what in (proto, proto.graph, proto.graph.input[0], proto.graph.output[0]):
        what.metadata_props.add(key="kept", value="yes")
    proto.graph.doc_string = "a graph"
    proto.graph.output[0].doc_string = "an output"
    proto.graph.value_info.extend(
        [value("h", ["N", 4, "H", "W"]), value("n", ["N", C_OUT, "p", "q"])]
    )
    proto.graph.sparse_initializer.append(sparse("s", np.array([0, 2], np.float32)))
    for name in ("h", "w", "y"):
        annotation = proto.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="last")
    training = proto.training_info.add()
    training.initialization.name = "start"
    return proto


def test_what_is_not_replaced_stays():
    proto = rich()
    converted = deconvfix.convert(proto).model
    for field in (
        *("ir_version", "producer_name", "producer_version", "domain", "model_version"),
        *("doc_string", "opset_import", "metadata_props", "functions", "training_info"),
    ):
        assert getattr(converted, field) == getattr(proto, field), field
    for field in (
        *("name", "doc_string", "input", "output", "metadata_props"),
        *("sparse_initializer", "quantization_annotation"),
    ):
        assert getattr(converted.graph, field) == getattr(proto.graph, field), field
    names = [each.name for each in proto.graph.initializer]
    assert [each.name for each in converted.graph.initializer] == names
    assert [each for each in converted.graph.value_info if each.name in "hn"] == list(
        proto.graph.value_info
    )
    new = list(converted.graph.node)
    assert [each for each in new if each in proto.graph.node] == [
        each for each in proto.graph.node if each.op_type != "ConvTranspose"
    ]
    added = [each for each in new if each not in proto.graph.node]
    assert {each.doc_string for each in added} == {"the layer"}
    assert all(each.metadata_props[0].value == "decoder" for each in added)
    assert next(each for each in added if "y" in each.output)


def test_a_model_without_layers_comes_out_as_it_was():
    proto = rich()
    del proto.graph.node[2]
    proto.graph.node.insert(2, node("Identity", "h", "y"))
    assert deconvfix.convert(proto).model == proto


def test_a_second_conversion_changes_nothing():
    converted = check(plain(), FEED).model
    assert deconvfix.convert(converted).model == converted


@pytest.mark.parametrize("kind", ["proto", "ir"])
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "inplace"])
def test_the_model_itself_changes_only_if_asked(kind, inplace):
    proto = choice(branch([deconv("x w b", "r")]), doubled("x w b"), W)
    given = proto if kind == "proto" else ir.from_proto(proto)

    def dump(which):
        written = which if kind == "proto" else ir.to_proto(which)
        return written.SerializeToString(deterministic=True)

    before = dump(given)
    converted = deconvfix.convert(given, inplace=inplace, verify=False).model
    assert (converted is given) == inplace
    assert (dump(given) == before) != inplace
    assert "ConvTranspose" not in operators(
        converted if kind == "proto" else ir.to_proto(converted)
    )


def test_duplicate_and_missing_node_names_give_unique_layers():
    """ONNX allows both; a plan made from one copy applies to another."""
    layers = [deconv("x w b", f"y{i}", name) for i, name in enumerate(["up", "up", "", ""])]
    proto = model(layers, [X], [value(f"y{i}", 4) for i in range(4)], W)
    names = [each.name for each in deconvfix.inspect(proto).layers]
    assert names == ["up", "up#2", "y2", "y3"]
    plan = deconvfix.convert(proto, include="up#2").plan
    copied = onnx.load_from_string(proto.SerializeToString())
    converted = deconvfix.convert(copied, plan=plan).model
    remaining = [each.output[0] for each in converted.graph.node if each.op_type == "ConvTranspose"]
    assert remaining == ["y0", "y2", "y3"]


def test_an_output_with_readers_everywhere():
    """The value is a graph output, read twice, and read in a branch."""
    then = branch([node("Add", "m m", "r")])
    proto = choice(then, branch([node("Neg", "m", "r")], name="other"), W, [deconv("x w b", "m")])
    proto.graph.node.append(node("Add", "m y", "z"))
    proto.graph.output.extend([Z, value("m", ["N", C_OUT, "p", "q"])])
    converted = check(proto, FEED | {"c": np.array(True)}).model
    assert list(converted.graph.output) == list(proto.graph.output)
