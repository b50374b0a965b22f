"""Weights that no form may change: the same refusal in every kind of model."""

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import deconvfix
from tests.support.bases import haar
from tests.support.forms import options_of

CHANGING = ["equalized", "notch", "resize"]


def layer(weight):
    module = nn.ConvTranspose2d(*weight.shape[:2], weight.shape[2:], 2, bias=False)
    module.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
    return nn.Sequential(module).eval()


def module(weight):
    return layer(weight), (torch.zeros(1, len(weight), 5, 6, dtype=torch.from_numpy(weight).dtype),)


def program(weight):
    model, x = module(weight)
    return torch.export.export(model, x), None


def file(weight):
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, len(weight), 5, 6])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), None


def converted(make, weight, **options):
    model, x = make(weight)
    options |= {} if x is None else {"example_inputs": x}
    return deconvfix.convert(model, **options)


def broken(value):
    weight = np.random.default_rng(0).standard_normal((4, 3, 4, 4)).astype(np.float32)
    weight[1, 2, 3, 0] = value
    return weight


KINDS = [module, program, file]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("to", [*CHANGING, "subpixel"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number(make, to, value):
    report = converted(make, broken(value), **options_of(to)).report
    assert report.layers[0].decision == "refused"
    assert "its weight holds NaN or infinite values" in report.layers[0].reason
    assert "verified" not in report.verdict()


@pytest.mark.parametrize("make", [module, program])
def test_bias_that_is_not_a_number(make):
    model = layer(broken(0.0))
    model[0].bias = nn.Parameter(torch.tensor([1.0, float("nan"), 2.0]))
    x = (torch.zeros(1, 4, 5, 6),)
    if make is program:
        model = torch.export.export(model, x)
    (found,) = deconvfix.convert(model, example_inputs=x).report.layers
    assert found.decision == "refused"
    assert "its bias holds NaN or infinite values" in found.reason
    assert "its bias holds NaN" in deconvfix.inspect(model).layers[0].refusal


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("to", CHANGING)
def test_fixed_basis(make, to):
    weight = haar(2).astype(np.float32)
    (refused,) = converted(make, weight, **options_of(to)).report.layers
    assert refused.decision == "refused"
    assert "a fixed basis, an orthonormal synthesis filter bank" in refused.reason
    (exact,) = converted(make, weight).report.layers
    assert exact.decision == "replaced"
    (named,) = converted(make, weight, **options_of(to), include="*").report.layers
    assert named.decision == "replaced"


@pytest.mark.parametrize("make", KINDS)
def test_no_change_is_recommended_for_a_fixed_basis(make):
    model, _ = make(haar(2).astype(np.float32))
    (found,) = deconvfix.inspect(model).layers
    assert found.recommendation.form == "subpixel"
    assert "fixed basis" in found.recommendation.reason


@pytest.mark.parametrize("make", [module, program])
def test_integers(make):
    """PyTorch has them, and their products are exact."""
    weight = np.random.default_rng(0).integers(-3, 4, (4, 3, 4, 3))
    conversion = converted(make, weight)
    assert conversion.report.proven
    x = torch.from_numpy(np.random.default_rng(1).integers(-3, 4, (1, 4, 5, 6)))
    result = conversion.model if make is module else conversion.model.module()
    assert torch.equal(result(x), layer(weight)(x))
    (refused,) = converted(make, weight, to="notch", init="fit").report.layers
    assert "its weight is int64" in refused.reason
