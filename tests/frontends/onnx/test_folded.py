"""Nearest upsampling and convolutions in ONNX files: found, folded, the same function; others stay."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import deconvfix
from deconvfix.__main__ import main
from deconvfix.core.folded import Folded
from deconvfix.errors import OptionError
from deconvfix.frontends.onnx.proto import FRONTEND
from deconvfix.plan import Plan
from tests.support.strategies import upsamplings

PADS = {"zeros": "constant", "replicate": "edge", "reflect": "reflect"}


def network(
    folded, sizes, *, opset=17, seed=0, upsampling="scales", between=(), late=(), own=True,
    batch=2, coordinates=None, dtype="float32", more=(),
):  # fmt: skip
    """Upsampling, nodes for each element, a border, a convolution; whole numbers.

    Args:
        folded: The geometry.
        sizes: Of the small map.
        upsampling: "scales", "sizes", or "open", for scales with open sizes.
        between: Operators in front of the Pad; `late` ones come behind it.
        own: Whether zeros are the convolution's own padding.
        more: Names of values that are outputs too.
    """
    rng = np.random.default_rng(seed)
    ndim, stored, nodes = len(sizes), [], []

    def keep(array, name):
        stored.append(numpy_helper.from_array(array, name))
        return name

    shape = (folded.out_channels, folded.in_channels // folded.groups, *folded.kernel_size)
    # Odd ones: a weight of zeros would be no evidence.
    keep((2 * rng.integers(-3, 4, shape) + 1).astype(dtype), "w")
    if folded.bias:
        keep(rng.integers(-4, 5, folded.out_channels).astype(dtype), "b")
    large = [n * s for n, s in zip(sizes, folded.factors, strict=True)]
    kind = {} if coordinates is None else dict(
        zip(("coordinate_transformation_mode", "nearest_mode"), coordinates, strict=True)
    )  # fmt: skip
    scales = np.array([1, 1, *folded.factors], np.float32)
    if opset < 9:
        nodes.append(helper.make_node("Upsample", ["x"], ["u"], scales=scales.tolist()))
    elif opset < 11:
        kind = "Upsample" if opset < 10 else "Resize"
        nodes.append(helper.make_node(kind, ["x", keep(scales, "scales")], ["u"], mode="nearest"))
    elif upsampling == "sizes":
        given = keep(np.array([batch, folded.in_channels, *large]), "sizes")
        nodes.append(helper.make_node("Resize", ["x", "", "", given], ["u"], **kind))
    else:
        inputs = ["x", keep(np.zeros(0, np.float32), "roi"), keep(scales, "scales")]
        nodes.append(helper.make_node("Resize", inputs, ["u"], "up", mode="nearest", **kind))
    value = "u"

    def each(operators):
        nonlocal value
        for number, op in enumerate(operators):
            nodes.append(helper.make_node(op, [value], [f"{value}.{number}"]))
            value = f"{value}.{number}"

    each(between)
    pads = [b for b, _ in folded.padding] + [e for _, e in folded.padding]
    if folded.mode != "zeros" or not own:
        amounts = [0, 0, *pads[:ndim], 0, 0, *pads[ndim:]]
        mode = PADS[folded.mode]
        if opset < 11:
            nodes.append(helper.make_node("Pad", [value], ["p"], mode=mode, pads=amounts))
        else:
            inputs = [value, keep(np.array(amounts), "pads")]
            nodes.append(helper.make_node("Pad", inputs, ["p"], mode=mode))
        value, pads = "p", [0] * 2 * ndim
    each(late)
    operands = [value, "w", *(["b"] if folded.bias else [])]
    nodes.append(helper.make_node("Conv", operands, ["c"], "conv", pads=pads, group=folded.groups))
    nodes.append(helper.make_node("Neg", ["c"], ["y"]))
    elements = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shape = [
        batch,
        folded.in_channels,
        *(["h", "w_", "d"][:ndim] if upsampling == "open" else sizes),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", elements, shape)],
        [helper.make_tensor_value_info(name, elements, [None] * (ndim + 2)) for name in ("y", *more)], stored,
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset > 8 else 4
    )


def answer(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x})[0]


def operators(model):
    return [node.op_type for node in model.graph.node]


def square(mode="zeros", **others):
    """Of two axes that are told apart."""
    geometry = {
        "factors": (2, 3), "kernel_size": (3, 5), "padding": ((1, 1), (2, 2)), "mode": mode,
        "in_channels": 4, "out_channels": 6, "groups": 2, "bias": True,
    }  # fmt: skip
    return Folded(**geometry | others)


def check_equal(model, sizes, channels=4, *, batch=2, **options):
    """Whole numbers: both are exact, and equal."""
    done = deconvfix.convert(model, fold=True, **options)
    x = np.random.default_rng(1).integers(-5, 6, (batch, channels, *sizes)).astype("float32")
    assert np.array_equal(answer(done.model, x), answer(model, x))
    return done


@st.composite
def geometries(draw):
    pair = draw(upsamplings())
    most = {1: 5, 2: 4, 3: 3}[len(pair.factors)]
    padding = tuple(
        (draw(st.integers(0, limit)), draw(st.integers(0, limit)))
        for limit in (s - 1 if pair.mode == "reflect" else most for s in pair.factors)
    )
    folded = Folded(
        pair.factors, pair.kernel, padding, pair.mode, pair.in_channels, pair.out_channels,
        pair.groups, pair.bias,
    )  # fmt: skip
    return folded, pair.sizes, pair.seed


@settings(max_examples=25, deadline=None)
@given(geometries(), st.sampled_from(["scales", "sizes", "open"]), st.booleans())
def test_the_same_function_for_any_geometry(case, upsampling, own):
    folded, sizes, seed = case
    assume(folded.saves)
    model = network(
        folded, sizes, seed=seed, upsampling=upsampling, own=own,
        coordinates=("asymmetric", "floor"),
    )  # fmt: skip
    done = check_equal(model, sizes, folded.in_channels)
    assert [decision.op for decision in done.plan.replaced] == ["Resize + Conv"]
    assert not {"Resize", "ConvTranspose"} & {*operators(done.model)}
    assert done.report.parity.ok


@pytest.mark.parametrize("opset", [8, 9, 10, 11, 13, 18, 20])
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_every_opset(opset, mode):
    folded = square(mode)
    coordinates = ("asymmetric", "floor") if opset > 10 else None
    model = network(folded, (4, 5), opset=opset, coordinates=coordinates)
    done = check_equal(model, (4, 5))
    assert done.model.opset_import[0].version == opset
    assert not {"Resize", "Upsample"} & {*operators(done.model)}


WHOLE = [
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
    ("tf_half_pixel_for_nn", "floor"),
]
SHIFTED = [
    ("asymmetric", "ceil"), ("asymmetric", "round_prefer_floor"), ("half_pixel", "floor"),
    ("align_corners", "round_prefer_floor"), ("half_pixel", "ceil"),
]  # fmt: skip


@pytest.mark.parametrize("coordinates", WHOLE)
def test_coordinates_that_repeat_each_pixel_are_folded(coordinates):
    done = check_equal(network(square(), (4, 5), coordinates=coordinates), (4, 5))
    assert len(done.plan.replaced) == 1


@pytest.mark.parametrize("coordinates", SHIFTED)
def test_other_coordinates_are_left(coordinates):
    model = network(square(), (4, 5), coordinates=coordinates)
    done = check_equal(model, (4, 5))
    assert not done.plan.decisions
    assert "Resize" in operators(done.model)
    assert "whole factors are needed" in " ".join(done.report.notes)


def test_the_coordinates_of_the_default_are_those_of_the_opset():
    """From opset 11 on half_pixel and round_prefer_floor."""
    assert check_equal(network(square(), (4, 5)), (4, 5)).plan.replaced


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_nodes_between_move_to_the_small_map(mode):
    model = network(square(mode), (4, 5), between=("Sigmoid", "Relu"), own=False)
    done = deconvfix.convert(model, fold=True)
    assert operators(done.model)[:2] == ["Sigmoid", "Relu"]
    assert done.report.parity.ok
    assert done.report.parity.ran


def test_nodes_behind_a_border_of_copies_move_and_those_behind_zeros_stay():
    done = deconvfix.convert(network(square("replicate"), (4, 5), late=("Sigmoid",)), fold=True)
    assert len(done.plan.replaced) == 1
    assert done.report.parity.ran
    left = deconvfix.convert(network(square(), (4, 5), late=("Sigmoid",), own=False), fold=True)
    assert not left.plan.decisions
    assert "of the border of the upsampled map" in " ".join(left.report.notes)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (network(square(), (4, 5), more=("u",)), "read elsewhere too"),
        (network(square(kernel_size=(1, 1), padding=((0, 0), (0, 0))), (4, 5)), "more taps than"),
        (network(square("reflect", padding=((2, 2), (2, 2))), (4, 5)), "a wider one is no border"),
    ],
)
def test_what_cannot_be_folded_stays_and_is_named(model, sentence):
    done = deconvfix.convert(model, fold=True)
    assert not done.plan.decisions
    [note] = [note for note in done.report.notes if note.startswith("conv: ")]
    assert sentence in note


def test_a_stride_and_a_computed_weight_are_named():
    strided = network(square(), (4, 5))
    strided.graph.node[1].attribute.append(helper.make_attribute("strides", [2, 2]))
    [note] = FRONTEND.find_upsampled(ir.from_proto(strided), None).notes
    assert "both must be 1" in note
    computed = network(square(), (4, 5))
    computed.graph.node.insert(0, helper.make_node("Neg", ["w"], ["v"]))
    computed.graph.node[2].input[1] = "v"
    [note] = FRONTEND.find_upsampled(ir.from_proto(computed), None).notes
    assert "sums of its taps" in note


def test_what_is_not_asked_for_stays():
    model = network(square(), (4, 5))
    assert not deconvfix.convert(model).plan.decisions
    kept = deconvfix.convert(model, fold=True, exclude="conv")
    assert [d.decision for d in kept.plan.decisions] == ["kept"]
    assert kept.model.SerializeToString() == model.SerializeToString()
    with pytest.raises(OptionError, match="sub-pixel convolution"):
        deconvfix.convert(model, fold=True, to="equalized")


def test_multiply_accumulates_are_those_of_the_convolution_and_a_recipe_carries_it_out():
    folded = square(factors=(2, 2), kernel_size=(3, 3), padding=((1, 1), (1, 1)))
    model = network(folded, (4, 5))
    done = deconvfix.convert(model, fold=True)
    [layer] = done.report.layers
    assert (layer.macs_before, layer.macs_after) == (36 * 12, 16 * 12)
    again = deconvfix.convert(model, plan=Plan.from_json(done.plan.to_json()))
    assert again.model.SerializeToString() == done.model.SerializeToString()


def test_no_constant_of_the_upsampling_is_left():
    done = deconvfix.convert(network(square("replicate"), (4, 5)), fold=True)
    assert {i.name for i in done.model.graph.initializer} & {"scales", "roi", "pads", "w"} == set()
    onnx.checker.check_model(done.model)


def test_a_weight_that_others_read_stays():
    model = network(square(), (4, 5), more=("z",))
    model.graph.node.append(helper.make_node("Conv", ["x", "w", "b"], ["z"], group=2))
    done = check_equal(model, (4, 5))
    assert "w" in {stored.name for stored in done.model.graph.initializer}


def test_taps_that_cancel_are_within_the_bound_and_a_wrong_tap_is_not():
    """The bound is that of the original: |w| summed, not |W|."""
    folded = square(factors=(2, 2), kernel_size=(3, 3), padding=((1, 1), (1, 1)))
    model = network(folded, (4, 5))
    w = next(stored for stored in model.graph.initializer if stored.name == "w")
    array = np.random.default_rng(3).standard_normal(w.dims).astype("float32")
    array[..., 1] = -array[..., 0] * np.float32(1 + 2**-20)
    w.CopyFrom(numpy_helper.from_array(array, "w"))
    done = deconvfix.convert(model, fold=True)
    assert done.report.parity.ok
    for stored in done.model.graph.initializer:
        if len(stored.dims) == 4:
            moved = numpy_helper.to_array(stored).copy()
            moved.reshape(-1)[np.abs(moved).argmax()] *= 1.001
            stored.CopyFrom(numpy_helper.from_array(moved, stored.name))
    proof = FRONTEND.verify(ir.from_proto(model), ir.from_proto(done.model), [], done.plan)
    assert not proof.ok
    assert proof.first_departure == "conv"


def test_half_precision():
    done = deconvfix.convert(network(square(), (4, 5), dtype="float16"), fold=True)
    assert done.report.parity.ok
    assert len(done.plan.replaced) == 1


def test_inspect_says_how_many_and_the_command_folds_them(tmp_path):
    source, output = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(network(square("replicate"), (4, 5)), source)
    runner = CliRunner()
    told = runner.invoke(main, ["inspect", str(source)])
    assert "1 nearest upsampling in front of a convolution" in told.output
    run = runner.invoke(main, ["convert", str(source), "--fold", "-o", str(output), "--json"])
    assert run.exit_code == 0, run.output
    report = json.loads(run.stdout)
    assert report["parity"]["ok"]
    assert report["layers"][0]["op"] == "Resize + Conv"
    assert "Resize" not in operators(onnx.load(output))
    again = runner.invoke(main, ["inspect", str(output)])
    assert "nearest upsampling" not in again.output


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "reflect"])
def test_what_the_form_resize_writes_can_be_folded(padding_mode):
    """A kernel of 4 and a stride of 2: three taps behind a border of one pixel, which any mode copies."""
    layer = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", strides=[2, 2], pads=[1] * 4)
    weight = np.random.default_rng(0).standard_normal((3, 2, 4, 4)).astype("float32")
    shapes = [("x", [1, 3, 5, 6]), ("y", [1, 2, 10, 12])]
    values = [helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes]
    graph = helper.make_graph(
        [layer], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = {"to": "resize", "init": "fit", "padding_mode": padding_mode}
    resized = deconvfix.convert(model, fold=False, **options).model
    assert "Resize" in operators(resized)
    directly = deconvfix.convert(model, **options)
    assert "Resize" not in operators(directly.model)
    assert directly.plan["up"].reason.endswith(", folded")
    done = deconvfix.convert(resized, fold=True)
    assert len(done.plan.replaced) == 1
    assert done.report.parity.ok
    assert "Resize" not in operators(done.model)


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_four_phases_are_convolutions_of_their_own_where_sizes_are_known(mode):
    folded = square(mode, factors=(2, 2), out_channels=18)
    done = check_equal(network(folded, (4, 5)), (4, 5))
    assert operators(done.model).count("Conv") == 4
    # Few channels are shuffled faster.
    few = check_equal(network(square(mode, factors=(2, 2)), (4, 5)), (4, 5))
    assert operators(few.model).count("Conv") == 1
    # Copies of the border are cut off again where a phase does not meet them.
    cut = {"DepthToSpace", "Slice"} if mode == "zeros" else {"DepthToSpace"}
    assert not cut & {*operators(done.model)}
    onnx.checker.check_model(done.model)
    is_open = check_equal(network(folded, (4, 5), upsampling="open"), (4, 5))
    assert operators(is_open.model).count("Conv") == 1


@pytest.mark.parametrize("asked", [{"target": "rank4"}, {"target": "ncnn"}, {"shuffle": "axes"}])
def test_pairs_are_folded_for_a_target(asked):
    """The writing of the folded layer is chosen like that of any other one."""
    done = check_equal(network(square("zeros", factors=(2, 2)), (4, 5)), (4, 5), **asked)
    (decision,) = done.plan.replaced
    assert decision.settings.shuffle is not None
    assert "Resize" not in operators(done.model)
    assert ("DepthToSpace" in operators(done.model)) == (asked == {"target": "ncnn"})
