"""Whole models through the torch front end: what is found, converted, refused, and left alone.

Values are compared on small integer-valued tensors, where every sum is exact and equality holds;
the rest is held against the bound of `deconvfix.parity.bounds` by the conversion itself.
"""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.plan import Plan
from tests.support import oracle
from tests.support.modules import (
    MODELS,
    CalledTwice,
    Functional,
    InPythonList,
    Nested,
    Tied,
    TwoNames,
    X,
    assert_same_function,
    convert,
    decisions,
    fingerprint,
    transposed_calls,
    up,
)


def test_the_watch_sees_a_transposed_convolution():
    """Negative control of `transposed_calls`."""
    assert transposed_calls(nn.Sequential(up()), X) == [(3, 4, 4, 3)]


each_model = pytest.mark.parametrize("make", MODELS.values(), ids=list(MODELS))


@each_model
def test_model_computes_the_same_without_transposed_convolution(make):
    model = make()
    assert_same_function(convert(model, X), model, X)


@each_model
def test_model_is_converted_in_float64_and_eval_mode(make):
    model, x = make().eval().double(), X.double()
    if make is InPythonList:
        model.hidden[0].double()
    assert_same_function(convert(model, x), model, x)


@each_model
def test_input_model_is_not_changed(make):
    model = make()
    before = fingerprint(model)
    state = torch.get_rng_state()
    convert(model, X)
    deconvfix.inspect(model, (X,))
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), state)


@each_model
def test_converting_twice_is_converting_once(make):
    once = convert(make(), X).model
    again = convert(once, X)
    assert again.plan.decisions == ()
    assert torch.equal(again.model(X), once(X))


@each_model
def test_converted_model_can_be_copied(make):
    model = convert(make(), X).model
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), model(X))
    assert transposed_calls(twin, X) == []


@pytest.mark.parametrize(
    "make",
    # torch refuses to pickle parametrized modules itself.
    [make for name, make in MODELS.items() if "parametrization" not in name and "bias" not in name],
    ids=[name for name in MODELS if "parametrization" not in name and "bias" not in name],
)
def test_converted_model_can_be_pickled(make):
    model = convert(make(), X).model
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin(X), model(X))
    assert transposed_calls(twin, X) == []


@each_model
def test_copy_of_a_converted_model_has_its_own_weights(make):
    """A rerouted module must call itself in the copy, not the module that it was copied from."""
    model = convert(make(), X).model
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert make is InPythonList or bool((twin(X) == 0).all())
    assert bool((model(X) != 0).any())


@each_model
def test_recipe_survives_json(make):
    plan = convert(make(), X).plan
    assert Plan.from_json(plan.to_json()) == plan


@each_model
def test_recipe_applied_again_gives_the_same_outputs(make):
    model = make()
    first = convert(model, X)
    again = convert(model, X, plan=Plan.from_json(first.plan.to_json()))
    assert_same_function(again, model, X)
    assert again.plan == first.plan


@each_model
def test_in_place_conversion_returns_the_model_itself(make):
    model, want = make(), make()(X)
    conversion = convert(model, X, inplace=True)
    assert conversion.model is model or make is up
    assert torch.equal(conversion.model(X), want)


@each_model
def test_gradients_reach_every_parameter_of_the_original(make):
    """The gradient of the input is equal, and each trained parameter still has one."""
    model = make().double()
    x = X.double().requires_grad_()
    if make is InPythonList:
        model.hidden[0].double()
    converted = convert(model, x.detach()).model
    (want,) = torch.autograd.grad(model(x).sum(), x)
    converted(x).sum().backward()
    assert torch.equal(x.grad, want)
    assert all(parameter.grad is not None for parameter in converted.parameters())


@pytest.mark.parametrize(
    ("name", "to"),
    [
        pytest.param(
            name,
            to,
        )
        for name in MODELS
        for to in ("resize", "equalized")
    ],
)
def test_fitted_form_is_taken_or_refused_in_words(name, to):
    """Nothing in between: no crash, no silent loss; what is refused says what to do."""
    model = MODELS[name]()
    conversion = convert(model, X, to=to, init="fit")
    for each in conversion.plan.decisions:
        assert each.decision != "refused" or each.reason.endswith(
            "Convert this layer to 'subpixel', or exclude it."
        )
    assert conversion.model(X).shape == model(X).shape


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (Functional, "it is a function call in the code of a module"),
        (Tied, "its weight is shared with encode.weight"),
        (MODELS["subclass with its own forward"], "Causal has its own forward"),
    ],
    ids=["function", "tied", "own forward"],
)
@pytest.mark.parametrize("to", ["resize", "notch"])
def test_fitted_form_refuses_what_has_no_layer_of_its_own(make, found, to):
    conversion = convert(make(), X, to=to, init="fit")
    (refused,) = conversion.plan.refused
    assert found in refused.reason
    assert transposed_calls(conversion.model, X) != []


def test_refusal_is_an_error_when_strict():
    with pytest.raises(deconvfix.RefusedError, match="it is a function call in the code"):
        convert(Functional(), X, to="resize", init="fit", strict=True)


def test_functional_call_equals_the_definition():
    model = Functional().double()
    want = oracle.conv_transpose(
        X.double().numpy(),
        model.weight.detach().numpy(),
        model.bias.detach().numpy(),
        (2, 3),
        ((1, 1), (0, 0)),
        (0, 0),
        (1, 1),
        1,
    )
    got = convert(model, X.double()).model(X.double()).detach().numpy()
    np.testing.assert_array_equal(got, want)


def test_module_registered_twice_is_one_layer_and_stays_one():
    conversion = convert(TwoNames(), X)
    assert decisions(conversion) == {"first": "replaced"}
    assert conversion.model.first is conversion.model.block[1]


def test_calls_of_a_module_are_counted():
    (layer,) = deconvfix.inspect(CalledTwice(), (X,)).layers
    assert layer.calls == 2
    assert layer.input_sizes == ((4, 5), (8, 16))


def test_names_are_paths_in_the_model():
    assert decisions(convert(Nested(), X)) == {
        "conv_transpose2d": "replaced",
        "up": "replaced",
        "inner.conv_transpose2d": "replaced",
        "inner.up": "replaced",
    }


@pytest.mark.parametrize("make", [Tied, MODELS["two tied layers"]], ids=["conv", "layers"])
def test_tied_weights_stay_tied(make):
    model = make()
    converted = convert(model, X).model
    assert len(list(converted.parameters())) == len(list(model.parameters()))
    assert converted.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        next(model.parameters()).mul_(-1)
        next(converted.parameters()).mul_(-1)
    assert torch.equal(converted(X), model(X))


def test_shared_bias_is_refused_by_resize():
    """Else the two layers silently stop sharing it."""
    model = nn.Sequential(up(3, 3), up(3, 3))
    model[1].bias = model[0].bias
    assert len(convert(model, X, to="resize", init="fit").plan.refused) == 2


def test_rerouted_model_keeps_its_state_dict():
    model = Functional()
    converted = convert(model, X).model
    with torch.no_grad():
        model.weight.neg_()
    converted.load_state_dict(model.state_dict())
    assert torch.equal(converted(X), model(X))
