"""Convolutions in front of pixel shuffles: found, the same function in both ways, corrected in place."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import deconvfix
from deconvfix.frontends.torch.exposed import as_in, shuffled_by, with_shuffled, with_transposed
from deconvfix.frontends.torch.shuffles import executed_shuffles, shuffled_layers

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Shuffling(nn.Module):
    """A convolution, something for each element, and a shuffle in one of the ways that people write it."""

    def __init__(self, ndim, factors, kernel, groups, bias, mode, order, between, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.factors, self.order, self.between = factors, order, between
        phases = int(np.prod(factors))
        self.up = CONVOLUTIONS[ndim](
            2 * groups, 3 * groups * phases, kernel, padding=tuple(k // 2 for k in kernel), groups=groups,
            bias=bias, padding_mode=mode,
        )  # fmt: skip
        self.last = CONVOLUTIONS[ndim](3 * groups, 2, 1)

    def shuffled(self, y):
        n, ndim = len(y), len(self.factors)
        sizes = y.shape[2:]
        after = [s * r for s, r in zip(sizes, self.factors, strict=True)]
        if self.order == "torch":
            return F.pixel_shuffle(y, self.factors[0])
        interleaved = [axis for i in range(ndim) for axis in (2 + ndim + i, 2 + i)]
        if self.order == "channels first":  # depth to space, CRD
            y = y.reshape(n, -1, *self.factors, *sizes)
            return y.permute(0, 1, *interleaved).reshape(n, -1, *after)
        # Phases first: depth to space, DCR.
        y = y.view(n, *self.factors, -1, *sizes)
        places = [axis for i in range(ndim) for axis in (2 + ndim + i, 1 + i)]
        return y.permute(0, 1 + ndim, *places).flatten(0, 1).reshape(n, -1, *after)

    def forward(self, x):
        return self.last(torch.tanh(self.shuffled(self.between(self.up(x)))))


@st.composite
def networks(draw):
    ndim = draw(st.integers(1, 3))
    factors = tuple(draw(st.integers(1, 3 if ndim < 3 else 2)) for _ in range(ndim))
    if max(factors) == 1:
        factors = (2, *factors[1:])
    orders = ["channels first", "phases first"]
    if ndim == 2 and len(set(factors)) == 1:
        orders.append("torch")
    order = draw(st.sampled_from(orders))
    kernel = tuple(draw(st.sampled_from([1, 3])) for _ in range(ndim))
    groups = 1 if order == "phases first" else draw(st.integers(1, 2))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate"]))
    between = draw(st.sampled_from([nn.Identity(), nn.ReLU(), nn.SiLU(), nn.LeakyReLU(0.1)]))
    sizes = tuple(draw(st.integers(3, 5)) for _ in range(ndim))
    model = Shuffling(
        ndim,
        factors,
        kernel,
        groups,
        draw(st.booleans()),
        mode,
        order,
        between,
        draw(st.integers(0, 99)),
    )
    return model.double().eval(), torch.randn(2, 2 * groups, *sizes).double(), factors


@settings(max_examples=60)
@given(networks())
def test_found_and_the_same_function_there_and_back(case):
    model, x, factors = case
    layers, notes = shuffled_layers(model, (x,))
    assert (list(layers), notes) == (["up"], ())
    assert {shuffle.factors for shuffle in executed_shuffles(model, (x,))} == {factors}
    shown, _ = with_transposed(copy.deepcopy(model), (x,))
    assert type(shown.up) in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    assert shown.up.stride == factors
    with torch.no_grad():
        # Sums of as many products, in another order.
        assert torch.allclose(shown(x), model(x), rtol=0, atol=1e-12)
        assert torch.allclose(as_in(copy.deepcopy(model), shown)(x), model(x), rtol=0, atol=1e-12)
    back = with_shuffled(shown)
    assert [*back.state_dict()] == [*model.state_dict()]
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)


@settings(max_examples=30)
@given(networks())
def test_corrected_in_place(case):
    model, x, _ = case
    converted = deconvfix.convert(model, to="equalized", init="fit", example_inputs=(x,))
    layer = converted.report.layers[0]
    assert (layer.name, layer.decision) == ("up", "replaced")
    assert layer.op == f"{type(model.up).__name__} + PixelShuffle"
    assert type(converted.model.up) is type(model.up)
    shapes = {name: value.shape for name, value in converted.model.state_dict().items()}
    assert shapes == {name: value.shape for name, value in model.state_dict().items()}
    constant = torch.full((1, x.shape[1], *(14,) * (x.dim() - 2)), 0.3).double()

    def phases(network):
        with torch.no_grad():
            inner = network(constant)[
                (0, 0, *(slice(12, 24) if r > 1 else slice(4, 8) for r in model.factors))
            ]
        return float(inner.std())

    # Rounding of sums of a few dozen products of size one, and what a trained network has.
    assert phases(converted.model) < 1e-12 < 1e-4 < phases(model)


def pixel_shuffle_network(up):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), up, nn.PixelShuffle(2), nn.Conv2d(3, 3, 1)
    )


def test_weight_norm_stays():
    torch.manual_seed(0)
    model = pixel_shuffle_network(
        parametrizations.weight_norm(nn.Conv2d(4, 12, 3, padding=1))
    ).eval()
    x = torch.randn(2, 3, 9, 8)
    inputs = [(torch.randn(4, 3, 9, 8),) for _ in range(3)]
    converted = deconvfix.convert(model, to="equalized", calibration=inputs, example_inputs=(x,))
    assert converted.report.layers[0].decision == "replaced"
    assert [*converted.model.state_dict()] == [*model.state_dict()]
    with torch.no_grad():
        flat = converted.model(torch.full((1, 3, 20, 21), 0.4))[0, :, 10:-10, 10:-10]
        assert float(flat.std((1, 2)).max()) < 1e-5


def test_inspect_recommends_the_correction_in_place():
    torch.manual_seed(0)
    model = pixel_shuffle_network(nn.Conv2d(4, 12, 3, padding=1)).eval()
    [layer] = deconvfix.inspect(model, (torch.randn(1, 3, 9, 8),)).layers
    assert (layer.name, layer.recommendation.form) == ("2", "equalized")


def test_a_larger_kernel_is_refused():
    model = pixel_shuffle_network(nn.Conv2d(4, 12, 3, padding=1)).eval()
    converted = deconvfix.convert(
        model, to="equalized", init="fit", grow=1, example_inputs=(torch.randn(1, 3, 9, 8),)
    )
    [layer] = converted.report.layers
    assert layer.decision == "refused"
    assert "pixel shuffle" in layer.reason


def test_other_forms_leave_it_alone():
    model = pixel_shuffle_network(nn.Conv2d(4, 12, 3, padding=1)).eval()
    converted = deconvfix.convert(model, example_inputs=(torch.randn(1, 3, 9, 8),))
    assert not converted.report.layers


def test_without_inputs_and_in_place_it_is_said():
    model = pixel_shuffle_network(nn.Conv2d(4, 12, 3, padding=1)).eval()
    found = deconvfix.convert(model, to="equalized", init="fit")
    assert any(note.startswith("No inputs: whether") for note in found.report.notes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    example = (torch.randn(1, 3, 9, 8),)
    found = deconvfix.convert(
        model, to="equalized", init="fit", example_inputs=example, inplace=True
    )
    assert any("stay as they are with `inplace`" in note for note in found.report.notes)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Latent(nn.Module):
    """A latent that becomes a map: a reshape, and no shuffle."""

    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(4, 3 * 16, 1)

    def forward(self, z):
        return self.project(z).reshape(len(z), 3, 4, 4)


class Twice(nn.Module):
    """A layer that is shuffled once, and once not."""

    def __init__(self):
        super().__init__()
        self.up = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, x):
        return F.pixel_shuffle(self.up(x), 2).mean() + self.up(x)


class Mixed(nn.Module):
    """Something between the layer and the shuffle that is no matter of one element."""

    def __init__(self):
        super().__init__()
        self.up = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, x):
        return F.pixel_shuffle(F.softmax(self.up(x), 1), 2)


def hooked():
    model = pixel_shuffle_network(nn.Conv2d(4, 12, 3, padding=1))
    model[2].register_forward_hook(lambda module, args, output: output * 2)
    return model


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Latent(), (2, 4, 1, 1)),
        (Twice(), (1, 3, 6, 7)),
        (Mixed(), (1, 3, 6, 7)),
        (hooked(), (1, 3, 6, 7)),
        (pixel_shuffle_network(nn.Conv2d(4, 12, 3, padding=2, dilation=2)), (1, 3, 6, 7)),
        (pixel_shuffle_network(nn.Conv2d(4, 12, 3, padding=1, stride=2)), (1, 3, 6, 7)),
        (nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2)), (1, 3, 6, 8)),
    ],
)
def test_what_is_none_is_left_alone(model, shape):
    shown, notes = with_transposed(model, (torch.randn(shape),))
    assert not any(shuffled_by(module) for module in shown.modules())
    assert bool(notes) == (not isinstance(model, Latent))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_interpolation_is_said_and_left_alone(mode):
    model = nn.Sequential(
        nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(3, 2, 3, padding=1)
    ).eval()
    found = deconvfix.inspect(model, (torch.randn(1, 3, 9, 8),))
    assert not found.layers
    assert any(note.startswith("1 upsampling by interpolation") for note in found.notes)


class Residual(nn.Module):
    """As video decoders do it: the input, rearranged and repeated, beside the convolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Conv3d(8, 16, 3, padding=1)

    def rearranged(self, x):
        n, _, t, h, w = x.shape
        x = x.reshape(n, -1, 2, 2, 2, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def forward(self, x):
        return self.rearranged(self.up(x)) + self.rearranged(x).repeat(1, 2, 1, 1, 1)


def test_a_residual_beside_it_is_said():
    model, x = Residual().eval(), torch.randn(1, 8, 3, 4, 5)
    found = deconvfix.inspect(model, (x,))
    assert [layer.name for layer in found.layers] == ["up"]
    assert any(note.startswith("1 pixel shuffle spreads something else") for note in found.notes)
    assert len(executed_shuffles(model, (x,))) == 2
