"""What a run of an ONNX model shows of its layers, and which of them it cannot look at."""

import numpy as np
import onnx_ir as ir
from onnx import helper

from deconvfix.diagnose.measure import outputs_with_grids
from deconvfix.frontends.onnx.frontend import FRONTEND
from tests.support.onnx_layers import BOOL, branch
from tests.support.onnx_models import integers, model, node, value


def test_layers_in_a_branch_count_for_the_period_of_the_grid():
    """They are seen by no output, and still make a grid in what the model gives."""
    stored = {
        "first": integers((3, 4, 2, 2)),
        "second": integers((4, 2, 3, 3), 1),
        "third": integers((4, 2, 3, 3), 2),
    }
    up = node("ConvTranspose", "x first", "m", strides=[2, 2], name="up")
    inner = [
        branch([node("ConvTranspose", f"m {weight}", "r", strides=[3, 3], name=weight)])
        for weight in ("second", "third")
    ]
    choose = helper.make_node(
        "If", ["c"], ["y"], name="choose", then_branch=inner[0], else_branch=inner[1]
    )
    proto = model(
        [up, choose], [value("x", [1, 3, 5, 6]), value("c", [], BOOL)], [value("y", 4)], stored
    )
    opened = ir.from_proto(proto)
    matches = FRONTEND.find(opened, None).matches
    feed = {"x": integers((1, 3, 5, 6), 3), "c": np.array(True)}
    probe = FRONTEND.probe(opened, feed, matches)
    assert [answer.name for answer in probe.layers] == ["up"]
    assert set(probe.unseen) == {match.name for match in matches} - {"up"}
    ((_, grids),) = outputs_with_grids(matches, probe).values()
    assert max(period[0] for period in grids.values()) > grids["up"][0]
