"""Calibrated kernels and biases are proven, and wrong ones noticed."""

import dataclasses
import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import deconvfix
from benchmarks import cost
from deconvfix.errors import CheckpointError, OptionError
from deconvfix.frontends.onnx import layer_parity
from deconvfix.frontends.onnx.proto import FRONTEND, from_proto
from deconvfix.plan import Plan
from tests.support.onnx_fits import W, X, Y, as_onnx, batches, calibrated, integer_net, up
from tests.support.onnx_models import (
    model,
    proof,
    tensor,
)


def changed(proto, name, change):
    old = next(each for each in proto.graph.initializer if each.name == name)
    array = onnx.numpy_helper.to_array(old).copy()
    change(array)
    old.CopyFrom(tensor(name, array))


@pytest.mark.parametrize("which", ["up.w", "up.b"])
@pytest.mark.parametrize(
    "options",
    [{"to": "equalized"}, {"to": "resize", "fold": False}, {"to": "resize"}, {"to": "notch"}],
    ids=str,
)
def test_a_wrong_kernel_or_bias_is_noticed(options, which):
    stored = {f"up.{name}": array for name, array in W.items()}
    proto = model([up("x up.w up.b", "y", "up")], [X], [Y], stored)
    got = calibrated(proto, **options)
    if which == "up.w" and options == {"to": "resize"}:
        # One tap of one of the phases, whose kernels are two.
        which = next(each.name for each in got.model.graph.initializer if len(each.dims) == 3)
    assert proof(proto, got.model, [], got.plan).ok

    def move(array):
        array.reshape(-1)[1] += 0.01

    changed(got.model, which, move)
    report = proof(proto, got.model, [], got.plan)
    assert not report.ok
    assert report.first_departure == "up"


@pytest.mark.parametrize("to", ["equalized", "resize", "notch"])
def test_a_fit_to_the_weights_is_no_calibrated_one(to):
    """The kernel that was decided counts, and no other of the form."""
    proto = as_onnx(integer_net())
    got = deconvfix.convert(proto, to=to, init="calibrated", calibration=batches())
    bare = tuple(dataclasses.replace(each, fitted=None) for each in got.plan.decisions)
    weights_only = dataclasses.replace(got.plan, decisions=bare)
    assert not proof(proto, got.model, [], weights_only).ok
    copied = onnx.ModelProto.FromString(proto.SerializeToString())
    written = ir.to_proto(FRONTEND.apply(from_proto(copied), weights_only))
    assert proof(proto, written, [], weights_only).ok
    assert not proof(proto, written, [], got.plan).ok


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


@pytest.mark.parametrize("count", [1, 5])
def test_a_model_is_walked_through_as_often_for_many_layers_as_for_one(
    count, monkeypatch, tmp_path
):
    cost.chain(count, tmp_path / "chain.onnx")
    walks = []
    plain = layer_parity.scopes
    monkeypatch.setattr(layer_parity, "scopes", lambda m: walks.append(m) or plain(m))
    monkeypatch.setattr(
        layer_parity,
        "visible",
        lambda scope, plain=layer_parity.visible: walks.append(scope) or plain(scope),
    )
    report = deconvfix.convert(onnx.load(tmp_path / "chain.onnx")).report.parity
    assert report.ok
    assert len({each.what for each in report.comparisons}) == count + 1
    assert len(walks) == 3
