"""Large layers are compared a few output channels at a time, and nothing of them is left out."""

import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.frontends.torch import calls
from deconvfix.frontends.torch.calls import Call
from deconvfix.frontends.torch.layers import layer_part


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of a single output channel, or of two."""
    monkeypatch.setattr(calls, "_AT_ONCE", 100)


LAYERS = {
    "1-D": (nn.ConvTranspose1d(3, 5, 16, 8, 3), (2, 3, 7)),
    "no bias": (nn.ConvTranspose1d(3, 5, 16, 8, 3, bias=False), (2, 3, 7)),
    "two at once": (nn.ConvTranspose2d(4, 7, (4, 3), (2, 1), 1), (1, 4, 6, 5)),
    "phases without a tap": (nn.ConvTranspose2d(4, 5, (3, 4), (4, 2), 0), (1, 4, 6, 5)),
    "dilated": (nn.ConvTranspose1d(3, 5, 13, 2, 3, dilation=3), (2, 3, 9)),
    "3-D": (nn.ConvTranspose3d(2, 5, (4, 2, 3), (2, 2, 3), 0), (1, 2, 3, 4, 5)),
}


def call_of(layer, x):
    return Call(
        "layer", x, layer.weight, layer.bias, layer.stride, layer.padding, layer.output_padding,
        layer.groups, layer.dilation,
    )  # fmt: skip


@pytest.fixture(params=LAYERS)
def case(request):
    layer, shape = LAYERS[request.param]
    # Integers, so that sums are the same in any order.
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.copy_(torch.randint(-9, 9, parameter.shape, generator=generator))
    x = torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(7)).float()
    return layer, x


def test_parts_are_the_whole(case):
    layer, x = case
    call = call_of(layer, x)
    assert call.is_large
    parts = list(call.parts())
    assert len(parts) > 1
    assert sum(channels.stop - channels.start for _, channels in parts) == layer.out_channels
    function = getattr(torch, f"conv_transpose{x.dim() - 2}d")
    found = torch.cat([function(**part.wide().arguments) for part, _ in parts], 1)
    assert found.dtype == torch.float64
    assert torch.equal(found, layer(x).double())


def test_parts_of_a_converted_layer_are_the_whole(case):
    layer, x = case
    converted = deconvfix.convert(layer, example_inputs=(x,)).model
    parts = call_of(layer, x).parts()
    found = torch.cat([layer_part(converted, channels)(x.double()) for _, channels in parts], 1)
    assert found.dtype == torch.float64
    assert torch.equal(found, layer(x).double())


@pytest.mark.parametrize("channel", range(5))
def test_a_wrong_number_in_any_channel_is_found(channel, monkeypatch):
    layer, x = LAYERS["1-D"][0], torch.randn(2, 3, 7)
    model = nn.Sequential(layer, nn.ReLU()).eval()
    monkeypatch.setattr("deconvfix.frontends.torch.first_run._MOST_WEIGHTS", 1)
    conversion = deconvfix.convert(model, example_inputs=(x,))
    assert "cropped to" in conversion.report.parity.comparisons[0].inputs
    with torch.no_grad():
        conversion.model[0].conv.weight[8 * channel + 3, 1, 0] += 1
    report = deconvfix.verify(model, conversion.model, (x,))
    assert not report.ok
    assert report.first_departure == "0"


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_layers_whose_calls_are_rerouted(norm, monkeypatch):
    model = nn.Sequential(norm(nn.ConvTranspose1d(3, 5, 16, 8, 3)), nn.Tanh()).eval()
    x = torch.randn(2, 3, 7)
    monkeypatch.setattr("deconvfix.frontends.torch.first_run._MOST_WEIGHTS", 1)
    conversion = deconvfix.convert(model, example_inputs=(x,))
    assert conversion.report.proven
    assert "cropped to" in conversion.report.parity.comparisons[0].inputs
    with torch.no_grad():
        for name, parameter in conversion.model.named_parameters():
            if name.endswith(("original0", "weight_g")):
                parameter[1] *= 1.001
    report = deconvfix.verify(model, conversion.model, (x,))
    assert not report.ok
    assert report.first_departure == "0"


def test_groups_and_small_weights_are_taken_at_once(monkeypatch):
    x = torch.randn(1, 4, 9)
    grouped = nn.ConvTranspose1d(4, 6, 30, 8, groups=2)
    assert not call_of(grouped, x).is_large
    monkeypatch.setattr(calls, "_AT_ONCE", 10**6)
    assert not call_of(nn.ConvTranspose1d(4, 6, 30, 8), x).is_large


def test_the_original_is_shared_and_not_changed():
    """What a comparison keeps of the original are the parameters that the user has."""
    from deconvfix.attempt import attempt
    from deconvfix.frontends.registry import enter
    from deconvfix.request import Request

    model = nn.Sequential(nn.ConvTranspose1d(3, 5, 4, 2, 1), nn.BatchNorm1d(5)).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    tried = attempt(*enter(model), Request.of(example_inputs=(torch.randn(2, 3, 7),)))
    assert tried.before is not model
    assert tried.before[0].weight is model[0].weight
    # Buffers are those of a copy: a run may change them.
    assert tried.before[1].running_mean is not model[1].running_mean
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_lazy_original_has_its_parameters_in_the_copy():
    model = nn.Sequential(nn.LazyConvTranspose1d(5, 4, 2, 1), nn.ReLU())
    report = deconvfix.convert(model, example_inputs=(torch.randn(2, 3, 7),)).report
    assert report.proven
