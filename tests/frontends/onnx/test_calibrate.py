"""Calibrated fits of ONNX models: the same as torch's, whatever holds the layer, and proven."""

import importlib
import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import deconvfix
from deconvfix.core.rearrange import rearrange
from deconvfix.errors import ModelError, OptionError
from deconvfix.fit.moments import Moments
from deconvfix.forms import form
from deconvfix.frontends.onnx import calibrate as onnx_calibrate
from deconvfix.frontends.onnx import frontend as onnx_model
from deconvfix.plan import Options
from deconvfix.planning import make_plan
from tests.support.onnx_fits import Net, X, Y, as_onnx, batches, integer_net, up
from tests.support.onnx_models import (
    is_valid,
    model,
    operators,
    run,
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


# float32 rounds each tap by 6e-8 of its size: -144 dB, and sums of a few dozen of them.
ROUNDED_DB = -120


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
    {"to": "resize", "fold": False},
    {"to": "resize", "fold": True},
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
    assert all(each.reason.startswith("calibrated; ") for each in got.plan.decisions)
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
    (decision,) = make_plan([layer], Options(to="equalized", init="fit")).decisions
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


# --- inputs and errors --------------------------------------------------------------------------


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


def test_a_proto_is_parsed_once(monkeypatch):
    """Found, planned, fitted, written and proven in one onnx_ir.Model: making it takes memory and time."""
    proto, parsed = as_onnx(integer_net()), []
    parse = ir.from_proto
    monkeypatch.setattr(ir, "from_proto", lambda given: (parsed.append(given), parse(given))[1])
    got = deconvfix.convert(proto, to="equalized", init="calibrated", calibration=batches())
    assert got.report.ok
    assert len(parsed) == 1
    deconvfix.inspect(proto)
    assert len(parsed) == 2, "the count sees another one"
