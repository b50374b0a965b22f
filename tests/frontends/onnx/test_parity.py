"""The proof of a converted ONNX model, mostly by what it must not let pass."""

import numpy as np
import onnx
import pytest

import deconvfix
from deconvfix.errors import DeconvfixError, ParityError
from tests.support.onnx_layers import FEED, W, X, Y, bomb
from tests.support.onnx_models import (
    ATTRIBUTES,
    C_OUT,
    W_SHAPE,
    X_SHAPE,
    deconv,
    model,
    node,
    proof,
    tensor,
    value,
)


def initializer(proto, name):
    return next(each for each in proto.graph.initializer if each.name == name)


def changed(proto, name, change):
    old = initializer(proto, name)
    array = onnx.numpy_helper.to_array(old).copy()
    change(array)
    old.CopyFrom(tensor(name, array))


def swap_phases(proto):
    def swap(array):
        array[[0, 1]] = array[[1, 0]]

    changed(proto, "w", swap)


def change_bias(proto):
    def change(array):
        array[1] += 1

    changed(proto, "b", change)


def shift_crop(proto):
    """One pixel less at the begin of the first axis, one more at its end."""
    crop = next(each for each in proto.graph.node if each.op_type == "Slice")
    for bound in (each for each in proto.graph.node if each.output[0] in crop.input[1:3]):
        array = onnx.numpy_helper.to_array(bound.attribute[0].t).copy()
        assert array[0] in (1, -1)
        array[0] -= 1
        bound.attribute[0].t.CopyFrom(tensor("", array))


def swap_mode(proto):
    shuffle = next(each for each in proto.graph.node if each.op_type == "DepthToSpace")
    next(each for each in shuffle.attribute if each.name == "mode").s = b"DCR"


def rename_output(proto):
    proto.graph.node.append(node("Identity", "y", "other"))
    proto.graph.output[0].name = "other"


@pytest.mark.parametrize("tamper", [swap_phases, change_bias, shift_crop, swap_mode, rename_output])
@pytest.mark.parametrize("whole", [True, False], ids=["with a plan", "without"])
def test_the_proof_sees(tamper, whole):
    proto = model([deconv(strides=[2, 2], pads=[1, 0, 1, 1])], [value("x", X_SHAPE)], [Y], W)
    conversion = deconvfix.convert(proto)
    plan = conversion.plan if whole else None
    assert proof(proto, conversion.model, [FEED], plan).ok
    tamper(conversion.model)
    report = proof(proto, conversion.model, [FEED], plan)
    assert not report.ok
    assert report.problems


def test_constant_outputs_are_no_evidence():
    proto = model([deconv("x w")], [X], [Y], {"w": np.zeros(W_SHAPE, np.float32)})
    with pytest.raises(ParityError, match="constant"):
        deconvfix.convert(proto, example_inputs=FEED)


def test_errors_have_four_parts():
    with pytest.raises(DeconvfixError) as caught:
        deconvfix.convert(bomb())
    assert all((caught.value.where, caught.value.found, caught.value.needed, caught.value.todo))


def test_the_layer_of_these_tests_tells_axes_apart():
    """C_in != C_out, H != W, unequal kernel, strides and pads, two groups."""
    assert X_SHAPE[1] != C_OUT
    assert X_SHAPE[2] != X_SHAPE[3]
    assert all(len(set(ATTRIBUTES[each])) == 2 for each in ("kernel_shape", "strides", "pads"))
