"""Weights that an expression of constants makes: stored in the result, and every form can be had."""

import time

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import deconvfix
from tests.support.onnx_models import run

RANDOM = np.random.default_rng(0)
# Multiples of 1/8 below 4: every product and sum here is exact in half precision, too.
WEIGHT = (RANDOM.integers(-31, 32, (4, 6, 4, 3)) / 8).astype(np.float32)
BIAS = (RANDOM.integers(-31, 32, 6) / 8).astype(np.float32)
SCALE = RANDOM.choice([0.5, 1, 2, 4], (4, 1, 1, 1)).astype(np.float32)
X = RANDOM.integers(-3, 4, (1, 4, 5, 7)).astype(np.float32)
N = helper.make_node
EXPRESSIONS = {
    "Transpose": ([N("Transpose", ["k"], ["w"], perm=[3, 2, 0, 1])], {"k": WEIGHT.transpose(2, 3, 1, 0)}),
    "Cast": ([N("Cast", ["k"], ["w"], to=TensorProto.FLOAT)], {"k": WEIGHT.astype(np.float16)}),
    "Mul": ([N("Mul", ["k", "s"], ["w"])], {"k": WEIGHT, "s": SCALE}),
    "Clip": (
        [N("Clip", ["k", "low", "high"], ["w"])],
        {"k": WEIGHT, "low": np.float32(-2), "high": np.float32(2)},
    ),
    "Reshape": (
        [N("Reshape", ["k", "shape"], ["w"])],
        {"k": WEIGHT.reshape(4, -1), "shape": np.array(WEIGHT.shape)},
    ),
    "weight norm": (
        [
            N("Mul", ["k", "k"], ["square"]),
            N("ReduceSum", ["square", "axes"], ["sum"]),
            N("Sqrt", ["sum"], ["norm"]),
            N("Div", ["k", "norm"], ["direction"]),
            N("Mul", ["direction", "s"], ["w"]),
        ],
        {"k": WEIGHT, "s": SCALE, "axes": np.array([1, 2, 3])},
    ),
    "Tile": ([N("Tile", ["k", "repeats"], ["w"])], {"k": WEIGHT[:1], "repeats": np.array([4, 1, 1, 1])}),
    "Expand": (
        [N("Expand", ["s", "shape"], ["e"]), N("Mul", ["k", "e"], ["w"])],
        {"k": WEIGHT, "s": SCALE, "shape": np.array([4, 6, 4, 3])},
    ),
    "Pad": (
        [N("Pad", ["k", "amounts"], ["w"])],
        {"k": WEIGHT[:, :, :3], "amounts": np.array([0, 0, 1, 0, 0, 0, 0, 0])},
    ),
    "Gather": ([N("Gather", ["k", "order"], ["w"], axis=2)], {"k": WEIGHT, "order": np.array([3, 1, 2, 0])}),
    "MatMul": ([N("MatMul", ["k", "mix"], ["w"])], {"k": WEIGHT, "mix": np.eye(3, dtype=np.float32)[::-1]}),
    "its own shape": (
        [N("Shape", ["s"], ["shape"]), N("Reshape", ["k", "shape"], ["r"]), N("Mul", ["r", "t"], ["w"])],
        {"k": WEIGHT.reshape(4, 1, 1, -1)[..., :1], "s": SCALE, "t": WEIGHT},
    ),
    "shared by two branches": (
        [N("Neg", ["k"], ["n"]), N("Max", ["n", "k"], ["w"])],
        {"k": WEIGHT},
    ),
}  # fmt: skip


def model(nodes, stored, *, inputs=(), outputs=(), bias="b", functions=()):
    graph = helper.make_graph(
        [
            *nodes,
            N(
                "ConvTranspose",
                ["x", "w", bias],
                ["y"],
                name="up",
                strides=[2, 2],
                pads=[1, 0, 1, 1],
            ),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 4, "h", "v"]), *inputs],
        [helper.make_tensor_value_info("y", 1, None), *outputs],
        [
            numpy_helper.from_array(np.ascontiguousarray(value), name)
            for name, value in {"b": BIAS, **stored}.items()
        ],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, functions=functions
    )


@pytest.mark.parametrize("kind", EXPRESSIONS)
def test_weight_is_stored(kind):
    original = model(*EXPRESSIONS[kind])
    converted = deconvfix.convert(original).model
    want, got = (run(each, {"x": X}) for each in (original, converted))
    if kind == "weight norm":  # ONNX Runtime may fuse what it optimises: two roundings
        assert np.allclose(
            got[0], want[0], rtol=0, atol=8 * np.finfo("f4").eps * np.abs(want[0]).max()
        )
    else:
        assert np.array_equal(got[0], want[0])
    (conv,) = [node for node in converted.graph.node if node.op_type == "Conv"]
    stored = {tensor.name for tensor in converted.graph.initializer}
    assert conv.input[1] in stored
    left = {node.op_type for node in converted.graph.node} & {
        node.op_type for node in EXPRESSIONS[kind][0]
    }
    assert not left - {"Reshape", "Transpose"}, "nothing computes the weight any more"
    assert not {"k", "s"} & stored


@pytest.mark.parametrize("kind", EXPRESSIONS)
@pytest.mark.parametrize("form", ["equalized", "notch", "resize"])
def test_every_form_can_be_had(kind, form):
    (layer,) = deconvfix.convert(model(*EXPRESSIONS[kind]), to=form, init="fit").report.layers
    assert layer.decision == "replaced", layer.reason


@pytest.mark.parametrize("kind", EXPRESSIONS)
def test_its_grid_is_known(kind):
    (layer,) = deconvfix.inspect(model(*EXPRESSIONS[kind])).layers
    assert layer.ripple_db is not None


def test_expression_that_others_use_stays():
    nodes, stored = EXPRESSIONS["Mul"]
    output = helper.make_tensor_value_info("w", 1, None)
    original = model(nodes, stored, outputs=[output])
    converted = deconvfix.convert(original).model
    assert [node.op_type for node in converted.graph.node].count("Mul") == 1
    for one, other in zip(run(original, {"x": X}), run(converted, {"x": X}), strict=True):
        assert np.array_equal(one, other)


def test_bias_that_an_expression_makes():
    nodes, stored = EXPRESSIONS["Mul"]
    nodes = [*nodes, N("Neg", ["c"], ["d"])]
    original = model(nodes, {**stored, "c": BIAS}, bias="d")
    converted = deconvfix.convert(original, to="notch", init="fit")
    assert converted.report.layers[0].decision == "replaced"
    exact = deconvfix.convert(original).model
    assert np.array_equal(run(original, {"x": X})[0], run(exact, {"x": X})[0])


NOT_CONSTANT = {
    "an input": (
        [N("Mul", ["k", "factor"], ["w"])],
        {"k": WEIGHT},
        [helper.make_tensor_value_info("factor", 1, [1])],
    ),
    "what a caller may set": (
        [N("Mul", ["k", "s"], ["w"])],
        {"k": WEIGHT, "s": SCALE},
        [helper.make_tensor_value_info("s", 1, [4, 1, 1, 1])],
    ),
    "random numbers": (
        [N("RandomNormalLike", ["k"], ["r"]), N("Add", ["k", "r"], ["w"])],
        {"k": WEIGHT},
        [],
    ),
    "what may fill any memory": (
        [N("Expand", ["s", "n"], ["e"]), N("ReduceMax", ["e"], ["m"]), N("Mul", ["k", "m"], ["w"])],
        {"k": WEIGHT, "s": SCALE, "n": np.array([4, 2**40, 1, 1])},
        [],
    ),
    "what may fill any memory with copies": (
        [N("Tile", ["k", "n"], ["e"]), N("ReduceMax", ["e"], ["m"]), N("Mul", ["k", "m"], ["w"])],
        {"k": WEIGHT, "n": np.array([2**30, 2**30, 1, 1])},
        [],
    ),
}


@pytest.mark.parametrize("kind", NOT_CONSTANT)
def test_what_may_change_is_not_folded(kind):
    """The control: these are computed while the model runs, and only the exact form is possible."""
    nodes, stored, inputs = NOT_CONSTANT[kind]
    original = model(nodes, stored, inputs=inputs)
    (layer,) = deconvfix.convert(original, to="equalized", init="fit", verify=False).report.layers
    assert (layer.decision, "computed while" in layer.reason) == ("refused", True)


def test_a_wrong_fold_is_noticed(monkeypatch):
    """The proof is of the expression in the file, not of what was made of it."""
    from deconvfix.frontends.onnx import fold

    def wrong(session, feed):
        (array,) = run_named(session, feed)
        return [array + 0.5]

    run_named = fold.run_named
    monkeypatch.setattr(fold, "run_named", wrong)
    with pytest.raises(deconvfix.ParityError):
        deconvfix.convert(model(*EXPRESSIONS["Mul"]))


def test_file_is_not_marked():
    """What was found out about values is in no file."""
    converted = deconvfix.convert(model(*EXPRESSIONS["Mul"]), exclude="*").model
    assert b"deconvfix.folded" not in converted.SerializeToString()


def test_expression_behind_identity():
    nodes, stored = EXPRESSIONS["Mul"]
    nodes = [N("Mul", ["k", "s"], ["m"]), N("Identity", ["m"], ["w"])]
    (layer,) = deconvfix.convert(model(nodes, stored), to="notch", init="fit").report.layers
    assert layer.decision == "replaced"


def test_value_that_one_node_reads_twice():
    nodes = [N("Neg", ["k"], ["n"]), N("Mul", ["n", "n"], ["w"])]
    original = model(nodes, {"k": WEIGHT})
    converted = deconvfix.convert(original).model
    assert np.array_equal(run(original, {"x": X})[0], run(converted, {"x": X})[0])
    assert not {"Neg", "Mul"} & {node.op_type for node in converted.graph.node}


HOSTILE = {
    "shared parts": [N("Add", [f"w{i}", f"w{i}"], [f"w{i + 1}"]) for i in range(60)],
    "a long chain": [N("Neg", [f"w{i}"], [f"w{i + 1}"]) for i in range(3000)],
    "doubled again and again": [
        N("Concat", [f"w{i}", f"w{i}"], [f"w{i + 1}"], axis=3) for i in range(60)
    ],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_expressions_end_at_once(kind):
    """A walk without a memory takes 2^60 steps, recursion ends Python, and 60 doublings fill any memory."""
    nodes = HOSTILE[kind]
    last = N("Identity", [f"w{len(nodes)}"], ["w"])
    hostile = model([*nodes, last], {"w0": WEIGHT})
    started = time.monotonic()
    (layer,) = deconvfix.inspect(hostile).layers
    assert time.monotonic() - started < 20
    if kind == "doubled again and again":
        # Old versions of onnx count 2^64 elements as none.
        assert any(word in layer.refusal for word in ("taps", "`kernel_size` is (4, 0)"))
    else:
        assert layer.kernel_size == (4, 3)
