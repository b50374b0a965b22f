"""One transposed convolution after conversion: it must behave as the layer that it replaces.

Weights and inputs are small integers wherever values are compared, so every sum is exact and the
comparison is equality.
"""

import copy
import io
import pickle
from collections import OrderedDict

import numpy as np
import oracle
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import deconvfix

CLASSES = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SIZES = {1: (5,), 2: (4, 5), 3: (2, 3, 4)}
MEMORY_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}

# in_channels, out_channels, kernel_size, stride, padding, output_padding, dilation, groups, bias
GEOMETRIES = {
    "1d-k4s2p1": (3, 2, (4,), (2,), (1,), (0,), (1,), 1, True),
    "1d-k3s2p1op1": (3, 2, (3,), (2,), (1,), (1,), (1,), 1, False),
    "1d-k5s3d2g2": (4, 6, (5,), (3,), (2,), (2,), (2,), 2, True),
    "1d-k1s2": (3, 2, (1,), (2,), (0,), (0,), (1,), 1, True),
    "1d-k16s8p4": (2, 3, (16,), (8,), (4,), (0,), (1,), 1, True),
    "1d-s2d4-output-padding-of-3": (2, 3, (2,), (2,), (1,), (3,), (4,), 1, True),
    "2d-k4s2p1": (3, 4, (4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1, True),
    "2d-k4s2p1-no-bias": (3, 4, (4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1, False),
    "2d-unequal-axes": (3, 2, (3, 5), (2, 3), (1, 2), (1, 2), (1, 1), 1, True),
    "2d-k2s2": (3, 5, (2, 2), (2, 2), (0, 0), (0, 0), (1, 1), 1, True),
    "2d-depthwise-k4s2": (4, 4, (4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 4, False),
    "2d-g2-d2x3": (4, 6, (3, 2), (2, 2), (1, 0), (1, 0), (2, 3), 2, True),
    "2d-stride-over-kernel": (3, 2, (2, 1), (3, 4), (0, 1), (2, 3), (1, 1), 1, True),
    "2d-k4s2p3": (3, 2, (4, 4), (2, 2), (3, 3), (0, 0), (1, 1), 1, True),
    "2d-padding-over-kernel": (2, 3, (2, 2), (3, 3), (4, 3), (1, 0), (1, 1), 1, True),
    "2d-stride-1": (3, 2, (3, 3), (1, 1), (1, 0), (0, 0), (2, 1), 1, True),
    "3d-k1x2x2": (2, 3, (1, 2, 2), (1, 2, 2), (0, 0, 0), (0, 0, 0), (1, 1, 1), 1, True),
    "3d-k3s2p1op1g2": (4, 2, (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), 2, True),
    "3d-unequal-axes": (2, 3, (2, 3, 4), (2, 1, 3), (0, 1, 1), (1, 0, 2), (1, 1, 1), 1, False),
}
FEW = ("1d-k5s3d2g2", "2d-k4s2p1", "2d-unequal-axes", "2d-stride-over-kernel", "3d-k3s2p1op1g2")
each_geometry = pytest.mark.parametrize("name", GEOMETRIES)
some_geometries = pytest.mark.parametrize("name", FEW)


def integers(shape, seed, dtype=torch.float32, largest=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, tuple(shape), generator=generator).to(dtype)


def make_layer(name, dtype=torch.float32, largest=2):
    c_in, c_out, kernel_size, stride, padding, output_padding, dilation, groups, bias = GEOMETRIES[
        name
    ]
    layer = CLASSES[len(kernel_size)](
        c_in,
        c_out,
        kernel_size,
        stride,
        padding,
        output_padding,
        groups,
        bias,
        dilation,
        dtype=dtype,
    )
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(integers(parameter.shape, seed, dtype, largest))
    return layer


def make_input(layer, dtype=torch.float32, largest=2, batch=(2,)):
    sizes = SIZES[len(layer.kernel_size)]
    return integers((*batch, layer.in_channels, *sizes), 11, dtype, largest)


def converted(layer, **options):
    return deconvfix.convert(layer, **options).model


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


def reachable(layer, x, end):
    """The least or the largest spatial size that torch accepts as output_size."""
    plain = copy.deepcopy(layer)
    plain.output_padding = (0,) * len(layer.kernel_size)
    least = plain(x).shape[-len(layer.kernel_size) :]
    return tuple(n + (s - 1) * (end == "largest") for n, s in zip(least, layer.stride, strict=True))


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
        for key, parameter in converted(layer, to=to).named_parameters()
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
    new = converted(layer, to=to)
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
    plan = deconvfix.convert(layer, to="resize", verify=False).plan
    assert plan[""].reason == (
        "(model): its weight is on the meta device; values are needed for a fit. "
        "Convert this layer to 'subpixel', or exclude it."
    )


# --- torch's program transformations ------------------------------------------------------------


@some_geometries
def test_autocast_gives_the_originals_dtype(name):
    """Integers of one unit: bfloat16 holds every sum."""
    layer = make_layer(name, largest=1)
    x = make_input(layer, largest=1)
    new = converted(layer)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = new(x), layer(x)
    assert got.dtype == want.dtype == torch.bfloat16
    assert torch.equal(got, want)


@some_geometries
def test_compiles_without_a_graph_break(name):
    layer = make_layer(name)
    x = make_input(layer)
    torch._dynamo.reset()
    compiled = torch.compile(converted(layer), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))


def test_compiles_for_training_with_dynamic_shapes():
    layer = make_layer("2d-unequal-axes", torch.float64)
    new = converted(layer)
    torch._dynamo.reset()
    compiled = torch.compile(new, fullgraph=True, backend="aot_eager", dynamic=True)
    x = integers((3, 3, 6, 7), 2, torch.float64).requires_grad_()
    (want,) = torch.autograd.grad(layer(x).sum(), x)
    (got,) = torch.autograd.grad(compiled(x).sum(), x)
    assert torch.equal(got, want)


def test_compiles_with_an_output_size_without_a_graph_break():
    layer = make_layer("2d-unequal-axes")
    x = make_input(layer)
    size = reachable(layer, x, "largest")
    torch._dynamo.reset()
    compiled = torch.compile(converted(layer), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, size), layer(x, size))


@pytest.mark.parametrize(
    ("name", "strict"),
    [
        *((name, True) for name in FEW),
        ("1d-k5s3d2g2", False),
        ("2d-k4s2p1", False),
        ("2d-stride-over-kernel", False),
        pytest.param(
            "2d-unequal-axes",
            False,
        ),
        pytest.param(
            "3d-k3s2p1op1g2",
            False,
        ),
    ],
)
def test_exports_with_dynamic_shapes(name, strict):
    layer = make_layer(name)
    x = make_input(layer)
    dims = {0: torch.export.Dim("batch", min=1), x.dim() - 1: torch.export.Dim("width", min=2)}
    program = torch.export.export(converted(layer), (x,), dynamic_shapes=(dims,), strict=strict)
    longer = integers((3, *x.shape[1:-1], x.shape[-1] + 4), 7)
    assert torch.equal(program.module()(longer), layer(longer))


def test_exported_program_has_no_transposed_convolution():
    layer = make_layer("2d-unequal-axes")
    program = torch.export.export(converted(layer), (make_input(layer),), strict=False)
    targets = [str(node.target) for node in program.graph.nodes]
    assert not [target for target in targets if "transpose" in target]
    assert targets.count("aten.conv2d.default") == 1


@each_geometry
def test_fx_traces_the_converted_model(name):
    layer = make_layer(name)
    x = make_input(layer)
    traced = torch.fx.symbolic_trace(converted(nn.Sequential(layer, nn.ReLU())))
    assert torch.equal(traced(x), layer(x).relu())


announced_end_of_torchscript = pytest.mark.filterwarnings(
    # Traced models are still in use.
    "ignore:.torch.jit.trace. is deprecated:DeprecationWarning",
    "ignore:.torch.jit.trace_method. is deprecated:DeprecationWarning",
)


@announced_end_of_torchscript
def test_jit_trace_does_not_warn():
    layer = make_layer("2d-k4s2p1")
    torch.jit.trace(layer, (make_input(layer),))
    torch.jit.trace(converted(layer), (make_input(layer),))


@announced_end_of_torchscript
@pytest.mark.filterwarnings(
    # See test_jit_trace_does_not_warn.
    "ignore::torch.jit.TracerWarning",
)
@some_geometries
def test_jit_trace_follows_the_input_size(name):
    layer = make_layer(name)
    new = converted(layer)
    traced = torch.jit.trace(new, (make_input(layer),))
    longer = integers((3, layer.in_channels, *(n + 2 for n in SIZES[len(layer.kernel_size)])), 7)
    assert torch.equal(traced(longer), layer(longer))


@some_geometries
def test_vmap_over_inputs(name):
    layer = make_layer(name)
    x = torch.stack([make_input(layer), make_input(layer).flip(0)])
    want = torch.stack([layer(each) for each in x])
    assert torch.equal(torch.vmap(converted(layer))(x), want)


def test_vmap_over_stacked_parameters_of_several_layers():
    layers = [make_layer("2d-k4s2p1") for _ in range(2)]
    with torch.no_grad():
        layers[1].weight.neg_()
    news = [converted(layer) for layer in layers]
    parameters, buffers = torch.func.stack_module_state(news)
    x = make_input(layers[0])

    def call(parameters, buffers):
        return torch.func.functional_call(news[0], (parameters, buffers), (x,))

    got = torch.vmap(call)(parameters, buffers)
    assert torch.equal(got, torch.stack([layer(x) for layer in layers]))


def test_runs_under_inference_mode():
    layer = make_layer("2d-unequal-axes")
    x = make_input(layer)
    with torch.inference_mode():
        assert torch.equal(converted(layer)(x), layer(x))


def test_default_dtype_of_the_process_does_not_matter():
    layer = make_layer("2d-k4s2p1")
    x = make_input(layer)
    torch.set_default_dtype(torch.float64)
    try:
        new = converted(layer)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(new(x), layer(x))


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
    new = converted(layer, to="resize", interpolation=interpolation, padding_mode=padding_mode)
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
    new = converted(layer, to="equalized")
    assert type(new) is nn.ConvTranspose2d
    x = torch.ones(1, 3, 8, 9, dtype=torch.float64)
    inside = (..., slice(6, 12), slice(9, 18))
    level = new(x)[inside]
    spread = (level - level.mean((-2, -1), keepdim=True)).abs()
    bound = 10 * torch.finfo(torch.float64).eps * magnitude(new, x)[inside]
    assert bool((spread <= bound).all())
    before = layer(x)[inside]
    assert bool(((before - before.mean((-2, -1), keepdim=True)).abs() > 0.1).any())
