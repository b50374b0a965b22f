"""Stored integers read as what they stand for, and what may be stored in their place."""

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from deconvfix.frontends.onnx.find import find_layers
from tests.support.int8 import INT8, UINT8, quantised, quantised_layer
from tests.support.onnx_models import integers, model, node, value
from tests.support.strategies import Case


def found(proto):
    [layer] = find_layers(ir.from_proto(proto))
    return layer


def weight_of(q, scale, zero=None, axis=None, group=1):
    """A layer of k3 x 2 with a quantised weight (4, 3, 3, 2)."""
    stored = {"q": q, "s": scale} | ({} if zero is None else {"z": zero})
    along = {} if axis is None else {"axis": axis}
    nodes = [
        node("DequantizeLinear", " ".join(stored), "w", **along),
        node("ConvTranspose", "x w", "y", name="up", strides=[2, 2], group=group),
    ]
    return found(model(nodes, [value("x", ["N", 4, "H", "W"])], [value("y", 4)], stored))


LAYOUTS = {
    "one scale": (np.float32(0.3), None, 1),
    "output channels": (np.array([0.1, 0.2, 0.7], np.float32), 1, 1),
    "output channels of groups": (np.array([0.1, 0.2, 0.7], np.float32), 1, 2),
    "input channels": (np.array([0.1, 0.2, 0.7, 0.9], np.float32), 0, 1),
    "depthwise": (np.array([0.1, 0.2, 0.7, 0.9], np.float32), 0, 4),
    "from the end": (np.array([0.1, 0.2, 0.7], np.float32), -3, 1),
}


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("scale", "axis", "group"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_weight_is_what_its_dequantization_gives(scale, axis, group, zeros):
    """By loops, one number after the other."""
    q = integers((4, 3, 3, 2), 1, INT8, -90, 90)
    zero = np.arange(np.size(scale)).reshape(np.shape(scale)).astype(INT8) if zeros else None
    layer = weight_of(q, scale, zero, axis, group)
    wanted = np.zeros(q.shape)
    for index in itertools.product(*map(range, q.shape)):
        number = 0 if axis is None else index[axis % 4]
        s = float(np.atleast_1d(scale)[number])
        z = 0 if zero is None else int(np.atleast_1d(zero)[number])
        wanted[index] = (int(q[index]) - z) * s
    np.testing.assert_array_equal(layer.read_weight(), wanted)
    assert layer.has_weight
    assert layer.weight is None


LIMITS = {
    "symmetric": (INT8, 0, (-127, 127), (-127, 127)),
    "with -128": (INT8, 0, (-128, 100), (-128, 127)),
    "seven bits": (INT8, 0, (-64, 64), (-64, 64)),
    "one more": (INT8, 0, (-64, 65), (-127, 127)),
    "a zero point": (INT8, 5, (-100, 100), (-132, 122)),
    "unsigned": (UINT8, 120, (0, 255), (-120, 135)),
    "unsigned, seven bits": (UINT8, 60, (0, 127), (-60, 67)),
}


@pytest.mark.parametrize(("dtype", "zero", "ends", "limits"), LIMITS.values(), ids=LIMITS)
def test_what_may_be_stored_is_what_was(dtype, zero, ends, limits):
    q = np.full((4, 3, 3, 2), zero, dtype)
    q.flat[:2] = ends
    low, high = weight_of(q, np.float32(1), dtype(zero)).quantised.weight.limits()
    assert (low.item(), high.item()) == limits


def test_a_bias_and_the_scale_of_the_input_are_read():
    layer = found(quantised(per_channel=True))
    assert layer.quantised.input_scale == 0.5
    assert layer.quantised.input_zero == 3
    bias = layer.quantised.bias
    np.testing.assert_array_equal(
        bias.real(), bias.stored.numpy().astype(float) * bias.scale.astype(float)
    )


@pytest.mark.parametrize("activation", [INT8, UINT8])
def test_values_on_the_grid_are_those_that_the_input_can_have(activation):
    case = Case(
        found(quantised(bias=None)).spec, np.zeros((1, 4, 3, 3)), integers((4, 3, 3, 2)), None
    )
    proto, _ = quantised_layer(case, activation=activation)
    layer = found(proto)
    info = np.iinfo(activation)
    x = np.array([0.24, 0.26, -0.3, 1e6, -1e6], np.float32)
    ends = [0.5 * (info.max - 3), 0.5 * (info.min - 3)]
    assert layer.quantised.on_grid(x).tolist() == [0, 0.5, -0.5, *ends]


def test_without_a_quantised_input_every_value_is_one_of_its_own():
    layer = weight_of(integers((4, 3, 3, 2), 1, INT8), np.float32(1))
    x = np.array([0.24, -1e6], np.float32)
    assert layer.quantised.on_grid(x) is x
