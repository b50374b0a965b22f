"""Which nodes treat each element alike: all that are said to move do, and what they become is the same."""

import numpy as np
import pytest

import deconvfix
from deconvfix.frontends.onnx.elementwise import ELEMENTWISE
from tests.support.onnx_layers import FEED, W, X, Y
from tests.support.onnx_models import deconv, model, node, operators, run

MOVED = "before the shuffle"
ATTRIBUTES = {"Elu": {"alpha": 0.5}, "Gelu": {"approximate": "tanh"}, "LeakyRelu": {"alpha": 0.1}}
# Of newer opsets than this ONNX Runtime has.
NEWER = {"Swish"}
COMPOSED = {
    "swish": [node("Sigmoid", "t", "s"), node("Mul", "t s", "y")],
    "swish, the other way round": [node("Sigmoid", "t", "s"), node("Mul", "s t", "y")],
    "mish": [node("Softplus", "t", "p"), node("Tanh", "p", "s"), node("Mul", "t s", "y")],
    "gelu": [
        node("Div", "t root", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "f"),
        node("Mul", "t f", "g"),
        node("Mul", "g half", "y"),
    ],
    "a square": [node("Mul", "t t", "y")],
    "twice": [
        node("Sigmoid", "t", "s"),
        node("Mul", "t s", "u"),
        node("HardSigmoid", "u", "h"),
        node("Add", "h u", "y"),
    ],
}
SCALARS = {
    name: np.array(number, np.float32)
    for name, number in {"root": 2**0.5, "one": 1, "half": 0.5, "low": -2, "high": 3}.items()
}


def converted(*nodes, opset=22):
    proto = model(
        [deconv("x w b", "t", strides=[2, 2]), *nodes], [X], [Y], W | SCALARS, opset=opset
    )
    done = deconvfix.convert(proto, example_inputs=FEED)
    assert done.report.parity.ok
    got, want = (run(each, FEED)[0] for each in (done.model, proto))
    # Layers give up to 50 here, and some of these functions are approximated up to some units of that.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    return done


def moved(done):
    (decision,) = done.plan.replaced
    return MOVED in decision.reason


@pytest.mark.parametrize("operator", sorted(ELEMENTWISE - NEWER))
def test_every_function_of_one_value_moves(operator):
    done = converted(node(operator, "t", "y", **ATTRIBUTES.get(operator, {})))
    assert moved(done)
    kinds = [kind for kind in operators(done.model) if kind != "Constant"]
    assert kinds == ["Conv", operator, "DepthToSpace", "Slice"]


def test_limits_are_stored():
    assert moved(converted(node("Clip", "t low high", "y")))
    assert moved(converted(node("Clip", "t  high", "y")))
    computed = converted(node("Neg", "low", "two"), node("Clip", "t low two", "y"))
    assert not moved(computed)


@pytest.mark.parametrize("nodes", COMPOSED.values(), ids=COMPOSED)
def test_functions_of_a_value_that_is_read_twice(nodes):
    done = converted(*nodes)
    kinds = [kind for kind in operators(done.model) if kind != "Constant"]
    assert kinds == ["Conv", *(each.op_type for each in nodes), "DepthToSpace", "Slice"]


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Sigmoid", "t", "s"), node("Max", "t s", "y")],
        [node("Sigmoid", "t", "s"), node("Relu", "t", "r"), node("Mul", "s r", "y")],
        [node("Softmax", "t", "s", axis=1), node("Mul", "t s", "y")],
        [node("Sigmoid", "t", "s"), node("Mul", "t s", "u"), node("Add", "u s", "y")],
        [node("Sigmoid", "t", "s"), node("Mul", "t s", "u"), node("Add", "u t", "y")],
    ],
    ids=["another join", "two functions", "sums", "f is read again", "x is read again"],
)
def test_other_branches_stay(nodes):
    done = converted(*nodes)
    assert not moved(done)
    assert list(done.model.graph.node)[-len(nodes) :] == nodes
