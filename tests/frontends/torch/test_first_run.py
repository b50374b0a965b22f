"""One run of an original: crops of what its layers get, its outputs, and its work."""

import pytest
import torch
from torch import nn

from deconvfix.frontends.torch.calls import Call
from deconvfix.frontends.torch.first_run import cropped, first_run
from deconvfix.frontends.torch.inputs import as_inputs
from tests.support.decoders import Decoder


@pytest.mark.parametrize(
    ("stride", "kernel", "padding", "dilation"),
    [
        ((2, 3), (4, 3), (1, 0), (1, 2)),
        ((1, 4), (3, 9), (2, 5), (1, 1)),
        ((5, 2), (2, 1), (0, 0), (1, 3)),
    ],
)
def test_a_crop_holds_both_borders_and_an_interior(stride, kernel, padding, dilation):
    x = torch.randn(3, 4, 60, 61)
    weight = torch.randn(4, 6, *kernel)
    call = Call("conv_transpose2d", x, weight, None, stride, padding, 0, 1, dilation)
    crop = cropped(call).input
    assert torch.equal(crop, x[:2, :, : crop.shape[2], : crop.shape[3]])
    for size, s, k, d in zip(crop.shape[2:], stride, kernel, dilation, strict=True):
        # An output has so many input pixels at most; the middle one is far from both borders.
        reach = -(-(d * (k - 1) + 1) // s)
        assert 2 * reach + 1 <= size < 60
    assert crop.shape[2] != crop.shape[3]
    assert crop.untyped_storage().nbytes() == crop.numel() * 4


def test_maps_that_are_smaller_stay_whole():
    x = torch.randn(4, 2, 3)
    call = Call("conv_transpose2d", x, torch.randn(4, 6, 4, 4), None, 2, 1)
    assert torch.equal(cropped(call).input, x)


def test_a_run_tells_calls_outputs_and_operations():
    model, x = Decoder().eval(), torch.randn(2, 3, 30, 31)
    run = first_run(model, as_inputs(x))
    with torch.no_grad():
        (output,) = run.outputs
        assert torch.equal(output, model(x))
    assert list(run.calls) == ["first", "second"]
    # Two for each tap that each input pixel meets.
    first, second = (layer.weight[0].numel() for layer in (model.first, model.second))
    assert run.operations == 2 * (x.numel() * first + 2 * 8 * 60 * 62 * second)


def test_running_leaves_the_model_as_it_is():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 2, 2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first_run(model, as_inputs(torch.randn(2, 3, 5, 6)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
