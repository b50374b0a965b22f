"""Converted layers copied, saved, and without data."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import deconvfix
from tests.support.forms import options_of
from tests.support.layers import converted, make_input, make_layer, some_geometries

# --- copies and files ---------------------------------------------------------------------------


def reload(module):
    """torch.save and torch.load of the whole module."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "travel",
    [copy.deepcopy, copy.copy, lambda module: pickle.loads(pickle.dumps(module)), reload],
    ids=["deepcopy", "copy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("to", ["subpixel", "resize"])
@some_geometries
def test_copy_computes_the_same(name, to, travel):
    layer = make_layer(name)
    new = converted(layer, **options_of(to))
    x = make_input(layer)
    again = travel(new)
    assert again.spec == new.spec
    assert torch.equal(again(x), new(x))
    assert torch.equal(again.conv.weight, new.conv.weight)


@some_geometries
def test_state_dict_round_trip(name):
    layer = make_layer(name)
    new = converted(layer)
    other = converted(type(layer)(**constructor_arguments(layer)))
    x = make_input(layer)
    file = io.BytesIO()
    torch.save(new.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), layer(x))


def constructor_arguments(layer):
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding",
             "dilation", "groups")  # fmt: skip
    return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None}


@pytest.mark.parametrize("to", ["float64", "bfloat16"])
def test_converted_layer_can_change_its_dtype(to):
    layer = make_layer("2d-unequal-axes", largest=1)
    dtype = getattr(torch, to)
    x = make_input(layer, dtype, largest=1)
    assert torch.equal(converted(layer).to(dtype)(x), layer.to(dtype)(x))


# --- the meta device ----------------------------------------------------------------------------


def test_layer_on_the_meta_device_is_inspected():
    (found,) = deconvfix.inspect(nn.ConvTranspose2d(3, 4, 4, 2, 1, device="meta")).layers
    assert (found.kernel_size, found.ripple_db, found.refusal) == ((4, 4), None, None)


def test_layer_on_the_meta_device_is_converted():
    new = converted(nn.ConvTranspose2d(3, 4, 4, 2, 1, device="meta"))
    assert new(torch.zeros(2, 3, 5, 6, device="meta")).shape == (2, 4, 10, 12)


@some_geometries
def test_layer_on_the_meta_device_is_converted_without_verification(name):
    layer = make_layer(name).to("meta")
    new = converted(layer, verify=False)
    x = make_input(layer).to("meta")
    assert new(x).shape == layer(x).shape
    assert {parameter.device.type for parameter in new.parameters()} == {"meta"}


def test_meta_layer_is_refused_by_fitted_forms():
    layer = nn.ConvTranspose2d(3, 4, 4, 2, 1, device="meta")
    plan = deconvfix.convert(layer, to="resize", init="fit", verify=False).plan
    assert plan[""].reason == (
        "(model): its weight is on the meta device; values are needed for a fit. "
        "Convert this layer to 'subpixel', or exclude it."
    )
