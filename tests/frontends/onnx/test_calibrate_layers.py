"""Calibrated fits whatever holds the layer, and layers that cannot be seen."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import deconvfix
from deconvfix.fit.moments import Moments
from tests.support.onnx_fits import W, X, Y, batches, calibrated, up
from tests.support.onnx_models import (
    constant,
    graph,
    integers,
    model,
    node,
    value,
)


@pytest.mark.parametrize(("opset", "ir_version"), [(7, 3), (17, 8)])
@pytest.mark.parametrize("to", ["equalized", "resize", "notch"])
def test_a_weight_that_several_layers_share(to, opset, ir_version):
    """Each layer gets a fit of its own; the last of them may keep the old names."""
    nodes = [up("x w b", "a", "one"), node("Tanh", "a", "t"), up("t w b", "y", "two")]
    inputs = [X, *([value("w", [4, 4, 4]), value("b", [4])] if ir_version == 3 else [])]
    got = calibrated(model(nodes, inputs, [Y], W, opset=opset, ir_version=ir_version), to=to)
    one, two = (got.plan[name].fitted for name in ("one", "two"))
    assert np.abs(one.kernel - two.kernel).max() > 1e-3
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in got.model.graph.initializer}
    floats = [each for each in stored.values() if each.dtype == np.float32]
    assert len(floats) == 4
    assert not any(np.array_equal(each, old) for each in stored.values() for old in W.values())


@pytest.mark.parametrize("to", ["equalized", "resize", "notch"])
@pytest.mark.parametrize("weight", ["Constant", "Identity", "override"])
def test_where_the_weight_comes_from(weight, to):
    stored, nodes, inputs = dict(W), [], [X]
    if weight == "Constant":
        nodes = [constant("w", stored.pop("w")), constant("b", stored.pop("b"))]
    names = "x w b"
    if weight == "Identity":
        nodes, names = [node("Identity", "w", "v"), node("Identity", "b", "c")], "x v c"
    if weight == "override":
        inputs = [X, value("b", [4])]
    proto = model([*nodes, up(names, "y", "up")], inputs, [Y], stored)
    got = calibrated(proto, to=to)
    if weight == "override":
        assert got.plan["up"].fitted is None
        [note] = [each for each in got.report.notes if each.startswith("up: ")]
        assert "its bias is computed while the model runs, or may be set by the caller" in note
    else:
        assert got.plan["up"].reason.startswith("calibrated")


def test_a_layer_on_a_constant():
    """As in style-based generators: the input is an initializer."""
    stored = W | {"start": integers((1, 4, 6), 5)}
    nodes = [up("start w b", "a", "up"), node("Mul", "a x", "y")]
    proto = model(nodes, [value("x", ["N", 4, "L"])], [Y], stored)
    got = calibrated(proto, inputs=batches((3, 4, 12)))
    assert got.plan["up"].reason.startswith("calibrated")


def test_a_layer_whose_output_is_an_output_and_read_elsewhere():
    nodes = [up("x w b", "a", "up"), node("Relu", "a", "y")]
    proto = model(nodes, [X], [Y, value("a", 3)], W)
    got = calibrated(proto, to="resize")
    assert got.plan["up"].reason.startswith("calibrated")


def test_inputs_of_other_kinds():
    """Integers stay as they are; positional inputs go by the order of the file."""
    mask = value("mask", ["N"], TensorProto.INT64)
    nodes = [
        node("Cast", "mask", "m", to=TensorProto.FLOAT),
        node("Reshape", "m shape", "n"),
        node("Mul", "x n", "h"),
        up("h w b", "y", "up"),
    ]
    stored = W | {"shape": np.array([-1, 1, 1], np.int64)}
    proto = model(nodes, [X, mask], [Y], stored)
    inputs = [(x, np.array([1, 0, 1, 2])) for x in batches((4, 4, 6))]
    one = calibrated(proto, inputs=inputs)
    other = calibrated(proto, inputs=[{"mask": m, "x": torch.from_numpy(x)} for x, m in inputs])
    assert np.array_equal(one.plan["up"].fitted.kernel, other.plan["up"].fitted.kernel)


def branched():
    inner = graph([up("x w b", "p", "up")], [], [value("p", 3)], name="inner")
    other = graph([up("x w b", "q", "up")], [], [value("q", 3)], name="other")
    choose = node("If", "c", "a", name="choice", then_branch=inner, else_branch=other)
    nodes = [
        constant("c", np.array(True)),
        choose,
        node("Relu", "a", "r"),
        up("r w b", "y", "last"),
    ]
    return model(nodes, [X], [Y], W)


def called():
    body = [constant("w", W["w"]), constant("b", W["b"]), up("x w b", "y", "up")]
    function = helper.make_function("own", "Up", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("Up", ["x"], ["a"], domain="own"), up("a v", "y", "last")]
    return model(nodes, [X], [Y], {"v": W["w"]}, domains=("own",), functions=[function])


def random():
    nodes = [
        node("RandomNormalLike", "x", "noise", name="noise"),
        node("Add", "x noise", "h"),
        up("h w b", "y", "up"),
    ]
    return model(nodes, [X], [Y], W)


UNSEEN = {
    "branch": (branched, 2, "it is in a branch or a loop"),
    "function": (called, 1, "it is in a function of the model"),
    "random": (random, 1, "the node 'noise' (RandomNormalLike) before it is random"),
}


@pytest.mark.parametrize(("build", "count", "reason"), UNSEEN.values(), ids=UNSEEN)
@pytest.mark.parametrize("to", ["equalized", "resize"])
def test_layers_that_cannot_be_seen_keep_their_fit_to_the_weights(build, count, reason, to):
    proto = build()
    got = deconvfix.convert(proto, to=to, init="calibrated", calibration=batches((4, 4, 6)))
    notes = [each for each in got.report.notes if "keeps its fit to the weights" in each]
    assert len(notes) == count
    assert all(reason in each and "; only a layer" in each for each in notes)
    fitted = {each.name for each in got.plan.decisions if each.fitted is not None}
    assert fitted == {"last"} & {each.name for each in got.plan.decisions}
    weights_only = deconvfix.convert(proto, to=to, init="fit")
    for each in got.plan.decisions:
        assert (each.reason == weights_only.plan[each.name].reason) == (each.name not in fitted)


def test_a_regression_that_takes_too_much_memory_is_left_out():
    proto = model([up("x w b", "y", "up")], [X], [Y], W)
    weights_only = deconvfix.convert(proto, to="equalized", init="fit")
    got = calibrated(proto, memory=1e-6)
    [note] = [each for each in got.report.notes if "GiB are allowed (`memory`)" in each]
    assert note.startswith("up: it keeps its fit to the weights")
    assert got.plan["up"].fitted is None
    assert got.plan["up"].reason == weights_only.plan["up"].reason
    assert calibrated(proto).plan["up"].fitted is not None


def test_outputs_of_another_size_are_not_fitted_to(monkeypatch):
    """What a file says and what runs may differ: never fit to what is not the layer's output."""

    def refuse(self, x, y):
        raise ValueError("its outputs have the shape A, its geometry gives B")

    monkeypatch.setattr(Moments, "add", refuse)
    got = calibrated(model([up("x w b", "y", "up")], [X], [Y], W))
    assert got.plan["up"].fitted is None
    assert any("its geometry gives B" in each for each in got.report.notes)
