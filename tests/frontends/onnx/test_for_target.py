"""The writing of a layer for a target, and what no target gets."""

import contextlib

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import deconvfix
from deconvfix.cli.main import main
from deconvfix.errors import ModelError, OptionError
from deconvfix.targets.profile import profiles
from tests.support.onnx_layers import FEED, W, X, Y, layer_of, plain
from tests.support.onnx_models import check, deconv, model, node, nodes_of, operators, run
from tests.support.strategies import cases

TARGETS = [name for name in profiles() if name != "onnx"]


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=8)
@given(case=cases(), is_open=st.booleans())
def test_what_is_written_for_a_target_is_the_definition(target, case, is_open):
    """Or the layer is refused with the line of the profile, and nothing else is written."""
    spec = case.spec
    x = case.x[:1]
    sizes = ["a", "b", "c"][: spec.ndim] if is_open else x.shape[2:]
    before, done = layer_of(spec, case.weight, case.bias, sizes), None
    with contextlib.suppress(ModelError):
        done = deconvfix.convert(before, target=target, verify=False)
    if done is None:
        with pytest.raises(ModelError, match=f"the target {target!r} says"):
            deconvfix.convert(before, target=target, verify=False)
        return
    (decision,) = done.plan.decisions
    if decision.decision == "refused":
        assert f"the target {target!r} says" in decision.reason
        assert done.model == before
        return
    assert done.plan.target == target
    (got,) = run(done.model, {"x": x.astype(np.float32)})
    np.testing.assert_array_equal(got, case.expected[:1].astype(np.float32))


def test_a_chip_of_rank_four_gets_nothing_of_higher_rank():
    # The default, as a control, has a DepthToSpace.
    assert "DepthToSpace" in operators(check(plain(strides=[2, 2]), FEED).model)
    fixed = model([deconv(strides=[2, 2])], [FEED_VALUE], [Y], W)
    done = deconvfix.convert(fixed, target="rank4", example_inputs=FEED)
    assert "DepthToSpace" not in operators(done.model)
    perms = [list(n.attribute[0].ints) for n in nodes_of(done.model) if n.op_type == "Transpose"]
    assert perms
    assert max(map(len, perms)) <= 4
    assert done.report.parity.ok


FEED_VALUE = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, FEED["x"].shape)


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ('[forbidden]\nvalue = ["Conv"]', "it is a Conv"),
        ("[max_rank]\nvalue = 3", "rank 4"),
        ('[depth_to_space]\nvalue = []\n[prefer]\nvalue = ["cropped/crd"]', "DepthToSpace of mode CRD"),
        ('[block_sizes]\nvalue = [4]\n[prefer]\nvalue = ["cropped/crd"]', "block size 2"),
        ("[open_sizes]\nvalue = false", "open size"),
        ("[opset]\nvalue = 16", "opset 17"),
    ],
)  # fmt: skip
def test_the_line_that_forbids_is_told(tmp_path, line, broken):
    """By a refusal of the layer, or of the whole file where no writing would help."""
    path = tmp_path / "chip.toml"
    path.write_text('title = "chip"\n' + line.replace("\nvalue", '\nsource = "sheet"\nvalue'))
    try:
        done = deconvfix.convert(plain(strides=[2, 2]), target=str(path))
        (decision,) = done.plan.refused
        words = decision.reason
    except ModelError as error:
        words = str(error)
    assert broken in words
    assert "sheet" in words


def test_what_is_forbidden_elsewhere_in_the_file_is_an_error(tmp_path):
    path = tmp_path / "chip.toml"
    path.write_text('title = "chip"\n[forbidden]\nvalue = ["Neg"]\nsource = "sheet"')
    other = model([deconv("x w b", "h"), node("Neg", "h", "y")], [X], [Y], W)
    with pytest.raises(ModelError, match=r"it is a Neg; the target 'chip' says: forbidden = Neg"):
        deconvfix.convert(other, target=str(path))


def test_a_writing_that_does_not_fit_is_refused():
    done = deconvfix.convert(plain(), convolution="phases", shuffle="identity")
    (decision,) = done.plan.refused
    assert "a convolution for each phase" in decision.reason
    assert done.model == plain()


def test_a_shuffle_that_is_a_transposed_convolution_is_not_converted_again():
    done = deconvfix.convert(plain(), shuffle="identity", example_inputs=FEED)
    assert "ConvTranspose" in operators(done.model)
    assert done.report.still_running == ()
    again = deconvfix.convert(done.model)
    assert not again.plan.decisions
    # Negative control: with another kernel it is a layer.
    (kernel,) = [n for n in done.model.graph.node if n.name.endswith("identity")]
    array = numpy_helper.to_array(kernel.attribute[0].t) * 2
    kernel.attribute[0].t.CopyFrom(numpy_helper.from_array(array))
    assert len(deconvfix.convert(done.model).plan.decisions) == 1


def test_modules_have_no_targets():
    torch = pytest.importorskip("torch")
    with pytest.raises(OptionError, match="is no ONNX model"):
        deconvfix.convert(torch.nn.ConvTranspose2d(3, 4, 2), target="ncnn")


def test_the_command_lists_them():
    listed = CliRunner().invoke(main, ["targets"])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in profiles())
    told = CliRunner().invoke(main, ["targets", "ncnn"])
    assert "resize_ranks = 3, 4" in told.output
    unknown = CliRunner().invoke(main, ["targets", "nobody"])
    assert unknown.exit_code == 1


def of_its_own(nodes, initializers=()):
    """A layer, and what a file may have behind it."""
    return model([deconv("x w b", "h"), *nodes], [X], [Y], {**W, **dict(initializers)})


@pytest.mark.parametrize(
    ("target", "nodes", "initializers"),
    [
        # OpenCV 5.0 runs files with a Shape of their own; the layer gets none.
        ("opencv", [node("Shape", "h", "s"), node("Reshape", "h s", "y")], ()),
        # What is added to a number has the rank of the other.
        (
            "opencv",
            [node("Add", "one h", "t"), node("Resize", "t  scales", "y")],
            [("one", np.ones(1, np.float32)), ("scales", np.float32([1, 1, 2, 2]))],
        ),
        # The weight tells the size of a kernel that no attribute has.
        (
            "opencv",
            [node("Conv", "h k", "y", pads=[1, 1, 1, 1])],
            [("k", np.ones((4, 4, 3, 3), np.float32))],
        ),
    ],
)
def test_a_target_takes_what_it_runs(target, nodes, initializers):
    done = deconvfix.convert(of_its_own(nodes, initializers), target=target, verify=False)
    assert not done.plan.refused
    assert "ConvTranspose" not in operators(done.model)


def test_a_padded_convolution_of_one_tap_is_refused_where_its_weight_says_so():
    nodes = [node("Conv", "h k", "y", pads=[1, 1, 1, 1])]
    with pytest.raises(ModelError, match="a Conv with pads"):
        deconvfix.convert(
            of_its_own(nodes, [("k", np.ones((4, 4, 1, 1), np.float32))]), target="opencv"
        )
