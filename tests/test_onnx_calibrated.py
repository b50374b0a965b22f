"""Calibrated fits of ONNX models: the same as torch's, whatever holds the layer, and proven."""

import dataclasses
import importlib
import json
import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from onnx_models import (
    constant,
    graph,
    integers,
    is_valid,
    model,
    node,
    operators,
    run,
    tensor,
    value,
)
from torch import nn

import deconvfix
from deconvfix.core.rearrange import rearrange
from deconvfix.errors import CheckpointError, DeconvfixError, ModelError, OptionError
from deconvfix.fit.moments import Moments
from deconvfix.forms import form
from deconvfix.frontends.onnx import calibrate as onnx_calibrate
from deconvfix.frontends.onnx import frontend as onnx_model
from deconvfix.frontends.onnx.proto import FRONTEND
from deconvfix.frontends.onnx.samples import calibration_feeds, rebatched
from deconvfix.plan import Options, Plan, make_plan

FLOAT16 = TensorProto.FLOAT16
# float32 rounds each tap by 6e-8 of its size: -144 dB, and sums of a few dozen of them.
ROUNDED_DB = -120


class Net(nn.Module):
    """Groups, unequal axes, a layer without bias."""

    def __init__(self, ndim=2):
        super().__init__()
        conv = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[ndim]
        self.up1 = conv(4, 6, (4, 5, 3)[:ndim], (2, 3, 2)[:ndim], 1, groups=2)
        self.up2 = conv(6, 2, 3, 2, 1, 1, bias=False)

    def forward(self, x):
        return self.up2(torch.relu(self.up1(x)))


def integer_net(ndim=2):
    """All that the first layer computes of integers is exact, in whatever order."""
    net = Net(ndim).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in net.parameters():
            each.copy_(torch.randint(-4, 5, each.shape, generator=generator) / 8)
    return net


def as_onnx(net, *, opset=17, dtype=np.float32, sizes=("N", 4, "H", "W")):
    n = len(sizes) - 2
    stored = {name: x.detach().numpy().astype(dtype) for name, x in net.named_parameters()}

    def up(name, inputs, output):
        layer = getattr(net, name)
        return node(
            *("ConvTranspose", inputs, output),
            name=name,
            strides=list(layer.stride),
            pads=list(layer.padding) * 2,
            output_padding=list(layer.output_padding),
            group=layer.groups,
        )

    kind = TensorProto.FLOAT if dtype == np.float32 else FLOAT16
    nodes = [
        up("up1", "x up1.weight up1.bias", "a"),
        node("Relu", "a", "r", name="relu"),
        up("up2", "r up2.weight", "y"),
    ]
    inputs = [value("x", list(sizes), kind)]
    return model(nodes, inputs, [value("y", n + 2, kind)], stored, opset=opset)


def batches(shape=(4, 4, 6, 5), count=5, seed=0, low=-3, high=4):
    return [integers(shape, seed + i, low=low, high=high) for i in range(count)]


def smooth(shape=(4, 4, 6, 5), count=5, seed=0):
    """With the neighbourhood of real features: a step between any two pixels is rare."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        x = rng.standard_normal(shape)
        for axis in range(2, len(shape)):
            x = x + np.roll(x, 1, axis)
        found.append(x.astype(np.float32))
    return found


def error_of(proto, other, inputs):
    return sum(
        float(np.square(run(proto, {"x": x})[0].astype(float) - run(other, {"x": x})[0]).sum())
        for x in inputs
    )


FORMS = [
    {"to": "equalized"},
    {"to": "equalized", "grow": 1},
    {"to": "equalized", "strength": 0.5},
    {"to": "resize"},
    {"to": "resize", "interpolation": "linear", "padding_mode": "reflect"},
    {"to": "notch", "reach": 1},
]


# --- the same as torch --------------------------------------------------------------------------


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_the_fit_is_that_of_the_module(options):
    """To the bit where both runtimes compute the same features; else to what rounding explains.

    The features of the second layer differ by the rounding of the first, a few eps of their size. A
    solution moves by the condition number of the normal equations times that.
    """
    net, inputs = integer_net(), batches()
    theirs = deconvfix.convert(
        net, init="calibrated", calibration=[torch.from_numpy(x) for x in inputs], **options
    )
    mine = deconvfix.convert(as_onnx(net), init="calibrated", calibration=inputs, **options)
    assert [each.reason for each in mine.plan.decisions] == [
        each.reason for each in theirs.plan.decisions
    ]
    first, second = (kernels(theirs.model, mine.plan, name) for name in ("up1", "up2"))
    for one, other in first:
        np.testing.assert_array_equal(one, other)
    for one, other in second:
        bound = 10 * np.finfo(np.float32).eps * condition(mine.plan["up2"], net, inputs)
        assert bound < 1e-2
        np.testing.assert_allclose(one, other, rtol=0, atol=bound * np.abs(other).max())
    x = batches(seed=9, count=1)[0]
    with torch.no_grad():
        want = theirs.model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(
        run(mine.model, {"x": x})[0], want, rtol=0, atol=bound * np.abs(want).max()
    )


def kernels(module, plan, name):
    """The kernel (and bias) that both found for a layer."""
    layer, decision = module.get_submodule(name), plan[name]
    found = decision.fitted
    weight = layer.weight if decision.form == "equalized" else layer.convolution.weight
    kernel = found.kernel
    if decision.form != "equalized":
        verbs = form(decision.form).compile(decision.spec, decision.settings).weight
        kernel = rearrange(verbs, kernel, decision.spec.groups)
    pairs = [(kernel.astype(np.float32), weight.detach().numpy())]
    assert (found.bias is None) == (not decision.spec.bias)
    if decision.form == "equalized" and found.bias is not None:
        pairs.append((found.bias.astype(np.float32), layer.bias.detach().numpy()))
    return pairs


def condition(decision, net, inputs):
    """Of what is solved for the second layer, at most; the original's features are close to those
    of the converted model."""
    sums = Moments(decision.spec, form(decision.form).design(decision.spec, decision.settings))
    with torch.no_grad():
        for x in inputs:
            features = torch.relu(net.up1(torch.from_numpy(x)))
            sums.add(features.numpy(), net.up2(features).numpy())
    free = 0
    basis = sums.design.basis
    for h, phase in zip(sums.of_group(0)[0], sums.design.phases, strict=True):
        z = np.kron(np.eye(decision.spec.in_channels), basis[list(phase.taps)])
        n = len(z)
        free = free + z.T @ h[:n, :n] @ z
    return np.linalg.cond(free + 1e-7 * np.trace(free) / len(free) * np.eye(len(free)))


# --- models -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_a_calibrated_model_is_closer_than_one_fitted_to_its_weights(options):
    torch.manual_seed(0)
    proto = as_onnx(Net())
    before = proto.SerializeToString(deterministic=True)
    inputs, fresh = smooth(), smooth(seed=100)
    worse = deconvfix.convert(proto, init="fit", **options)
    got = deconvfix.convert(
        proto, init="calibrated", calibration=({"x": x} for x in inputs), **options
    )
    assert proto.SerializeToString(deterministic=True) == before
    assert is_valid(got.model)
    # On inputs that it was not fitted to.
    assert error_of(got.model, proto, fresh) < error_of(worse.model, proto, fresh)
    assert all(each.reason.startswith("calibrated, ") for each in got.plan.decisions)
    report = got.report
    assert report.parity.ok
    assert {each.what for each in report.parity.comparisons} == {"up1", "up2"}
    assert (report.fidelity.calibration_samples, report.fidelity.psnr_seen) == (20, True)
    assert report.fidelity.psnr_db is not None
    if options.get("strength", 1) == 1:
        assert report.fidelity.ripple_db_after < ROUNDED_DB < -40 < report.fidelity.ripple_db_before
        assert report.fidelity.network_ripple_db_after < ROUNDED_DB
    assert ("ConvTranspose" in operators(got.model)) == (options["to"] == "equalized")


def test_the_border_is_the_one_that_fits_best():
    """A zero border is right for a layer with zero padding on inputs with a high mean."""
    proto = as_onnx(integer_net())
    inputs = batches(low=5, high=9)
    errors = {}
    for mode in ("reflect", "replicate", "zeros", None):
        got = deconvfix.convert(
            proto,
            to="resize",
            init="calibrated",
            calibration=inputs,
            padding_mode=mode,
            include="up1",
        )
        errors[mode] = error_of(got.model, proto, inputs)
        assert got.plan["up1"].settings.padding_mode == (mode or "zeros")
    assert errors[None] == errors["zeros"] < errors["reflect"]


@pytest.mark.parametrize("to", ["equalized", "resize", "notch"])
@pytest.mark.parametrize(("ndim", "opset"), [(1, 7), (1, 22), (2, 9), (2, 11), (3, 10), (3, 18)])
def test_every_dimension_and_opset(ndim, opset, to):
    torch.manual_seed(0)
    sizes = (6, 5, 4)[:ndim]
    proto = as_onnx(Net(ndim), opset=opset, sizes=(4, 4, *sizes))
    inputs = smooth((4, 4, *sizes))
    got = deconvfix.convert(proto, to=to, init="calibrated", calibration=inputs)
    worse = deconvfix.convert(proto, to=to, init="fit")
    assert is_valid(got.model)
    assert got.report.parity.ok
    assert error_of(got.model, proto, inputs) < error_of(worse.model, proto, inputs)


def test_float16():
    torch.manual_seed(0)
    proto = as_onnx(Net(), dtype=np.float16)
    inputs = [x.astype(np.float16) for x in smooth()]
    got = deconvfix.convert(proto, to="equalized", init="calibrated", calibration=inputs)
    worse = deconvfix.convert(proto, to="equalized", init="fit")
    assert got.report.parity.ok
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in got.model.graph.initializer}
    assert {each.dtype for each in stored.values()} == {np.dtype(np.float16)}
    np.testing.assert_array_equal(stored["up1.weight"], got.plan["up1"].fitted.kernel)
    assert error_of(got.model, proto, inputs) < error_of(worse.model, proto, inputs)


def test_a_fit_that_the_dtype_cannot_hold_is_an_error():
    """The weights of a layer whose inputs are tiny may be as large as its outputs need."""
    proto = as_onnx(integer_net(), dtype=np.float16)
    layer = onnx_model.FRONTEND.find(ir.from_proto(proto), None).matches[0]
    (decision,) = make_plan([layer], Options(to="equalized")).decisions
    with pytest.raises(ModelError, match="up1: the fit to the calibration inputs is larger than"):
        onnx_calibrate._rounded(np.array([1e5]), np.dtype(np.float16), decision)


@pytest.mark.parametrize("kind", ["proto", "ir", "file"])
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "inplace"])
def test_every_kind_of_model(kind, inplace, tmp_path):
    proto = as_onnx(integer_net())
    want = deconvfix.convert(proto, to="resize", init="calibrated", calibration=batches()).model
    given = (
        ir.from_proto(proto)
        if kind == "ir"
        else onnx.ModelProto.FromString(proto.SerializeToString())
    )
    if kind == "file":
        given = tmp_path / "net.onnx"
        onnx.save(proto, given)
    got = deconvfix.convert(
        given, to="resize", init="calibrated", calibration=batches(), inplace=inplace
    ).model
    assert (got is given) == (inplace and kind != "file")
    x = batches(count=1)[0]
    np.testing.assert_array_equal(
        run(ir.to_proto(got) if kind == "ir" else got, {"x": x})[0], run(want, {"x": x})[0]
    )


def test_what_is_not_converted_stays():
    """Functions, names, metadata; and a model all of whose layers are kept."""
    proto = as_onnx(integer_net())
    proto.metadata_props.add(key="who", value="me")
    proto.graph.doc_string = "text"
    got = deconvfix.convert(
        proto, to="equalized", init="calibrated", calibration=batches(), include="up2"
    )
    assert got.model.graph.node[:2] == proto.graph.node[:2]
    assert got.model.metadata_props == proto.metadata_props
    assert got.model.graph.doc_string == "text"
    assert [each.fitted is None for each in got.plan.decisions] == [True, False]
    kept = [each for each in got.model.graph.initializer if each.name.startswith("up1")]
    assert kept == [each for each in proto.graph.initializer if each.name.startswith("up1")]


# --- layers of every kind -----------------------------------------------------------------------

X = value("x", ["N", 4, "L"])
Y = value("y", 3)
W = {"w": integers((4, 4, 4), 3) / 8, "b": integers((4,), 4) / 8}
W = {name: array.astype(np.float32) for name, array in W.items()}


def up(inputs, output, name, **attributes):
    return node("ConvTranspose", inputs, output, name=name, strides=[2], pads=[1, 1], **attributes)


def calibrated(proto, to="equalized", inputs=None, **options):
    inputs = batches((4, 4, 6)) if inputs is None else inputs
    got = deconvfix.convert(proto, to=to, init="calibrated", calibration=inputs, **options)
    assert got.report.parity.ok
    assert is_valid(got.model) or not is_valid(proto)
    return got


@pytest.mark.parametrize(("opset", "ir_version"), [(7, 3), (17, 8)])
@pytest.mark.parametrize("to", ["equalized", "resize", "notch"])
def test_a_weight_that_several_layers_share(to, opset, ir_version):
    """Each layer gets a fit of its own; the last of them may keep the old names."""
    nodes = [up("x w b", "a", "one"), node("Tanh", "a", "t"), up("t w b", "y", "two")]
    inputs = [X, *([value("w", [4, 4, 4]), value("b", [4])] if ir_version == 3 else [])]
    got = calibrated(model(nodes, inputs, [Y], W, opset=opset, ir_version=ir_version), to=to)
    one, two = (got.plan[name].fitted for name in ("one", "two"))
    assert np.abs(one.kernel - two.kernel).max() > 1e-3
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in got.model.graph.initializer}
    assert len([each for each in stored.values() if each.dtype == np.float32]) == 4
    assert not any(np.array_equal(each, old) for each in stored.values() for old in W.values())


@pytest.mark.parametrize("to", ["equalized", "resize", "notch"])
@pytest.mark.parametrize("weight", ["Constant", "Identity", "override"])
def test_where_the_weight_comes_from(weight, to):
    stored, nodes, inputs = dict(W), [], [X]
    if weight == "Constant":
        nodes = [constant("w", stored.pop("w")), constant("b", stored.pop("b"))]
    names = "x w b"
    if weight == "Identity":
        nodes, names = [node("Identity", "w", "v"), node("Identity", "b", "c")], "x v c"
    if weight == "override":
        inputs = [X, value("b", [4])]
    proto = model([*nodes, up(names, "y", "up")], inputs, [Y], stored)
    got = calibrated(proto, to=to)
    if weight == "override":
        assert got.plan["up"].fitted is None
        [note] = [each for each in got.report.notes if each.startswith("up: ")]
        assert "its bias is computed while the model runs, or may be set by the caller" in note
    else:
        assert got.plan["up"].reason.startswith("calibrated")


def test_a_layer_on_a_constant():
    """As in style-based generators: the input is an initializer."""
    stored = W | {"start": integers((1, 4, 6), 5)}
    nodes = [up("start w b", "a", "up"), node("Mul", "a x", "y")]
    proto = model(nodes, [value("x", ["N", 4, "L"])], [Y], stored)
    got = calibrated(proto, inputs=batches((3, 4, 12)))
    assert got.plan["up"].reason.startswith("calibrated")


def test_a_layer_whose_output_is_an_output_and_read_elsewhere():
    nodes = [up("x w b", "a", "up"), node("Relu", "a", "y")]
    proto = model(nodes, [X], [Y, value("a", 3)], W)
    got = calibrated(proto, to="resize")
    assert got.plan["up"].reason.startswith("calibrated")


def test_inputs_of_other_kinds():
    """Integers stay as they are; positional inputs go by the order of the file."""
    mask = value("mask", ["N"], TensorProto.INT64)
    nodes = [
        node("Cast", "mask", "m", to=TensorProto.FLOAT),
        node("Reshape", "m shape", "n"),
        node("Mul", "x n", "h"),
        up("h w b", "y", "up"),
    ]
    stored = W | {"shape": np.array([-1, 1, 1], np.int64)}
    proto = model(nodes, [X, mask], [Y], stored)
    inputs = [(x, np.array([1, 0, 1, 2])) for x in batches((4, 4, 6))]
    one = calibrated(proto, inputs=inputs)
    other = calibrated(proto, inputs=[{"mask": m, "x": torch.from_numpy(x)} for x, m in inputs])
    assert np.array_equal(one.plan["up"].fitted.kernel, other.plan["up"].fitted.kernel)


def branched():
    inner = graph([up("x w b", "p", "up")], [], [value("p", 3)], name="inner")
    other = graph([up("x w b", "q", "up")], [], [value("q", 3)], name="other")
    choose = node("If", "c", "a", name="choice", then_branch=inner, else_branch=other)
    nodes = [
        constant("c", np.array(True)),
        choose,
        node("Relu", "a", "r"),
        up("r w b", "y", "last"),
    ]
    return model(nodes, [X], [Y], W)


def called():
    body = [constant("w", W["w"]), constant("b", W["b"]), up("x w b", "y", "up")]
    function = helper.make_function("own", "Up", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("Up", ["x"], ["a"], domain="own"), up("a v", "y", "last")]
    return model(nodes, [X], [Y], {"v": W["w"]}, domains=("own",), functions=[function])


def random():
    nodes = [
        node("RandomNormalLike", "x", "noise", name="noise"),
        node("Add", "x noise", "h"),
        up("h w b", "y", "up"),
    ]
    return model(nodes, [X], [Y], W)


UNSEEN = {
    "branch": (branched, 2, "it is in a branch or a loop"),
    "function": (called, 1, "it is in a function of the model"),
    "random": (random, 1, "the node 'noise' (RandomNormalLike) before it is random"),
}


@pytest.mark.parametrize(("build", "count", "reason"), UNSEEN.values(), ids=UNSEEN)
@pytest.mark.parametrize("to", ["equalized", "resize"])
def test_layers_that_cannot_be_seen_keep_their_fit_to_the_weights(build, count, reason, to):
    proto = build()
    got = deconvfix.convert(proto, to=to, init="calibrated", calibration=batches((4, 4, 6)))
    notes = [each for each in got.report.notes if "keeps its fit to the weights" in each]
    assert len(notes) == count
    assert all(reason in each and "; only a layer" in each for each in notes)
    fitted = {each.name for each in got.plan.decisions if each.fitted is not None}
    assert fitted == {"last"} & {each.name for each in got.plan.decisions}
    weights_only = deconvfix.convert(proto, to=to, init="fit")
    for each in got.plan.decisions:
        assert (each.reason == weights_only.plan[each.name].reason) == (each.name not in fitted)


def test_a_regression_that_takes_too_much_memory_is_left_out():
    proto = model([up("x w b", "y", "up")], [X], [Y], W)
    weights_only = deconvfix.convert(proto, to="equalized", init="fit")
    got = calibrated(proto, memory=1e-6)
    [note] = [each for each in got.report.notes if "GiB are allowed (`memory`)" in each]
    assert note.startswith("up: it keeps its fit to the weights")
    assert got.plan["up"].fitted is None
    assert got.plan["up"].reason == weights_only.plan["up"].reason
    assert calibrated(proto).plan["up"].fitted is not None


def test_outputs_of_another_size_are_not_fitted_to(monkeypatch):
    """What a file says and what runs may differ: never fit to what is not the layer's output."""

    def refuse(self, x, y):
        raise ValueError("its outputs have the shape A, its geometry gives B")

    monkeypatch.setattr(Moments, "add", refuse)
    got = calibrated(model([up("x w b", "y", "up")], [X], [Y], W))
    assert got.plan["up"].fitted is None
    assert any("its geometry gives B" in each for each in got.report.notes)


# --- proof --------------------------------------------------------------------------------------


def changed(proto, name, change):
    old = next(each for each in proto.graph.initializer if each.name == name)
    array = onnx.numpy_helper.to_array(old).copy()
    change(array)
    old.CopyFrom(tensor(name, array))


@pytest.mark.parametrize("which", ["up.w", "up.b"])
@pytest.mark.parametrize("to", ["equalized", "resize", "notch"])
def test_a_wrong_kernel_or_bias_is_noticed(to, which):
    stored = {f"up.{name}": array for name, array in W.items()}
    proto = model([up("x up.w up.b", "y", "up")], [X], [Y], stored)
    got = calibrated(proto, to=to)
    assert FRONTEND.verify(proto, got.model, [], got.plan).ok

    def move(array):
        array.reshape(-1)[1] += 0.01

    changed(got.model, which, move)
    report = FRONTEND.verify(proto, got.model, [], got.plan)
    assert not report.ok
    assert report.first_departure == "up"


@pytest.mark.parametrize("to", ["equalized", "resize", "notch"])
def test_a_fit_to_the_weights_is_no_calibrated_one(to):
    """The kernel that was decided counts, and no other of the form."""
    proto = as_onnx(integer_net())
    got = deconvfix.convert(proto, to=to, init="calibrated", calibration=batches())
    bare = tuple(dataclasses.replace(each, fitted=None) for each in got.plan.decisions)
    weights_only = dataclasses.replace(got.plan, decisions=bare)
    assert not FRONTEND.verify(proto, got.model, [], weights_only).ok
    copied = onnx.ModelProto.FromString(proto.SerializeToString())
    written = FRONTEND.apply(copied, weights_only)
    assert FRONTEND.verify(proto, written, [], weights_only).ok
    assert not FRONTEND.verify(proto, written, [], got.plan).ok


def test_a_recipe_holds_no_weights():
    proto = as_onnx(integer_net())
    got = deconvfix.convert(proto, to="equalized", init="calibrated", calibration=batches())
    text = got.plan.to_json()
    assert "fitted" not in json.loads(text)["decisions"][0]
    plan = Plan.from_json(text)
    assert plan == got.plan
    assert all(each.fitted is None for each in plan.decisions)
    again = deconvfix.convert(proto, plan=plan, calibration=batches())
    assert np.array_equal(again.plan["up2"].fitted.kernel, got.plan["up2"].fitted.kernel)
    with pytest.raises(OptionError, match="there are no calibration inputs"):
        deconvfix.convert(proto, plan=plan)
    data = json.loads(text)
    data["decisions"][0]["fitted"] = {"kernel": [1], "bias": None}
    with pytest.raises(CheckpointError, match="a recipe holds no weights"):
        Plan.from_json(json.dumps(data))


# --- inputs and errors --------------------------------------------------------------------------

FIXED = (2, 4, 6, 5)


def test_inputs_are_drawn_in_the_shapes_of_the_file_or_the_example():
    proto = as_onnx(integer_net(), sizes=FIXED)
    kernels = [
        deconvfix.convert(proto, to="equalized", init="calibrated", calibration=name, seed=0)
        .plan["up1"]
        .fitted.kernel
        for name in ("normal", "uniform", "normal")
    ]
    assert np.array_equal(kernels[0], kernels[2])
    assert not np.array_equal(kernels[0], kernels[1])
    for sizes, example, shape in (
        (FIXED, None, FIXED),
        (("N", 4, 6, 5), None, (8, 4, 6, 5)),
        (("N", 4, "H", "W"), np.zeros((3, 4, 5, 6), np.float32), (3, 4, 5, 6)),
    ):
        parsed = ir.from_proto(as_onnx(integer_net(), sizes=sizes))
        feeds = calibration_feeds(parsed, "normal", example)
        assert {each["x"].shape for each in feeds} == {shape}
        assert sum(len(each["x"]) for each in feeds) >= 256 > sum(len(e["x"]) for e in feeds[1:])
        assert onnx_model.FRONTEND.count_samples(parsed, "normal", example) == sum(
            len(each["x"]) for each in feeds
        )
        assert abs(np.mean([each["x"] for each in feeds])) < 0.05
        uniform = calibration_feeds(parsed, "uniform", example)
        assert min(each["x"].min() for each in uniform) >= 0


def test_batches_are_cut_to_the_files_own_size():
    parsed = ir.from_proto(as_onnx(integer_net(), sizes=FIXED))
    given = [{"x": np.arange(5 * 120.0).reshape(5, 4, 6, 5)}] * 2
    found = list(rebatched(parsed, given))
    assert [each["x"].shape for each in found] == [FIXED] * 5
    assert {each["x"].dtype for each in found} == {np.dtype(np.float32)}
    whole = np.concatenate([each["x"] for each in given])
    np.testing.assert_array_equal(np.concatenate([each["x"] for each in found]), whole)
    other = {"x": np.zeros((1, 4, 6, 7))}
    assert len(list(rebatched(parsed, [other, *given, other]))) == 5
    opened = ir.from_proto(as_onnx(integer_net()))
    assert [each["x"].shape for each in rebatched(opened, given)] == [(5, 4, 6, 5)] * 2


GOOD = batches(FIXED, 2)
WRONG = {
    "none": ({}, "calibration: there are no calibration inputs; init 'calibrated' and 'tuned' fit"),
    "empty": ({"calibration": []}, "calibration: it is empty; init 'calibrated' and 'tuned' fit"),
    "unknown": ({"calibration": "gamma"}, "calibration: the value is 'gamma'; one of 'normal'"),
    "open sizes": (
        {"calibration": "normal"},
        "calibration: it is 'normal', and the sizes of the input 'x' are open; example inputs give",
    ),
    "names": (
        {"calibration": [{"z": GOOD[0]}]},
        "inputs: missing: 'x'; the model's inputs are 'x'",
    ),
    "shape": (
        {"calibration": [GOOD[0], GOOD[0][:, :3]]},
        "calibration input 2: it fails on inputs of shapes {'x': (2, 3, 6, 5)}",
    ),
    "not finite": (
        {"calibration": [*GOOD, np.full(FIXED, np.nan, np.float32)]},
        "up1: its inputs or outputs are not finite on some calibration inputs; finite values",
    ),
    "tuned": (
        {"init": "tuned", "calibration": GOOD},
        "init: it is 'tuned', and the model is a program or an ONNX model; a distillation trains a "
        "torch.nn.Module. Use init 'calibrated', or convert the module before it is exported",
    ),
}


@pytest.mark.parametrize(("options", "text"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(options, text):
    with pytest.raises(DeconvfixError) as caught:
        deconvfix.convert(as_onnx(integer_net()), to="resize", **{"init": "calibrated", **options})
    assert str(caught.value).startswith(text)
    assert all((caught.value.where, caught.value.found, caught.value.needed, caught.value.todo))


def test_a_model_that_does_not_run_cannot_be_calibrated():
    """ONNX Runtime has no float64 transposed convolution."""
    stored = {name: array.astype(np.float64) for name, array in W.items()}
    kind = TensorProto.DOUBLE
    nodes = [up("x w b", "y", "up")]
    proto = model(nodes, [value("x", ["N", 4, "L"], kind)], [value("y", 3, kind)], stored)
    inputs = [x.astype(np.float64) for x in batches((4, 4, 6))]
    with pytest.raises(ModelError, match="model: ONNX Runtime does not load it") as caught:
        deconvfix.convert(proto, to="equalized", init="calibrated", calibration=inputs)
    assert caught.value.todo == "Use init 'fit', which looks at the weights alone"


def test_layers_that_are_exact_need_no_fit():
    """A kernel that divides, and one with equal phase sums."""
    line = np.array([0.25, 0.75, 0.75, 0.25], np.float32) * np.ones((4, 4, 1), np.float32)
    proto = model([up("x w", "y", "up")], [X], [Y], {"w": line})
    exact = deconvfix.convert(proto, to="resize", init="calibrated", calibration=batches((4, 4, 6)))
    assert exact.plan["up"].exact
    kept = deconvfix.convert(
        proto, to="equalized", init="calibrated", calibration=batches((4, 4, 6))
    )
    assert kept.plan["up"].decision == "kept"
    assert math.isclose(error_of(exact.model, proto, batches((4, 4, 6))), 0, abs_tol=1e-6)


@pytest.mark.parametrize("module", ["deconvfix.onnx", "deconvfix.fx"])
@pytest.mark.parametrize("init", ["calibrated", "tuned"])
def test_a_pass_has_nothing_to_fit_to(module, init):
    """It would silently be a fit to the weights."""
    with pytest.raises(OptionError, match=f"init: it is '{init}', and a pass has no inputs"):
        importlib.import_module(module).ReplaceTransposedConvs(to="equalized", init=init)
    importlib.import_module(module).ReplaceTransposedConvs(to="equalized", init="fit")
