"""Layers with hooks, forwards of their own, or shapes still to come."""

import pytest
import torch
from torch import nn

import deconvfix
from tests.support.modules import (
    Functional,
    X,
    assert_same_function,
    convert,
    decisions,
    fill,
    integers,
    up,
)

# --- hooks and overridden forwards --------------------------------------------------------------


@pytest.mark.parametrize("inputs", [(X,), ()], ids=["inputs", "no inputs"])
def test_forward_that_was_set_on_an_instance_is_kept(inputs):
    """As accelerate and many monkey patches do it."""
    model = nn.Sequential(up())
    layer = model[0]
    layer.forward = lambda x: 2 * nn.ConvTranspose2d.forward(layer, x)
    want = model(X)
    conversion = convert(model, *inputs, verify=False)
    assert torch.equal(conversion.model(X), want)


def test_hooks_of_rerouted_modules_are_kept():
    model = nn.Sequential(Functional())
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    model[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    assert_same_function(convert(model, X), model, X)


def test_hooks_of_parents_are_kept():
    model = nn.Sequential(up())
    model.register_forward_hook(lambda module, args, output: output * 2)
    assert_same_function(convert(model, X), model, X)


# --- lazy layers --------------------------------------------------------------------------------


LAZY = {
    "1d": (nn.LazyConvTranspose1d, (2, 3, 5)),
    "2d": (nn.LazyConvTranspose2d, (2, 3, 4, 5)),
    "3d": (nn.LazyConvTranspose3d, (2, 3, 2, 3, 4)),
}

each_lazy = pytest.mark.parametrize(("cls", "shape"), LAZY.values(), ids=list(LAZY))

lazy_warning = pytest.mark.filterwarnings(
    # torch says this of every lazy module, whatever is done with it.
    "ignore:Lazy modules are a new feature:UserWarning",
)


@lazy_warning
@each_lazy
def test_lazy_layer_without_inputs_is_refused(cls, shape):
    conversion = deconvfix.convert(nn.Sequential(cls(4, 3, 2)))
    assert conversion.plan["0"].reason == (
        "0: it is lazy and has no weight yet; its shape is determined by the first run. "
        "Give example inputs, or run the model once before."
    )


@lazy_warning
@each_lazy
def test_lazy_layer_gets_its_shape_from_the_inputs(cls, shape):
    model = nn.Sequential(cls(4, 3, 2))
    conversion = convert(model, integers(shape, 1))
    assert conversion.plan["0"].spec.in_channels == 3
    assert conversion.report.ok
    assert isinstance(model[0], cls)


@lazy_warning
@pytest.mark.parametrize("inputs", [True, False], ids=["inputs", "no inputs"])
@each_lazy
def test_lazy_layer_that_ran_before_is_an_ordinary_one(cls, shape, inputs):
    model, x = nn.Sequential(cls(4, 3, 2)), integers(shape, 1)
    model(x)
    fill(model)
    assert_same_function(convert(model, *(x,) * inputs), model, x)


@lazy_warning
@pytest.mark.parametrize(
    "other",
    [lambda: nn.LazyConvTranspose2d(2, 3), lambda: nn.LazyConv2d(2, 3)],
    ids=["same", "conv"],
)
def test_lazy_neighbour_does_not_stop_the_conversion(other):
    assert decisions(deconvfix.convert(nn.Sequential(up(), other())))["0"] == "replaced"


@lazy_warning
def test_giving_lazy_layers_their_shape_leaves_batch_statistics_alone():
    model = nn.Sequential(nn.LazyConvTranspose2d(4, 3, 2), nn.BatchNorm2d(4)).train()
    converted = convert(model, X).model
    assert int(converted[1].num_batches_tracked) == 0
    assert bool((converted[1].running_mean == 0).all())
