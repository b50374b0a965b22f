"""Converted layers in training: memory layout, gradients, hooks."""

import copy

import pytest
import torch
from torch import nn

import deconvfix
from tests.support.layers import (
    GEOMETRIES,
    converted,
    each_geometry,
    integers,
    make_input,
    make_layer,
    reachable,
    some_geometries,
)

MEMORY_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


# --- memory layout ------------------------------------------------------------------------------


@pytest.mark.parametrize("input_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("weight_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", [name for name in GEOMETRIES if not name.startswith("1d")])
def test_channels_last_gives_the_same_values(name, weight_format, input_format):
    layer = make_layer(name)
    layout = MEMORY_FORMATS[len(layer.kernel_size)]
    x = make_input(layer)
    want = layer(x)
    if weight_format == "channels_last":
        layer = layer.to(memory_format=layout)
    if input_format == "channels_last":
        x = x.contiguous(memory_format=layout)
    assert torch.equal(converted(layer)(x), want)


@pytest.mark.parametrize("name", ["2d-k4s2p1", "2d-unequal-axes", "3d-unequal-axes"])
def test_channels_last_weight_stays_channels_last(name):
    layer = make_layer(name)
    layout = MEMORY_FORMATS[len(layer.kernel_size)]
    layer = layer.to(memory_format=layout)
    assert converted(layer).conv.weight.is_contiguous(memory_format=layout)


@each_geometry
def test_output_can_be_viewed_where_the_originals_can(name):
    """Code that calls .view on the output must go on working."""
    layer = make_layer(name)
    x = make_input(layer)
    assert layer(x).is_contiguous()
    new = converted(layer)
    assert new(x).is_contiguous()
    assert new(x[0]).is_contiguous()


@some_geometries
def test_output_of_given_size_can_be_viewed(name):
    layer = make_layer(name)
    x = make_input(layer)
    assert converted(layer)(x, reachable(layer, x, "largest")).is_contiguous()


def test_output_does_not_alias_the_input():
    """In-place code after the layer must not change what came before it."""
    layer = nn.ConvTranspose2d(2, 2, 1, bias=False)
    x = integers((2, 2, 4, 5), 3)
    kept = x.clone()
    with torch.no_grad():
        converted(layer)(x).zero_()
    assert torch.equal(x, kept)


@each_geometry
def test_in_place_activation_after_the_layer_trains(name):
    layer = make_layer(name, torch.float64)
    x = make_input(layer, torch.float64).requires_grad_()
    model = nn.Sequential(layer, nn.ReLU(inplace=True))
    (want,) = torch.autograd.grad(model(x).sum(), x)
    (got,) = torch.autograd.grad(converted(model)(x).sum(), x)
    assert torch.equal(got, want)


# --- gradients ----------------------------------------------------------------------------------


@each_geometry
def test_gradients_of_input_and_weight_are_those_of_the_original(name):
    """The gradient of the new weight, arranged back, is the gradient of the trained weight."""
    layer = make_layer(name, torch.float64)
    x = make_input(layer, torch.float64).requires_grad_()
    out = layer(x)
    upstream = integers(out.shape, 23, torch.float64)
    want = torch.autograd.grad(out, [x, layer.weight], upstream)
    new = converted(layer)
    got = torch.autograd.grad(new(x), [x, new.conv.weight], upstream)
    shown = copy.deepcopy(new)
    with torch.no_grad():
        shown.conv.weight.copy_(got[1])
    assert torch.equal(got[0], want[0])
    assert torch.equal(shown.weight, want[1])


@pytest.mark.parametrize("name", [name for name, values in GEOMETRIES.items() if values[-1]])
def test_gradients_of_all_copies_of_the_bias_add_up_to_the_originals(name):
    layer = make_layer(name, torch.float64)
    x = make_input(layer, torch.float64)
    out = layer(x)
    upstream = integers(out.shape, 23, torch.float64)
    (want,) = torch.autograd.grad(out, layer.bias, upstream)
    new = converted(layer)
    parameter = next(value for key, value in new.named_parameters() if key.endswith("bias"))
    (got,) = torch.autograd.grad(new(x), parameter, upstream)
    # (C_out*r_1*..*r_n,) -> (C_out, r_1*..*r_n): the copies for the phases lie side by side
    assert torch.equal(got.reshape(layer.out_channels, -1).sum(1), want)


def test_weight_property_carries_gradients():
    """Losses on `layer.weight`, such as weight decay written by hand, reach the parameter."""
    layer = make_layer("2d-unequal-axes", torch.float64)
    new = converted(layer)
    (new.weight**2).sum().backward()
    shown = copy.deepcopy(new)
    with torch.no_grad():
        shown.conv.weight.copy_(new.conv.weight.grad)
    assert torch.equal(shown.weight, 2 * layer.weight)


@pytest.mark.parametrize("name", ["1d-k3s2p1op1", "1d-k1s2", "1d-s2d4-output-padding-of-3"])
def test_gradcheck(name):
    new = converted(make_layer(name, torch.float64))
    x = torch.randn(1, new.in_channels, 3, dtype=torch.float64, requires_grad=True,
                    generator=torch.Generator().manual_seed(0))  # fmt: skip
    parameters = dict(new.named_parameters())

    def function(x, *values):
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(new, named, (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters.values()))


def test_one_sgd_step_moves_the_function_as_it_moves_the_original():
    """k4 s2 without bias has one parameter per trained one, so both take the same step."""
    layer = make_layer("2d-k4s2p1-no-bias", torch.float64)
    new = converted(layer)
    x = make_input(layer, torch.float64)
    sgd_step(layer, x)
    sgd_step(new, x)
    assert torch.equal(new.weight, layer.weight)
    assert torch.equal(new(x), layer(x))


def sgd_step(layer, x):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer(x).square().sum().backward()
    optimizer.step()


@pytest.mark.filterwarnings(
    # torch's own forward-mode decompositions are TorchScript, which it announces to end.
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning",
)
@some_geometries
def test_forward_mode_derivative_is_the_originals(name):
    layer = make_layer(name, torch.float64)
    x = make_input(layer, torch.float64)
    tangent = integers(x.shape, 31, torch.float64)
    new = converted(layer)
    want = torch.func.jvp(layer, (x,), (tangent,))[1]
    assert torch.equal(torch.func.jvp(new, (x,), (tangent,))[1], want)


# --- hooks --------------------------------------------------------------------------------------


def test_observing_hooks_run_after_conversion():
    layer = make_layer("2d-k4s2p1")
    seen = []
    layer.register_forward_pre_hook(lambda module, args: seen.append("pre"))
    layer.register_forward_hook(lambda module, args, output: seen.append("forward"))
    layer.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(sorted(kwargs)), with_kwargs=True
    )
    layer.register_full_backward_pre_hook(lambda module, grad: seen.append("backward pre"))
    layer.register_full_backward_hook(lambda module, grad_in, grad: seen.append("backward"))
    new = converted(layer)
    x = make_input(layer).requires_grad_()
    seen.clear()
    new(input=x[:1])
    new(x).sum().backward()
    assert seen == ["pre", "forward", ["input"], "pre", "forward", [], "backward pre", "backward"]


def test_full_backward_hook_gets_the_originals_gradients():
    layer = make_layer("2d-unequal-axes", torch.float64)
    seen = []
    layer.register_full_backward_hook(
        lambda module, grad_in, grad_out: seen.append((*grad_in, *grad_out))
    )
    new = converted(layer)
    x = make_input(layer, torch.float64).requires_grad_()
    seen.clear()
    layer(x).sum().backward()
    new(x).sum().backward()
    assert len(seen) == 2
    assert all(map(torch.equal, *seen))


def test_forward_hook_that_changes_the_output_is_kept():
    layer = make_layer("2d-k4s2p1")
    layer.register_forward_hook(lambda module, args, output: output * 2)
    x = make_input(layer)
    assert torch.equal(converted(layer)(x), layer(x))


def test_pre_hook_that_changes_the_input_is_kept():
    layer = make_layer("2d-k4s2p1")
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    x = make_input(layer)
    assert torch.equal(converted(layer)(x), layer(x))


def test_hook_can_be_removed_by_a_handle_of_the_same_model():
    """With `inplace` the handle that the user holds must still work."""
    model = nn.Sequential(make_layer("2d-k4s2p1"))
    seen = []
    handle = model[0].register_forward_hook(lambda module, args, output: seen.append(1))
    x = make_input(model[0])
    deconvfix.convert(model, inplace=True)
    handle.remove()
    seen.clear()
    model(x)
    assert seen == []
