"""The strength of a correction as an option, in recipes, and for every kind of model."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import deconvfix
from deconvfix import OptionError
from deconvfix.plan import Options, Plan
from tests.support.forms import options_of
from tests.support.networks import Net


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "1", None, True])
def test_strength_is_a_number_from_0_to_1(value):
    with pytest.raises(OptionError, match=r"strength: the value is .*; a number from 0 .* needed"):
        Options(to="equalized", strength=value)


@pytest.mark.parametrize("to", ["subpixel", "resize"])
@pytest.mark.parametrize("strength", [0, 0.5])
def test_other_forms_have_no_strength(to, strength):
    text = (
        rf"strength: the value is {strength} and the form is '{to}'; .* 'equalized' and 'notch' can"
    )
    with pytest.raises(OptionError, match=text):
        deconvfix.convert(nn.ConvTranspose1d(2, 2, 4, 2), to=to, strength=strength)
    assert deconvfix.convert(
        nn.ConvTranspose1d(2, 2, 4, 2), **options_of(to), strength=1
    ).plan.replaced


def test_recipes_from_before_are_read():
    plan = deconvfix.convert(Net(), to="equalized", init="fit").plan
    data = json.loads(plan.to_json())
    for each in data["decisions"]:
        del each["settings"]["strength"]
    assert Plan.from_json(json.dumps(data)) == plan


def test_other_kinds_of_models_have_a_strength():
    """An ONNX model and an exported program get the weights that the module gets."""
    import onnx

    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 4, 2), nn.ConvTranspose1d(3, 2, 3, 2)).eval()
    x = (torch.randn(1, 2, 9),)
    wanted = deconvfix.convert(model, to="equalized", init="fit", strength=0.5).model
    program = torch.export.export(model, x)
    got = deconvfix.convert(program, to="equalized", init="fit", strength=0.5).model
    for name, value in wanted.state_dict().items():
        assert torch.equal(got.state_dict[name], value)
    nodes = [
        onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2], kernel_shape=[4])
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 2, 9])],
        [onnx.helper.make_tensor_value_info("y", 1, [1, 3, 20])],
        [onnx.numpy_helper.from_array(model[0].weight.detach().numpy(), "w")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx_model = deconvfix.convert(proto, to="equalized", init="fit", strength=0.5).model
    [weight] = onnx_model.graph.initializer
    assert np.array_equal(onnx.numpy_helper.to_array(weight), wanted[0].weight.detach().numpy())
