"""One transposed convolution after conversion: it must behave as the layer that it replaces.

Weights and inputs are small integers wherever values are compared, so every sum is exact and the
comparison is equality.
"""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import deconvfix
from tests.support import oracle
from tests.support.forms import options_of
from tests.support.layers import (
    FEW,
    GEOMETRIES,
    converted,
    each_geometry,
    integers,
    make_input,
    make_layer,
    reachable,
    some_geometries,
)


def dispatched(model, *args):
    """Names of the operators that really run, a transposed convolution as "transposed"."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func._schema.name
            seen.append("transposed" if name == "aten::convolution" and args[6] else name)
            return func(*args, **(kwargs or {}))

    with Watch():
        model(*args)
    return seen


# --- values -------------------------------------------------------------------------------------


@each_geometry
def test_layer_equals_the_definition(name):
    layer = make_layer(name, torch.float64)
    x = make_input(layer, torch.float64)
    want = oracle.conv_transpose(
        x.numpy(),
        layer.weight.detach().numpy(),
        None if layer.bias is None else layer.bias.detach().numpy(),
        layer.stride,
        tuple((p, p) for p in layer.padding),
        layer.output_padding,
        layer.dilation,
        layer.groups,
    )
    np.testing.assert_array_equal(converted(layer)(x).detach().numpy(), want)


@each_geometry
def test_layer_equals_torch_in_float32(name):
    layer = make_layer(name)
    x = make_input(layer)
    assert torch.equal(converted(layer)(x), layer(x))


# One unit in the inputs and weights keeps every sum below 256, the largest exact run of integers in
# bfloat16 (2048 in float16).
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each_geometry
def test_layer_equals_torch_in_half_precision(name, dtype):
    layer = make_layer(name, dtype, largest=1)
    x = make_input(layer, dtype, largest=1)
    got = converted(layer)(x)
    assert got.dtype == dtype
    assert torch.equal(got, layer(x))


def test_a_departing_weight_is_seen_by_these_comparisons():
    """Negative control: one changed element of the converted weight changes the output."""
    layer = make_layer("2d-unequal-axes")
    new = converted(layer)
    with torch.no_grad():
        new.conv.weight[-1, -1, 0, 0] += 1
    x = make_input(layer)
    assert not torch.equal(new(x), layer(x))


@each_geometry
def test_unbatched_input_gives_unbatched_output(name):
    layer = make_layer(name)
    x = make_input(layer, batch=())
    assert torch.equal(converted(layer)(x), layer(x))


@each_geometry
def test_zero_batch_gives_an_empty_output_of_torchs_shape(name):
    layer = make_layer(name)
    x = make_input(layer, batch=(0,))
    assert converted(layer)(x).shape == layer(x).shape


@each_geometry
def test_no_transposed_convolution_runs_any_more(name):
    layer = make_layer(name)
    assert "transposed" not in dispatched(converted(layer), make_input(layer))


def test_the_watch_sees_the_transposed_convolution_of_the_original():
    """Negative control of `dispatched`."""
    layer = make_layer("2d-k4s2p1")
    assert "transposed" in dispatched(layer, make_input(layer))


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("name", [name for name in GEOMETRIES if name != "2d-k4s2p3"])
def test_tiny_input_gives_torchs_output_or_torchs_error(name, length):
    layer = make_layer(name)
    x = integers((2, layer.in_channels, *(length,) * len(layer.kernel_size)), 5)
    new = converted(layer)
    try:
        want = layer(x)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            new(x)
    else:
        assert torch.equal(new(x), want)


def test_input_with_an_output_of_zero_pixels_gives_an_empty_output_as_in_torch():
    layer = make_layer("2d-k4s2p3")
    x = integers((2, 3, 2, 2), 5)
    want = layer(x)
    assert want.shape == (2, 2, 0, 0)
    assert converted(layer)(x).shape == want.shape


@pytest.mark.parametrize(
    "shape", [(2, 5, 4, 5), (4, 5), (3,), (1, 2, 3, 4, 5)], ids=["channels", "2", "1", "5"]
)
def test_input_of_a_wrong_shape_raises_as_in_torch(shape):
    layer = make_layer("2d-k4s2p1")
    x = torch.zeros(shape)
    with pytest.raises(RuntimeError):
        layer(x)
    with pytest.raises((RuntimeError, ValueError)):
        converted(layer)(x)


def test_input_without_pixels_raises_as_in_torch():
    layer = make_layer("2d-k4s2p1")
    x = torch.zeros(2, 3, 0, 5)
    with pytest.raises(RuntimeError):
        layer(x)
    with pytest.raises(RuntimeError):
        converted(layer)(x)


def test_input_of_another_dtype_raises_as_in_torch():
    layer = make_layer("2d-k4s2p1")
    x = make_input(layer, torch.float64)
    with pytest.raises(RuntimeError):
        layer(x)
    with pytest.raises(RuntimeError):
        converted(layer)(x)


# --- output_size --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tuple, list, torch.Size])
@pytest.mark.parametrize("axes", ["spatial", "all"])
@pytest.mark.parametrize("end", ["smallest", "largest"])
@some_geometries
def test_output_size_is_honoured(name, end, axes, form):
    layer = make_layer(name)
    x = make_input(layer)
    size = reachable(layer, x, end)
    output_size = form((*(2, layer.out_channels)[: 2 * (axes == "all")], *size))
    assert torch.equal(converted(layer)(x, output_size), layer(x, output_size))


@some_geometries
def test_output_size_of_an_unbatched_input_may_name_the_channels(name):
    layer = make_layer(name)
    x = make_input(layer, batch=())
    output_size = (layer.out_channels, *reachable(layer, x, "largest"))
    got = converted(layer)(x, output_size=output_size)
    assert torch.equal(got, layer(x, output_size=output_size))


@pytest.mark.parametrize(
    "output_size",
    [(7, 11), (10, 9), (8, 10, 12), (8,), (2, 3, 4, 8, 10), ()],
    ids=["too-small", "too-large", "three", "one", "five", "none"],
)
def test_output_size_out_of_reach_raises_value_error(output_size):
    layer = make_layer("2d-k4s2p1")
    x = make_input(layer)
    with pytest.raises(ValueError, match=r"output_size|output size"):
        layer(x, output_size)
    with pytest.raises(ValueError, match=r"output_size|output size"):
        converted(layer)(x, output_size)


def test_output_size_replaces_the_layers_own_output_padding():
    layer = make_layer("1d-k3s2p1op1")
    x = make_input(layer)
    size = reachable(layer, x, "smallest")
    assert converted(layer)(x, size).shape[2:] == size != layer(x).shape[2:]


def test_output_size_works_inside_a_model_that_calls_the_layer_with_it():
    class Unpool(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(3, 3, 3, stride=(2, 3), padding=1)
            self.up = make_layer("2d-unequal-axes")

        def forward(self, x):
            return self.up(self.down(x), output_size=x.shape[2:])

    torch.manual_seed(0)
    model = Unpool()
    x = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    conversion = deconvfix.convert(model, example_inputs=(x,))
    assert conversion.report.parity.ok
    assert conversion.model(x).shape[2:] == model(x).shape[2:] == (8, 12)


# --- what the layer shows -----------------------------------------------------------------------


@each_geometry
def test_weight_and_bias_can_be_read_in_the_original_layout(name):
    layer = make_layer(name)
    new = converted(layer)
    assert torch.equal(new.weight, layer.weight)
    if layer.bias is None:
        assert new.bias is None
    else:
        assert torch.equal(new.bias, layer.bias)


@pytest.mark.parametrize(
    "attribute",
    [
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "output_padding",
        "dilation",
        "groups",
        "padding_mode",
        "transposed",
        "training",
    ],
)
@some_geometries
def test_geometry_can_be_read_under_torchs_names(name, attribute):
    layer = make_layer(name)
    assert getattr(converted(layer), attribute) == getattr(layer, attribute)


def test_attributes_that_the_user_set_on_the_layer_are_kept():
    layer = make_layer("2d-k4s2p1")
    layer.learning_rate_factor = 0.5
    assert converted(layer).learning_rate_factor == 0.5


def test_buffers_that_the_user_registered_on_the_layer_are_kept():
    layer = make_layer("2d-k4s2p1")
    layer.register_buffer("gain", torch.tensor(2.0))
    assert torch.equal(converted(layer).gain, layer.gain)


def test_weight_keeps_its_size_where_no_tap_is_zero():
    """k4 s2 fills every phase; the bias has one element per phase."""
    layer = make_layer("2d-k4s2p1")
    new = dict(converted(layer).named_parameters())
    assert {key: value.numel() for key, value in new.items()} == {
        "conv.weight": layer.weight.numel(),
        "conv.bias": 4 * layer.bias.numel(),
    }


@each_geometry
def test_converted_layer_has_one_weight_and_at_most_one_bias(name):
    layer = make_layer(name)
    assert len(list(converted(layer).parameters())) == len(list(layer.parameters()))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("name", ["2d-k4s2p1", "2d-stride-over-kernel"])
@pytest.mark.parametrize("to", ["subpixel", "resize"])
def test_frozen_parameter_stays_frozen(to, name, frozen):
    layer = make_layer(name)
    getattr(layer, frozen).requires_grad_(False)
    frozen_after = {
        key.split(".")[-1]: not parameter.requires_grad
        for key, parameter in converted(layer, **options_of(to)).named_parameters()
    }
    assert frozen_after == {key: key == frozen for key in ("weight", "bias")}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_mode_is_kept_in_every_part(training):
    layer = make_layer("2d-unequal-axes").train(training)
    assert {module.training for module in converted(layer).modules()} == {training}


def test_new_parameters_do_not_share_memory_with_the_original():
    layer = make_layer("2d-stride-1")
    new = converted(layer)
    before = {parameter.data_ptr() for parameter in layer.parameters()}
    assert before.isdisjoint(parameter.data_ptr() for parameter in new.parameters())


# --- small nets ---------------------------------------------------------------------------------


def small_net(name):
    layer = make_layer(name)
    n = len(layer.kernel_size)
    head = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[n](layer.out_channels, 2, 1)
    with torch.no_grad():
        head.weight.copy_(integers(head.weight.shape, 41))
        head.bias.copy_(integers(head.bias.shape, 42))
    return nn.Sequential(OrderedDict(up=layer, act=nn.ReLU(), head=head))


@each_geometry
def test_net_around_the_layer_is_unchanged(name):
    net = small_net(name)
    x = make_input(net.up)
    conversion = deconvfix.convert(net, example_inputs=(x,))
    assert torch.equal(conversion.model(x), net(x))
    assert conversion.report.parity.ok
    assert conversion.report.still_running == ()


@pytest.mark.parametrize("name", FEW)
def test_net_in_a_half_precision_dtype_is_verified(name):
    net = small_net(name).to(torch.bfloat16)
    x = make_input(net.up, torch.bfloat16)
    assert deconvfix.convert(net, example_inputs=(x,)).report.parity.ok


@pytest.mark.parametrize("padding_mode", ["reflect", "replicate", "zeros"])
@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
@some_geometries
def test_resize_gives_the_originals_output_shape(name, interpolation, padding_mode):
    layer = make_layer(name)
    x = make_input(layer)
    new = converted(
        layer, to="resize", init="fit", interpolation=interpolation, padding_mode=padding_mode
    )
    assert new(x).shape == layer(x).shape
    assert new(x[0]).shape == layer(x[0]).shape
    size = reachable(layer, x, "largest")
    assert new(x, size).shape == layer(x, size).shape


def test_resize_of_a_box_kernel_is_the_same_function():
    """A kernel of equal taps is nearest upsampling by definition."""
    layer = nn.ConvTranspose2d(3, 2, (2, 3), (2, 3))
    with torch.no_grad():
        layer.weight.copy_(integers((3, 2, 1, 1), 1).expand(3, 2, 2, 3))
        layer.bias.copy_(integers((2,), 2))
    conversion = deconvfix.convert(layer, to="resize")
    x = integers((2, 3, 4, 5), 3)
    assert conversion.plan[""].exact
    # The fit goes through a least squares solution: 10 eps of the sum of magnitudes.
    bound = 10 * torch.finfo(torch.float32).eps * magnitude(layer, x)
    assert bool(((conversion.model(x) - layer(x)).abs() <= bound).all())


def magnitude(layer, x):
    """|W| (*) |x| + |b|"""
    absolute = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in absolute.parameters():
            parameter.abs_()
    return absolute(x.abs()).detach()


def test_equalized_layer_answers_a_constant_with_a_constant():
    layer = make_layer("2d-unequal-axes", torch.float64)
    new = converted(layer, to="equalized", init="fit")
    assert type(new) is nn.ConvTranspose2d
    x = torch.ones(1, 3, 8, 9, dtype=torch.float64)
    inside = (..., slice(6, 12), slice(9, 18))
    level = new(x)[inside]
    spread = (level - level.mean((-2, -1), keepdim=True)).abs()
    bound = 10 * torch.finfo(torch.float64).eps * magnitude(new, x)[inside]
    assert bool((spread <= bound).all())
    before = layer(x)[inside]
    assert bool(((before - before.mean((-2, -1), keepdim=True)).abs() > 0.1).any())
