"""What torch runs against the definition, for every geometry."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import deconvfix
from deconvfix.core.rearrange import inverse, rearrange
from deconvfix.core.steps import LocalMeans, Pad, Resize, run
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from deconvfix.frontends.torch import steps as torch_steps
from deconvfix.frontends.torch.layers import ConvertedConvTranspose
from tests.support import oracle
from tests.support.strategies import cases

dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])

LAYERS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def tensor(array, dtype):
    return None if array is None else torch.from_numpy(array).to(dtype)


def exact(case, dtype):
    """Whether all partial sums are integers that the dtype holds exactly."""
    limit = 1 / torch.finfo(dtype).eps
    magnitude = 9 * case.weight[0].size * case.spec.in_channels + 3
    return magnitude < limit


def layer_of(case, dtype):
    spec = case.spec
    layer = LAYERS[spec.ndim](
        spec.in_channels,
        spec.out_channels,
        spec.kernel_size,
        spec.stride,
        tuple(b for b, _ in spec.padding),
        spec.output_padding,
        spec.groups,
        spec.bias,
        spec.dilation,
    ).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(tensor(case.weight, dtype))
        if spec.bias:
            layer.bias.copy_(tensor(case.bias, dtype))
    return layer


@given(cases(symmetric=True, torch_limits=True), dtypes)
def test_converted_layers_are_the_definition(case, dtype):
    dtype = dtype if exact(case, dtype) else torch.float64
    converted = deconvfix.convert(layer_of(case, dtype), verify=False).model
    assert isinstance(converted, ConvertedConvTranspose)
    got = converted(tensor(case.x, dtype))
    assert got.dtype == dtype
    assert np.array_equal(got.detach().double().numpy(), case.expected)


@given(cases(symmetric=True, torch_limits=True))
def test_calls_with_run_time_weights_are_the_definition(case):
    x, weight, bias = (tensor(each, torch.float64) for each in (case.x, case.weight, case.bias))
    spec = case.spec
    got = torch_steps.conv_transpose(
        x,
        weight,
        bias,
        spec.stride,
        tuple(b for b, _ in spec.padding),
        spec.output_padding,
        spec.groups,
        spec.dilation,
    )
    assert np.array_equal(got.numpy(), case.expected)


@given(cases())
def test_torch_runs_asymmetric_padding_like_the_definition(case):
    compiled = form("subpixel").compile(case.spec, Settings())
    weight = torch_steps.rearrange_tensor(
        compiled.weight, tensor(case.weight, torch.float64), case.spec.groups
    )
    bias = tensor(case.bias, torch.float64)
    if bias is not None:
        bias = torch_steps.rearrange_tensor(compiled.bias, bias)
    x = tensor(case.x, torch.float64)
    got = torch_steps.apply_steps(compiled.steps, x, weight, bias, case.spec.groups)
    assert np.array_equal(got.numpy(), case.expected)


@given(
    cases(),
    st.sampled_from(["nearest", "linear"]),
    st.sampled_from(["reflect", "replicate", "zeros"]),
)
def test_torch_runs_resize_like_the_steps_mean(case, interpolation, padding_mode):
    """Nearest with integers is exact; linear rounds in float64, values stay below 1e4."""
    options = Settings(interpolation, padding_mode, "fit")
    compiled = form("resize").compile(case.spec, options)
    kernel = form("resize").fit(case.spec, options, case.weight)
    weight = rearrange(compiled.weight, np.round(4 * kernel), case.spec.groups)
    want = run(compiled.steps, case.x, weight, case.bias)
    x, w, b = (tensor(each, torch.float64) for each in (case.x, weight.copy(), case.bias))
    got = torch_steps.apply_steps(compiled.steps, x, w, b, case.spec.groups).numpy()
    if interpolation == "nearest":
        assert np.array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


@given(cases(), st.integers(1, 3))
def test_torch_takes_local_means_like_the_steps(case, reach):
    """Of integers below 1e2 in float64: sums are exact, and the division rounds."""
    spec = case.spec
    step = LocalMeans((reach,) * spec.ndim, spec.groups)
    want = run((step,), case.x, np.zeros(()))
    got = torch_steps.local_means(tensor(case.x, torch.float64), step.reach, spec.groups).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    # (N, 2*C, *L) -> (N, g, 2, C/g, *L)
    parts = want.reshape(len(want), spec.groups, 2, -1, *want.shape[2:])
    assert np.array_equal(parts[:, :, 0].reshape(case.x.shape), case.x)
    means = oracle.local_mean(case.x, step.reach)
    np.testing.assert_allclose(parts[:, :, 1].reshape(case.x.shape), means, rtol=0, atol=1e-12)


@given(cases())
def test_the_way_back_restores_weight_and_bias(case):
    groups = case.spec.groups
    compiled = form("subpixel").compile(case.spec, Settings())
    there = torch.from_numpy(rearrange(compiled.weight, case.weight, groups).copy())
    back = torch_steps.carry_out(inverse(compiled.weight, case.weight.shape, groups), there)
    assert np.array_equal(back.numpy(), case.weight)
    if case.bias is not None:
        there = torch.from_numpy(rearrange(compiled.bias, case.bias))
        back = torch_steps.carry_out(inverse(compiled.bias, case.bias.shape), there)
        assert np.array_equal(back.numpy(), case.bias)


@given(cases(symmetric=True, torch_limits=True))
@settings(max_examples=60)
def test_gradients_are_those_of_the_layer(case):
    """Integers in float64: equality. The weight's gradient is read in the layer's own layout."""
    layer = layer_of(case, torch.float64)
    converted = deconvfix.convert(layer, verify=False).model
    x = tensor(case.x, torch.float64)
    cotangent = torch.randint(-2, 3, case.expected.shape).double()
    gradients = []
    for model in (layer, converted):
        own = x.clone().requires_grad_()
        model(own).backward(cotangent)
        weight = model.weight.grad if model is layer else converted.conv.weight.grad
        gradients.append((own.grad, weight))
    assert torch.equal(gradients[0][0], gradients[1][0])
    compiled = form("subpixel").compile(case.spec, Settings())
    back = inverse(compiled.weight, case.weight.shape, case.spec.groups)
    assert torch.equal(torch_steps.carry_out(back, gradients[1][1]), gradients[0][1])


@pytest.mark.parametrize("factors", [(2,), (3, 2), (2, 2, 5)], ids=str)
@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
def test_resize_means_torch_interpolate(factors, interpolation):
    """The NumPy meaning of `Resize` is torch's half-pixel convention; float64 rounding."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, *(4 + i for i in range(len(factors)))))
    want = run((Resize(factors, interpolation),), x, np.zeros(()))
    got = torch_steps.resize(torch.from_numpy(x), factors, interpolation).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("length", [1, 2, 3, 7])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "zeros"])
def test_padding_wider_than_the_map_means_numpy_pad(length, mode):
    x = np.arange(2.0 * length).reshape(1, 2, length)
    want = run((Pad(((5, 4),), mode),), x, np.zeros(()))
    got = torch_steps.pad(torch.from_numpy(x), ((5, 4),), mode)
    assert np.array_equal(got.numpy(), want)


class Modulated(nn.Module):
    """StyleGAN2's trick: one group for each sample, weights made from the style."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.style = nn.Linear(5, 4)

    def forward(self, x, z):
        batch = x.shape[0]
        weight = self.weight * self.style(z)[:, :, None, None, None]
        y = self.function(
            x.reshape(1, -1, *x.shape[2:]), weight.reshape(-1, 3, 3, 3), None, 2, 1, 0, batch
        )
        return y.reshape(batch, 3, *y.shape[2:])


def modulated_pair():
    old, new = Modulated(F.conv_transpose2d), Modulated(torch_steps.conv_transpose)
    new.load_state_dict(old.state_dict())
    return old.double(), new.double()


@pytest.mark.skipif(torch.__version__ < "2.9", reason="torch.compile of torch 2.9 is needed")
def test_groups_and_batch_may_be_symbolic():
    old, new = modulated_pair()
    batch, height = torch.export.Dim("batch"), torch.export.Dim("height")
    example = (torch.randn(3, 4, 5, 6).double(), torch.randn(3, 5).double())
    program = torch.export.export(
        new, example, dynamic_shapes={"x": {0: batch, 2: height}, "z": {0: batch}}, strict=False
    )
    x, z = torch.randn(2, 4, 7, 6).double(), torch.randn(2, 5).double()
    # 36 terms, values below 10: far from 1e-12 in float64
    torch.testing.assert_close(program.module()(x, z), old(x, z), rtol=0, atol=1e-12)


@pytest.mark.skipif(
    torch.__version__ < "2.13", reason="torch 2.9 breaks graphs at match statements"
)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_a_graph_break(dynamic):
    old, new = modulated_pair()
    compiled = torch.compile(new, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    x, z = torch.randn(3, 4, 5, 6).double(), torch.randn(3, 5).double()
    torch.testing.assert_close(compiled(x, z), old(x, z), rtol=0, atol=1e-12)
