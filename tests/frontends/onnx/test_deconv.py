"""The way back to transposed convolutions: exact, proven, and refused where there is none."""

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from onnx import helper, numpy_helper

import deconvfix
from tests.support.onnx_layers import layer_of
from tests.support.onnx_models import is_valid, nodes_of, operators, run
from tests.support.strategies import cases

FLOAT = onnx.TensorProto.FLOAT


@settings(max_examples=40)
@given(cases(square=True))
def test_there_and_back_is_the_definition(case):
    """The exact form, whose convolution and shuffle become a transposed convolution again."""
    spec, x = case.spec, case.x[:1].astype(np.float32)
    before = layer_of(spec, case.weight, case.bias, x.shape[2:])
    there = deconvfix.convert(before, convolution="union", shuffle="crd", verify=False).model
    back = deconvfix.convert(there, to="deconv", verify=False)
    assume(back.plan.changed)
    assert operators(back.model).count("ConvTranspose") == 1
    assert "DepthToSpace" not in operators(back.model)
    assert is_valid(back.model)
    np.testing.assert_array_equal(
        run(back.model, {"x": x})[0], case.expected[:1].astype(np.float32)
    )


def network(bias, *, relu=True):
    rng = np.random.default_rng(2)
    stored = {
        "w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "b": np.array(bias, np.float32),
        "v": rng.standard_normal((5, 2, 3, 3)).astype(np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], name="act"),
        helper.make_node("DepthToSpace", ["r"], ["s"], name="up", blocksize=2, mode="CRD"),
        helper.make_node(
            "Resize", ["s", "", "scales"], ["u"], name="resize", mode="nearest",
            coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        ),
        helper.make_node("Conv", ["u", "v"], ["y"], name="last", pads=[1] * 4),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", FLOAT, [1, 3, "H", "W"])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 5, None, None])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_shuffles_and_upsampling_become_layers_with_their_activation():
    before = network([1, 1, 1, 1, 2, 2, 2, 2])
    feed = {"x": np.random.default_rng(3).standard_normal((1, 3, 4, 6)).astype(np.float32)}
    done = deconvfix.convert(before, to="deconv", example_inputs=feed)
    assert [node.op_type for node in nodes_of(done.model)] == [
        "ConvTranspose",
        "Relu",
        "ConvTranspose",
    ]
    assert done.report.parity.ok
    assert done.report.parity.comparisons
    assert {value.name for value in done.model.graph.initializer}.isdisjoint({"w", "v", "scales"})
    again = deconvfix.Plan.from_json(done.plan.to_json())
    assert deconvfix.convert(before, plan=again).model == done.model


def test_a_bias_with_phases_is_refused():
    done = deconvfix.convert(network([1, 1, 1, 0, 2, 2, 2, 2]), to="deconv")
    assert done.plan["conv"].decision == "refused"
    assert "its bias differs between the phases" in done.plan["conv"].reason
    assert done.plan["last"].decision == "replaced"


@pytest.mark.parametrize("exclude", ["last", lambda name: name == "last"])
def test_names_choose(exclude):
    done = deconvfix.convert(network([1] * 8), to="deconv", exclude=exclude)
    assert [decision.decision for decision in done.plan.decisions] == ["replaced", "kept"]


def test_modules_have_no_way_back():
    torch = pytest.importorskip("torch")
    with pytest.raises(deconvfix.OptionError, match="no ONNX model"):
        deconvfix.convert(torch.nn.Conv2d(2, 8, 3), to="deconv")


def test_a_target_is_kept_to_on_the_way_back_too(tmp_path):
    chip = tmp_path / "chip.toml"
    chip.write_text('title = "chip"\n[forbidden]\nvalue = ["ConvTranspose"]\nsource = "sheet"\n')
    with pytest.raises(deconvfix.ModelError, match="it is a ConvTranspose; the target 'chip' says"):
        deconvfix.convert(network([1] * 8), to="deconv", target=str(chip))
