"""What files consist of, counted by hand."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deconvfix.report.tally import Tallies, Tally, tallies_of, tally_of
from tests.support.onnx_files import convert, net

FLOAT = TensorProto.FLOAT


def array(name, *shape):
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def model(nodes, x, y, arrays, domain=""):
    values = [helper.make_tensor_value_info(n, FLOAT, s) for n, s in (("x", x), ("y", y))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], arrays)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def saved(folder, made, **options):
    onnx.save(made, folder / "model.onnx", **options)
    return folder / "model.onnx"


CASES = {
    # For each number of the output, the taps of one group: 4 of 8 channels, 3 x 5.
    "Conv": (
        helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 2, 1, 2]),
        (2, 8, 7, 6), (2, 6, 7, 6), [array("w", 6, 4, 3, 5)], 2 * 6 * 7 * 6 * 4 * 3 * 5,
    ),
    # For each number of the input, the taps that it reaches: 3 of 6 channels, 4 x 2.
    "ConvTranspose": (
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=2, strides=[2, 2]),
        (2, 8, 5, 6), (2, 6, 12, 12), [array("w", 8, 3, 4, 2)], 2 * 8 * 5 * 6 * 3 * 4 * 2,
    ),
    "MatMul": (
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        (2, 3, 5), (2, 3, 7), [array("w", 5, 7)], 2 * 3 * 5 * 7,
    ),
    "Gemm": (
        helper.make_node("Gemm", ["x", "w"], ["y"], transA=1, transB=1),
        (5, 3), (3, 7), [array("w", 7, 5)], 3 * 5 * 7,
    ),
    "Relu": (helper.make_node("Relu", ["x"], ["y"]), (2, 3), (2, 3), [], 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_multiply_accumulates_are_those_of_the_definition(tmp_path, name):
    node, x, y, arrays, macs = CASES[name]
    path = saved(tmp_path, model([node], x, y, arrays))
    onnx.checker.check_model(path, full_check=True)
    found = tally_of(path)
    assert found.operators == {name: 1}
    assert found.macs == macs
    assert found.parameters == sum(math.prod(held.dims) for held in arrays)
    assert found.bytes == path.stat().st_size


def test_an_open_batch_counts_once_and_open_sizes_are_not_known(tmp_path):
    node, x, y, arrays, macs = CASES["ConvTranspose"]
    path = saved(tmp_path, model([node], ("n", *x[1:]), ("n", *y[1:]), arrays))
    assert tally_of(path).macs == macs // 2
    path = saved(tmp_path, model([node], (*x[:2], "h", x[3]), (*y[:2], None, y[3]), arrays))
    assert tally_of(path).macs is None


def test_open_sizes_are_counted_where_inputs_have_sizes(tmp_path):
    """The first that tells all the others; what is between knows open sizes alone."""
    node, x, y, arrays, macs = CASES["ConvTranspose"]
    relu = helper.make_node("Relu", ["x"], ["r"])
    node.input[0] = "r"
    made = model([relu, node], ("n", x[1], "h", x[3]), ("n", y[1], "H", y[3]), arrays)
    node.input[0] = "x"
    between = helper.make_tensor_value_info("r", FLOAT, ("n", x[1], "h", x[3]))
    made.graph.value_info.append(between)
    path = saved(tmp_path, made)
    assert tally_of(path, {"x": x}).macs == macs
    found = tallies_of(path, path, [{"other": (1,)}, {"x": x}])
    assert (found.before.macs, found.after.macs, found.at) == (macs, macs, "x 2x8x5x6")
    assert found.rows()[2] == ("Multiply-accumulates at x 2x8x5x6", f"{macs:,}", f"{macs:,}")
    untold = tallies_of(path, path, [{"other": (1,)}])
    assert (untold.before.macs, untold.at) == (None, "")


def test_the_sizes_are_those_of_the_inputs_that_are_given(tmp_path):
    onnx.save(net(), tmp_path / "net.onnx")
    given = convert(tmp_path / "net.onnx", tmp_path / "a.onnx", "--input", "x=1x3x20x30")
    assert "Multiply-accumulates at x 1x3x20x30" in given.stdout
    made_up = convert(tmp_path / "net.onnx", tmp_path / "b.onnx")
    assert "Multiply-accumulates at x 1x3x" in made_up.stdout
    assert "not known" not in made_up.stdout


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Einsum", ["x"], ["y"], equation="ij->ji"),
        helper.make_node("FusedConv", ["x", "x"], ["y"], domain="com.microsoft"),
    ],
    ids=["by rules of its own", "of another domain"],
)
def test_what_is_not_counted_is_not_called_zero(tmp_path, node):
    assert tally_of(saved(tmp_path, model([node], (2, 3), (3, 2), []))).macs is None


def test_branches_are_counted_as_operators_but_run_unknown_times(tmp_path):
    def branch(name, op):
        value = helper.make_tensor_value_info(name, FLOAT, (2, 7))
        inputs = ["x", "w"] if op == "MatMul" else ["u"]
        return helper.make_graph([helper.make_node(op, inputs, [name])], name, [], [value])

    def with_branch(op):
        first = helper.make_node("MatMul", ["x", "w"], ["u"])
        test = helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0)
        cast = helper.make_node("Cast", ["most"], ["choice"], to=TensorProto.BOOL)
        branches = {"then_branch": branch("one", op), "else_branch": branch("two", "Relu")}
        choose = helper.make_node("If", ["choice"], ["y"], **branches)
        return model([first, test, cast, choose], (2, 5), (2, 7), [array("w", 5, 7)])

    found = tally_of(saved(tmp_path, with_branch("Relu")))
    assert found.operators == {"MatMul": 1, "ReduceMax": 1, "Cast": 1, "If": 1, "Relu": 2}
    assert found.macs == 2 * 5 * 7
    found = tally_of(saved(tmp_path, with_branch("MatMul")))
    assert (found.operators["MatMul"], found.macs) == (2, None)


def test_constants_hold_parameters_and_are_no_operators(tmp_path):
    held = helper.make_node("Constant", [], ["w"], value=array("w", 5, 7))
    node, x, y, *_ = CASES["MatMul"]
    found = tally_of(saved(tmp_path, model([held, node], x, y, [])))
    assert (found.operators, found.parameters) == ({"MatMul": 1}, 35)


def test_weights_in_other_files_count_as_bytes(tmp_path):
    node, x, y, *_ = CASES["MatMul"]
    made = model([node], x, y, [array("w", 5, 7)])
    external = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0}
    path = saved(tmp_path, made, **external)
    found = tally_of(path)
    assert found.parameters == 35
    assert found.bytes == path.stat().st_size + 4 * 35
    assert (tmp_path / "w.data").stat().st_size >= 4 * 35


def test_a_conversion_shows_what_changed(tmp_path):
    onnx.save(net(shape=(1, 3, 7, 8)), tmp_path / "net.onnx")
    result = convert(tmp_path / "net.onnx", tmp_path / "fixed.onnx")
    both = tallies_of(tmp_path / "net.onnx", tmp_path / "fixed.onnx")
    rows = {what: (before, after) for what, before, after in both.rows()}
    assert rows["ConvTranspose"] == ("2", "0")
    assert rows["Conv"] == ("0", "2")
    assert rows["Other operators"] == ("1", "1")  # Relu
    assert rows["Bytes"][0] == f"{(tmp_path / 'net.onnx').stat().st_size:,}"
    for what in rows:
        assert what in result.stdout
    assert rows["Multiply-accumulates"][1] in result.stdout


def test_large_numbers_fit_into_a_column():
    one = Tally({}, 9_999_999, 12_345_678_901, 10**12)
    rows = Tallies(one, Tally({}, 10_000_000, None, 0)).rows()
    assert rows == [
        ("Other operators", "0", "0"),
        ("Parameters", "9,999,999", "10 M"),
        ("Multiply-accumulates", "12.35 G", "not known"),
        ("Bytes", "1 T", "0"),
    ]
