"""Pixel shuffles that a file has, for targets that do not accept them."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import deconvfix
from tests.support.onnx_models import is_valid, operators, run

FLOAT = onnx.TensorProto.FLOAT


def network(nodes, sizes, stored=None, channels=12, ndim=2):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", FLOAT, [1, channels, *sizes])],
        [helper.make_tensor_value_info("y", FLOAT, [None] * (ndim + 2))],
        [numpy_helper.from_array(array, name) for name, array in (stored or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def depth_to_space(mode, sizes):
    node = helper.make_node("DepthToSpace", ["x"], ["y"], name="up", blocksize=2, mode=mode)
    return network([node], sizes)


def reshaped(order):
    """A 3-D shuffle by hand: (1, 12, 3, 2, 4) to two channels of factors (1, 3, 2)."""
    split = [1, 2, 1, 3, 2, 3, 2, 4] if order == "channel" else [1, 1, 3, 2, 2, 3, 2, 4]
    perm = [0, 1, 5, 2, 6, 3, 7, 4] if order == "channel" else [0, 4, 5, 1, 6, 2, 7, 3]
    stored = {
        "split": np.array(split, np.int64),
        "joined": np.array([1, 2, 3, 6, 8], np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "split"], ["a"], name="split"),
        helper.make_node("Transpose", ["a"], ["b"], name="turn", perm=perm),
        helper.make_node("Reshape", ["b", "joined"], ["y"], name="join"),
    ]
    return network(nodes, [3, 2, 4], stored, ndim=3)


def chip(tmp_path, lines):
    path = tmp_path / "chip.toml"
    path.write_text(f'title = "chip"\n{lines}')
    return str(path)


NO_DEPTH_TO_SPACE = '[depth_to_space]\nvalue = []\nsource = "sheet"\n'
FIVE_AXES = '[max_rank]\nvalue = 5\nsource = "sheet"\n'


@pytest.mark.parametrize("mode", ["CRD", "DCR"])
def test_depth_to_space_is_written_by_other_operators(tmp_path, mode):
    before = depth_to_space(mode, [3, 5])
    x = np.arange(12 * 15, dtype=np.float32).reshape(1, 12, 3, 5)
    done = deconvfix.convert(before, target=chip(tmp_path, NO_DEPTH_TO_SPACE))
    (decision,) = done.plan.decisions
    assert (decision.op, decision.decision) == ("pixel shuffle", "replaced")
    assert "DepthToSpace" not in operators(done.model)
    assert is_valid(done.model)
    assert done.report.parity.ok
    np.testing.assert_array_equal(run(done.model, {"x": x})[0], run(before, {"x": x})[0])
    # The recipe carries it out again.
    again = deconvfix.Plan.from_json(done.plan.to_json())
    assert deconvfix.convert(before, plan=again).model == done.model


@pytest.mark.parametrize("order", ["channel", "phase"])
def test_a_shuffle_of_high_rank_is_written_with_fewer_axes(tmp_path, order):
    before = reshaped(order)
    x = np.arange(12 * 24, dtype=np.float32).reshape(1, 12, 3, 2, 4)
    done = deconvfix.convert(before, target=chip(tmp_path, FIVE_AXES))
    assert done.plan.decisions[0].decision == "replaced"
    np.testing.assert_array_equal(run(done.model, {"x": x})[0], run(before, {"x": x})[0])
    transposes = [node for node in done.model.graph.node if node.op_type == "Transpose"]
    assert all(len(node.attribute[0].ints) <= 5 for node in transposes)


def test_what_is_accepted_stays(tmp_path):
    before = depth_to_space("CRD", [3, 5])
    assert deconvfix.convert(before, target=chip(tmp_path, FIVE_AXES)).model == before


def test_what_cannot_be_written_is_refused(tmp_path):
    """By phase and with two open sizes no other way exists; the file is not written then."""
    before = depth_to_space("DCR", ["H", "W"])
    with pytest.raises(deconvfix.ModelError, match="it is a DepthToSpace of mode DCR"):
        deconvfix.convert(before, target=chip(tmp_path, NO_DEPTH_TO_SPACE))
