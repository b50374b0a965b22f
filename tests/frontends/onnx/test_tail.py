"""What follows a layer moves before its shuffle: the same function, and ONNX Runtime fuses it."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

import deconvfix
from deconvfix.errors import ParityError
from deconvfix.frontends.onnx.layer_parity import compare_layers
from deconvfix.frontends.onnx.proto import from_proto
from deconvfix.frontends.onnx.surgery import Operation
from deconvfix.targets.profile import NO_LIMITS
from tests.support.onnx_layers import (
    FEED,
    W,
    X,
    Y,
    branch,
    call,
    choice,
    function,
    layer_of,
    plain,
    program,
)
from tests.support.onnx_models import (
    C_OUT,
    check,
    constant,
    deconv,
    integers,
    is_valid,
    model,
    node,
    nodes_of,
    operators,
    run,
    tensor,
    value,
)
from tests.support.strategies import cases
from tests.support.tails import meaning_of, tails, with_tail

MOVED = "before the shuffle"
LINE = integers((C_OUT, 1, 1), 5)
NORMALIZED = {name: integers((C_OUT,), 6 + i) for i, name in enumerate("slm")} | {
    "v": np.array([1, 4, 16, 1, 4, 16], np.float32)
}


def followed(*nodes, stored=None, outputs=(Y,), opset=17, **attributes):
    """The layer of the tests, whose result is "t", and nodes behind it."""
    attributes = {"strides": [2, 2]} | attributes
    first = deconv("x w b", "t", **attributes)
    return model([first, *nodes], [X], list(outputs), W | (stored or {}), opset=opset)


def reason(conversion):
    (decision,) = conversion.plan.replaced
    return decision.reason


def producers(proto):
    return {name: each for each in proto.graph.node for name in each.output}


@settings(max_examples=80)
@given(data=st.data())
def test_every_writing_with_a_tail_is_the_definition(data):
    case = data.draw(cases(square=data.draw(st.booleans())))
    spec, x = case.spec, case.x[:1].astype(np.float32)
    tail = data.draw(tails(spec.out_channels, spec.ndim))
    writing = data.draw(st.sampled_from(list(NO_LIMITS.writings(spec.ndim))))
    asked = {"convolution": writing.convolution, "shuffle": writing.shuffle}
    before = with_tail(layer_of(spec, case.weight, case.bias, x.shape[2:]), tail)
    done = deconvfix.convert(before, verify=False, structure="none", **asked)
    if not done.plan.replaced:  # the writing does not fit its geometry
        done = deconvfix.convert(before, verify=False)
    compared, _ = compare_layers(from_proto(before), from_proto(done.model), done.plan)
    assert all(each.ok for each in compared)
    assert is_valid(done.model)
    want = meaning_of(tail, case.expected[:1])
    for optimize in (False, True):
        got = run(done.model, {"x": x}, optimize=optimize)[0]
        np.testing.assert_array_equal(got, want.astype(np.float32))
    # Where it has moved it reads a convolution, and else it is still the end.
    first, last = tail[0].operators[0], tail[-1].operators[-1]
    reads = [
        producers(done.model)[name].op_type
        for each in nodes_of(done.model)
        if each.op_type == first and each.name
        for name in each.input
        if name in producers(done.model)
    ]
    if MOVED in reason(done):
        assert "Conv" in reads
    else:
        assert done.model.graph.node[-1].op_type == last


ALL = [
    node("BatchNormalization", "t s l m v", "n", name="norm", epsilon=0.0),
    node("Relu", "n", "r", name="relu"),
    node("Sub", "k r", "d", name="from"),
    node("PRelu", "d p", "y", name="slopes"),
]
STORED = NORMALIZED | {"k": integers((1, C_OUT, 1, 1), 11), "p": LINE}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"convolution": "union", "shuffle": "axes"},
        {"convolution": "phases", "shuffle": "slices"},
    ],
    ids=str,
)
def test_names_stay_and_the_report_says_what_moved(asked):
    proto = followed(*ALL, stored=STORED, group=2)
    fixed = onnx.ModelProto.FromString(proto.SerializeToString())
    fixed.graph.input[0].CopyFrom(value("x", FEED["x"].shape))
    done = check(fixed, FEED, **asked)
    assert reason(done).endswith(
        "BatchNormalization, Relu, Sub and PRelu behind it come before the shuffle"
    )
    assert {"norm", "relu", "from", "slopes"} <= {each.name for each in done.model.graph.node}
    assert {one.name for one in done.model.graph.initializer} >= {*W, *STORED} - (
        {"w"} if "phases" in asked.values() else set()
    )
    assert done.model.graph.output == fixed.graph.output
    made = list(producers(done.model))
    assert not {"t", "n", "r", "d"} & {*made}, "values of another layout have other names"


@pytest.mark.parametrize("which", [None, *range(6)])
def test_a_wrongly_repeated_parameter_is_found(monkeypatch, which):
    """By phase instead of by channel, for one operand of the tail at a time."""
    own, count = Operation._repeated, itertools.count()

    def wrong(self, operand, verbs):
        new = own(self, operand, verbs)
        if next(count) == which:
            array = new.const_value.numpy()
            by_phase = array.reshape(-1, 4).T.reshape(array.shape)
            new.const_value = ir.tensor(np.ascontiguousarray(by_phase), name=new.name)
        return new

    monkeypatch.setattr(Operation, "_repeated", wrong)
    proto = followed(*ALL, stored=STORED)
    if which is None:
        check(proto, FEED)
        assert next(count) == 6
        return
    with pytest.raises(ParityError, match="up differs"):
        deconvfix.convert(proto, example_inputs=FEED)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_moved_nodes_compute_the_same_numbers(dtype):
    """Bit by bit what they compute behind the shuffle, where they round."""
    rng = np.random.default_rng(4)
    stored = {
        name: rng.uniform(0.5, 1.5, array.shape).astype(dtype) for name, array in STORED.items()
    }
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = {name: (array / 7).astype(dtype) for name, array in W.items()}

    def file(nodes, operands):
        return model(nodes, [value("x", ["N", 4, "H", "W"], kind)], [value("y", 4, kind)], operands)

    layer = deconv("x w b", "y", strides=[2, 2])
    behind = deconvfix.convert(file([layer], weights), verify=False).model
    behind.graph.node[-1].output[0] = "t"
    behind.graph.node.extend(ALL)
    behind.graph.initializer.extend(tensor(name, array) for name, array in stored.items())
    whole = file([deconv("x w b", "t", strides=[2, 2]), *ALL], weights | stored)
    moved = deconvfix.convert(whole, verify=False)
    assert MOVED in reason(moved)
    feed = {"x": rng.standard_normal(FEED["x"].shape).astype(dtype)}
    got, want = (run(each, feed, optimize=False)[0] for each in (moved.model, behind))
    np.testing.assert_array_equal(got, want)


ENDS = {
    "an output": followed(
        node("Relu", "t", "y"), outputs=(Y, value("t", 4))
    ),
    "two readers": followed(node("Relu", "t", "r"), node("Neg", "t", "n"), node("Add", "r n", "y")),
    "another value": followed(node("ReduceMax", "x", "m", keepdims=0), node("Add", "t m", "y")),
    "positions": followed(node("Add", "t k", "y"), stored={"k": integers((1, 13), 3)}),
    "batch": followed(node("Add", "t k", "y"), stored={"k": integers((2, 1, 1, 1), 3)}),
    "sums": followed(node("Softmax", "t", "y", axis=1)),
    "an infinity": followed(node("Add", "t k", "y"), stored={"k": np.full((6, 1, 1), np.inf, np.float32)}),
    "a divisor of zero": followed(node("Div", "t k", "y"), stored={"k": np.zeros(1, np.float32)}),
    "a divisor": followed(node("Div", "k t", "y"), stored={"k": np.ones(1, np.float32)}),
    "own operators": followed(node("Relu", "t", "y", domain="com.example")),
    "training": followed(
        node("BatchNormalization", "t s l m v", "y q u", training_mode=1), stored=NORMALIZED
    ),
    "a computed operand": followed(
        node("Neg", "k", "k2"), node("Mul", "t k2", "y"), stored={"k": LINE}
    ),
}  # fmt: skip


@pytest.mark.parametrize("proto", ENDS.values(), ids=ENDS)
def test_what_ends_a_tail(proto):
    done = deconvfix.convert(proto, verify=False)
    assert MOVED not in reason(done)
    kept = [each for each in proto.graph.node if each.op_type != "ConvTranspose"]
    assert [each for each in done.model.graph.node if each in kept] == kept


def test_a_tail_moves_as_far_as_it_goes():
    """A callers' operand ends it, and a branch that reads it."""
    late = [node("Relu", "t", "r"), node("Mul", "r k", "y")]
    proto = followed(*late, stored={"k": LINE})
    proto.graph.input.append(value("k", LINE.shape))
    done = check(proto, FEED)
    assert reason(done).endswith("; Relu behind it comes before the shuffle")
    assert done.model.graph.node[-1] == late[-1]
    inner = branch([node("Neg", "m", "r")])
    first = [deconv("x w b", "u", strides=[2, 2]), node("Relu", "u", "m", name="act")]
    done = check(
        choice(inner, branch([node("Abs", "m", "r")], name="other"), W, first),
        FEED | {"c": np.array(True)},
    )
    assert reason(done).endswith("; Relu behind it comes before the shuffle")
    assert operators(done.model).count("Relu") == 1


def test_phases_of_zeros_behind_the_convolution_keep_it_there():
    """A stride beyond the kernel: Relu(0 + b) is no Relu(0) + b."""
    done = check(followed(node("Relu", "t", "y"), strides=[4, 3]), FEED)
    assert MOVED not in reason(done)
    assert done.model.graph.node[-1].op_type == "Relu"


def test_nothing_moves_without_a_shuffle():
    proto = followed(node("Relu", "t", "y", name="act"), strides=[1, 1], output_padding=[0, 0])
    done = check(proto, FEED)
    assert MOVED not in reason(done)
    assert done.model.graph.node[-1] == proto.graph.node[-1]


def test_an_operand_that_others_read_stays_as_it_is():
    proto = followed(
        node("Add", "t k", "y"), node("Mul", "k k", "z"), stored={"k": LINE}, outputs=(Y, value("z", 3))
    )  # fmt: skip
    done = check(proto, FEED)
    (kept,) = [one for one in done.model.graph.initializer if one.name == "k"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(kept), LINE)
    assert MOVED in reason(done)


@pytest.mark.parametrize(
    ("opset", "moves"), [(6, False), (7, True), (8, True), (13, True), (22, True)]
)
def test_operands_move_from_the_opset_on_in_which_they_broadcast(opset, moves):
    attributes = {"axis": 1, "broadcast": 1} if opset < 7 else {}
    line = LINE.reshape(-1) if opset < 7 else LINE
    proto = followed(
        node("Add", "t k", "y", **attributes), stored={"k": line}, opset=opset
    )  # fmt: skip
    # ONNX Runtime has no older Add.
    done = check(proto, FEED) if moves else deconvfix.convert(proto, verify=False)
    assert (MOVED in reason(done)) == moves


def test_in_a_function():
    """Whose stored operands are Constant nodes."""
    nodes = [
        deconv("x w b", "t", strides=[2, 2]),
        constant("k", LINE),
        node("Mul", "t k", "m"),
        node("Relu", "m", "y"),
    ]
    proto = program([call()], [function(nodes)])
    done = check(proto, FEED)
    assert reason(done).endswith("Mul and Relu behind it come before the shuffle")
    (body,) = done.model.functions
    first = next(i for i, each in enumerate(body.node) if each.op_type == "Relu")
    shuffle = next(i for i, each in enumerate(body.node) if each.op_type == "DepthToSpace")
    assert first < shuffle


def test_open_sizes_and_a_crop_at_run_time():
    proto = followed(node("Relu", "t", "y"), output_shape=[9, 5], pads=None, output_padding=None)
    done = check(proto, FEED)
    assert MOVED in reason(done)


@pytest.mark.parametrize(("channels", "convolutions"), [(24, 4), (6, 1)])
def test_a_folded_convolution_keeps_its_activation(channels, convolutions):
    """Of few channels all phases come out of one convolution."""
    stored = {"v": integers((channels, 4, 3, 3), 1), "c": np.array([1, 1, 2, 2], np.float32)}
    resize = node(
        "Resize", "x  c", "u", mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
    nodes = [resize, node("Conv", "u v", "t", name="conv", pads=[1] * 4), node("Relu", "t", "y")]
    proto = model(nodes, [value("x", FEED["x"].shape)], [Y], stored)
    done = check(proto, FEED, fold=True)
    assert reason(done).endswith("Relu behind it comes before the shuffle")
    assert operators(done.model).count("Relu") == convolutions
    assert operators(done.model).count("Conv") == convolutions


def optimized(proto, path):
    """The nodes that ONNX Runtime runs: operators, and activations of convolutions."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = list(onnx.load(path).graph.node)
    activations = [
        attribute.s.decode()
        for each in found
        if each.op_type in ("Conv", "FusedConv")
        for attribute in each.attribute
        if attribute.name == "activation"
    ]
    return [each.op_type for each in found], activations


FUSED = {
    "Relu": [node("Relu", "t", "y")],
    "LeakyRelu": [node("LeakyRelu", "t", "y", alpha=0.25)],
    "Tanh": [node("Tanh", "t", "y")],
    "BatchNormalization, Relu": [
        node("BatchNormalization", "t s l m v", "n"),
        node("Relu", "n", "y"),
    ],
}


@pytest.mark.parametrize("tail", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("convolution", ["cropped", "union", "phases"])
def test_onnx_runtime_fuses_it_with_the_convolution(tmp_path, tail, convolution):
    proto = followed(*tail, stored=NORMALIZED)
    proto.graph.input[0].CopyFrom(value("x", FEED["x"].shape))
    asked = {"convolution": convolution, "shuffle": "slices" if convolution == "phases" else "crd"}
    done = deconvfix.convert(proto, example_inputs=FEED, **asked)
    found, activations = optimized(done.model, tmp_path / "moved.onnx")
    names = {each.op_type for each in tail}
    assert not names & {*found}
    convolutions = sum(kind in ("Conv", "FusedConv") for kind in found)
    assert activations == [tail[-1].op_type] * convolutions
    # Control: behind the shuffle they stay.
    alone = plain(strides=[2, 2])
    alone.graph.input[0].CopyFrom(value("x", FEED["x"].shape))
    behind = deconvfix.convert(alone, **asked).model
    for each in behind.graph.node:
        each.output[:] = ["t" if name == "y" else name for name in each.output]
    behind.graph.node.extend(tail)
    behind.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in NORMALIZED.items()
    )
    found, activations = optimized(behind, tmp_path / "behind.onnx")
    assert names <= {*found}
    assert not activations


@settings(max_examples=25)
@given(data=st.data())
def test_there_and_back(data):
    """The way back finds the convolution, what is between, and the shuffle."""
    case = data.draw(cases(square=True))
    spec, x = case.spec, case.x[:1].astype(np.float32)
    tail = data.draw(tails(spec.out_channels, 2))
    before = with_tail(layer_of(spec, case.weight, case.bias, x.shape[2:]), tail)
    there = deconvfix.convert(before, convolution="union", shuffle="crd", verify=False)
    back = deconvfix.convert(there.model, to="deconv", verify=False)
    assume(back.plan.changed)
    assert "DepthToSpace" not in operators(back.model)
    assert operators(back.model).count("ConvTranspose") == 1
    for step in tail:
        assert {*step.operators} <= {*operators(back.model)}
    np.testing.assert_array_equal(
        run(back.model, {"x": x})[0], meaning_of(tail, case.expected[:1]).astype(np.float32)
    )


def test_phases_of_an_operand_have_no_way_back():
    proto = followed(node("Add", "t k", "y"), stored={"k": LINE})
    there = deconvfix.convert(proto).model
    (operand,) = [one for one in there.graph.initializer if one.name == "k"]
    array = onnx.numpy_helper.to_array(operand).copy()
    array[1] += 1
    operand.CopyFrom(onnx.numpy_helper.from_array(array, "k"))
    (decision,) = deconvfix.convert(there, to="deconv").plan.refused
    assert "the Add behind it differs between the phases" in decision.reason
