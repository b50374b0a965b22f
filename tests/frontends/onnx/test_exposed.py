"""Convolutions in front of pixel shuffles in ONNX models: found, the same function, corrected in place."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import deconvfix
from deconvfix.frontends.onnx.exposed import shows_shuffles, with_shuffled, with_transposed
from deconvfix.frontends.onnx.shuffles import shuffled_convolutions


def network(
    *, sizes, factors, kernel, groups=1, per_group=(2, 3), bias=True, between=(), how="CRD",
    seed=0, auto_pad=None, is_open=False,
):  # fmt: skip
    """Conv, nodes for each element, a shuffle. Whole numbers, and a bias whose mean over phases is one."""
    rng = np.random.default_rng(seed)
    ndim, phases = len(sizes), int(np.prod(factors))
    count = per_group[1] * groups * phases
    weight = rng.integers(-4, 5, (count, per_group[0], *kernel)).astype("float32")
    stored = [numpy_helper.from_array(weight, "w")]
    if bias:
        stored.append(
            numpy_helper.from_array((rng.integers(-3, 4, count) * phases).astype("float32"), "b")
        )
    pads = [k // 2 for k in kernel] * 2
    padding = {"auto_pad": auto_pad} if auto_pad else {"pads": pads}
    nodes = [
        helper.make_node(
            "Conv", ["x", *(t.name for t in stored)], ["c"], "up", group=groups, **padding
        )
    ]
    value = "c"
    for number, op in enumerate(between):
        nodes.append(helper.make_node(op, [value], [f"e{number}"]))
        value = f"e{number}"
    after = [n * r for n, r in zip(sizes, factors, strict=True)]
    if how in ("CRD", "DCR"):
        nodes.append(
            helper.make_node("DepthToSpace", [value], ["s"], blocksize=factors[0], mode=how)
        )
    else:
        first = per_group[1] * groups
        split = [*factors, first] if how == "phases first" else [first, *factors]
        own, at = (1 + ndim, 1) if how == "phases first" else (1, 2)
        order = [0, own, *(axis for i in range(ndim) for axis in (2 + ndim + i, at + i))]
        stored.append(numpy_helper.from_array(np.array([2, *split, *sizes]), "split"))
        stored.append(numpy_helper.from_array(np.array([2, first, *after]), "joined"))
        nodes.append(helper.make_node("Reshape", [value, "split"], ["r"]))
        nodes.append(helper.make_node("Transpose", ["r"], ["t"], perm=order))
        nodes.append(helper.make_node("Reshape", ["t", "joined"], ["s"]))
    nodes.append(helper.make_node("Neg", ["s"], ["y"]))
    batch = "n" if is_open else 2
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(
                "x", TensorProto.FLOAT, [batch, per_group[0] * groups, *sizes]
            )
        ],
        [
            helper.make_tensor_value_info(
                "y", TensorProto.FLOAT, [batch, per_group[1] * groups, *after]
            )
        ],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model, x):
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


@st.composite
def networks(draw):
    ndim = draw(st.integers(1, 3))
    factors = tuple(draw(st.integers(1, 3 if ndim < 3 else 2)) for _ in range(ndim))
    if max(factors) == 1:
        factors = (2, *factors[1:])
    ways = ["channels first", "phases first"]
    if ndim == 2 and draw(st.booleans()):
        factors, ways = (factors[0],) * 2, ["CRD", "DCR"]
        factors = tuple(max(2, r) for r in factors)
    how = draw(st.sampled_from(ways))
    groups = 1 if how in ("DCR", "phases first") else draw(st.integers(1, 2))
    kernel = tuple(draw(st.sampled_from([1, 2, 3])) for _ in range(ndim))
    auto_pad = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))
    between = draw(st.sampled_from([(), ("Relu",), ("Identity", "Relu")]))
    sizes = tuple(draw(st.integers(3, 5)) for _ in range(ndim))
    model = network(
        sizes=sizes, factors=factors, kernel=kernel, groups=groups, bias=draw(st.booleans()), between=between,
        how=how, seed=draw(st.integers(0, 99)), auto_pad=auto_pad,
    )  # fmt: skip
    x = np.random.default_rng(1).integers(-4, 5, (2, 2 * groups, *sizes)).astype("float32")
    return model, x, factors


@settings(max_examples=60)
@given(networks())
def test_the_same_function_there_and_back(case):
    proto, x, factors = case
    model = ir.from_proto(proto)
    shown, notes = with_transposed(model)
    assert not notes
    assert shows_shuffles(shown)
    assert not shows_shuffles(model)
    [up] = [node for node in shown.graph if node.op_type == "ConvTranspose"]
    assert tuple(up.attributes["strides"].value) == factors
    assert np.array_equal(run(shown, x), run(proto, x))
    back = ir.to_proto(with_shuffled(shown))
    assert not shows_shuffles(shown)
    assert [*back.graph.initializer] == [*proto.graph.initializer]
    assert [*back.graph.node] == [*proto.graph.node]


@settings(max_examples=15)
@given(networks())
def test_corrected_in_place(case):
    proto, x, _ = case
    converted = deconvfix.convert(proto, to="equalized", init="fit", example_inputs={"x": x})
    [layer] = converted.report.layers
    assert (layer.name, layer.decision, layer.op) == ("up", "replaced", "Conv + shuffle")
    names = [(tensor.name, tensor.dims) for tensor in proto.graph.initializer]
    assert [(tensor.name, tensor.dims) for tensor in converted.model.graph.initializer] == names
    assert [node.op_type for node in converted.model.graph.node] == [
        n.op_type for n in proto.graph.node
    ]


@pytest.mark.parametrize("how", ["CRD", "DCR", "channels first"])
def test_a_constant_gives_no_grid(how):
    proto = network(sizes=(12, 13), factors=(2, 2), kernel=(3, 3), how=how, between=("Relu",))
    calibration = [
        {"x": np.random.default_rng(i).random((2, 2, 12, 13), "float32")} for i in range(4)
    ]
    converted = deconvfix.convert(proto, to="equalized", calibration=calibration)
    constant = np.broadcast_to(np.float32([0.3, 0.8]).reshape(1, 2, 1, 1), (2, 2, 12, 13)).copy()

    def spread(model):
        return run(model, constant)[:, :, 4:-4, 4:-4].std((2, 3)).max()

    assert spread(converted.model) < 1e-5 < 1 < spread(proto)


def test_a_size_that_is_open():
    proto = network(sizes=(5, 6), factors=(3, 3), kernel=(3, 3), how="DCR", is_open=True)
    x = np.random.default_rng(0).integers(-4, 5, (2, 2, 5, 6)).astype("float32")
    assert np.array_equal(run(with_transposed(ir.from_proto(proto))[0], x), run(proto, x))


def test_inspect_says_what_it_is():
    proto = network(sizes=(5, 6), factors=(2, 2), kernel=(3, 3))
    [layer] = deconvfix.inspect(proto).layers
    assert (layer.op, layer.recommendation.form) == ("Conv + shuffle", "equalized")


def changed(proto, **others):
    for name, change in others.items():
        [node] = [node for node in proto.graph.node if node.op_type == name]
        change(node)
    return proto


def strided(node):
    node.attribute.append(helper.make_attribute("strides", [2, 2]))


def other_order(node):
    node.attribute[0].CopyFrom(helper.make_attribute("perm", [0, 1, 2, 4, 3, 5]))


PLAIN = {"sizes": (6, 6), "factors": (2, 2), "kernel": (3, 3)}


@pytest.mark.parametrize(
    "proto",
    [
        changed(network(**PLAIN), Conv=strided),
        network(**PLAIN, between=("Softmax",)),
        changed(network(**PLAIN, how="channels first"), Transpose=other_order),
        network(**PLAIN | {"kernel": (1, 1)}, how="CRD", between=("GlobalAveragePool",)),
    ],
)
def test_what_is_none_is_left_alone(proto):
    model = ir.from_proto(proto)
    assert with_transposed(model)[0] is model


def test_interpolation_is_said():
    scales = numpy_helper.from_array(np.float32([1, 1, 2, 2]), "scales")
    graph = helper.make_graph(
        [helper.make_node("Resize", ["x", "", "scales"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 8, 10])],
        [scales],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    [note] = deconvfix.inspect(proto).notes
    assert note.startswith("1 upsampling by interpolation")


def test_an_output_that_others_read_is_left_alone():
    proto = network(**PLAIN)
    proto.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [2, 12, 6, 6]))
    model = ir.from_proto(proto)
    assert with_transposed(model)[0] is model


def test_a_weight_that_others_read_is_kept_for_them():
    proto = network(**PLAIN)
    proto.graph.node.append(helper.make_node("ReduceSum", ["w"], ["z"], keepdims=0))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, []))
    converted = deconvfix.convert(proto, to="equalized", init="fit").model
    before = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in converted.graph.initializer}
    assert np.array_equal(after["w"], before["w"])
    [conv] = [node for node in converted.graph.node if node.op_type == "Conv"]
    assert not np.array_equal(after[conv.input[1]], before["w"])


@pytest.mark.parametrize("damage", ["no weight", "a vector", "a number"])
def test_a_damaged_convolution_is_no_shuffle(damage):
    model = network(sizes=(4, 5), factors=(2, 2), kernel=(3, 3), bias=False)
    if damage == "no weight":
        del model.graph.node[0].input[1:]
    else:
        shape = (24,) if damage == "a vector" else ()
        weight = numpy_helper.from_array(np.ones(shape, np.float32), "w")
        model.graph.initializer[0].CopyFrom(weight)
    assert list(shuffled_convolutions(ir.from_proto(model))) == []
