"""What the torch front end refuses, in words."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deconvfix
from tests.support.modules import Calls, Functional, W, X, convert, decisions, up

announced_end_of_torchscript = pytest.mark.filterwarnings(
    # Published models contain scripted parts.
    "ignore:.torch.jit.* is deprecated:DeprecationWarning",
    # Said by torch when a copy of a scripted module changes its dtype.
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning",
)


def test_complex_layer_is_refused():
    model = nn.Sequential(up(), nn.ConvTranspose2d(3, 4, 2, dtype=torch.complex64))
    plan = deconvfix.convert(model).plan
    assert plan["0"].decision == "replaced"
    assert plan["1"].reason == (
        "1: its weight is complex (complex64); real numbers are supported. "
        "Keep this layer (exclude it), or run real and imaginary parts as two layers."
    )


def test_complex_call_is_refused_and_still_runs():
    weight = W.to(torch.complex64)
    model = Calls(lambda x: torch.view_as_real(F.conv_transpose2d(x.to(weight.dtype), weight)))
    conversion = convert(model, X)
    assert "its weight is complex" in conversion.plan.refused[0].reason
    assert torch.equal(conversion.model(X), model(X))


@pytest.mark.filterwarnings(
    # torch.ao moved to another package and says so wherever it is used.
    "ignore::DeprecationWarning",
    "ignore::UserWarning",
)
@pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="needs a quantised engine"
)
def test_quantised_layer_is_refused():
    model = nn.Sequential(up(), torch.ao.nn.quantized.ConvTranspose2d(4, 4, 2))
    conversion = deconvfix.convert(model)
    assert conversion.plan["0"].decision == "replaced"
    assert conversion.plan["1"].reason == (
        "1: it is quantised (torch.ao.nn.quantized.modules.conv.ConvTranspose2d); an ordinary "
        "torch.nn layer is needed. Convert the model before quantising or scripting it."
    )


@announced_end_of_torchscript
@pytest.mark.parametrize("inputs", [True, False], ids=["inputs", "no inputs"])
def test_scripted_layer_is_refused(inputs):
    model = nn.Sequential(up(), torch.jit.script(nn.ConvTranspose2d(4, 2, 2)))
    plan = convert(model, *(X,) * inputs).plan
    assert plan["0"].decision == "replaced"
    assert "1: it is a compiled TorchScript module" in plan["1"].reason


@announced_end_of_torchscript
def test_layer_in_a_scripted_module_is_refused_without_inputs():
    model = nn.Sequential(up(), torch.jit.script(nn.Sequential(nn.ConvTranspose2d(4, 2, 2))))
    assert decisions(deconvfix.convert(model)) == {"0": "replaced", "1.0": "refused"}


@announced_end_of_torchscript
def test_layer_in_a_scripted_module_is_refused():
    model = nn.Sequential(up(), torch.jit.script(nn.Sequential(nn.ConvTranspose2d(4, 2, 2))))
    assert decisions(convert(model, X)) == {"0": "replaced", "1.0": "refused"}


@announced_end_of_torchscript
def test_call_in_a_scripted_module_is_reported():
    model = nn.Sequential(up(3, 3), torch.jit.script(Functional()))
    with pytest.raises(deconvfix.ParityError, match="1: a transposed convolution still runs there"):
        convert(model, X)


def test_model_that_cannot_be_copied_is_refused_in_words():
    model = nn.Sequential(up())
    model.lock = (each for each in ())
    with pytest.raises(
        deconvfix.ModelError, match=r"the model cannot be copied .*Pass inplace=True to convert"
    ):
        convert(model, X)


@pytest.mark.parametrize(
    "inputs",
    [(torch.zeros(2, 5, 4, 5),), (), (X, X), ((X,), {"wrong": X})],
    ids=["channels", "none", "too many", "keyword"],
)
def test_wrong_example_inputs_are_named(inputs):
    with pytest.raises(deconvfix.ModelError, match="it cannot be run on inputs of shapes"):
        deconvfix.convert(nn.Sequential(up()), example_inputs=inputs)


def test_something_that_is_no_model_is_refused():
    with pytest.raises(deconvfix.ModelError, match=r"it is a builtins\.dict"):
        deconvfix.convert({"weight": W})


def test_recipe_of_another_model_is_refused():
    plan = convert(nn.Sequential(up()), X).plan
    with pytest.raises(deconvfix.ModelError, match="the plan was made for"):
        convert(nn.Sequential(up(3, 5)), X, plan=plan)
    with pytest.raises(deconvfix.ModelError, match="the model has no such layer"):
        convert(nn.Module(), plan=plan)
