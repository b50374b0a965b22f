"""Single layers compared: rounding is no departure."""

import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.frontends.torch.parity import compare_modules


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
@pytest.mark.parametrize("stride", [3, 5, 7])
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "weight norm"])
def test_a_kernel_that_divides_up_to_rounding_is_no_departure(stride, interpolation, normed):
    """Thirds are not exact in float32: float64 sees the rounding of the stored weights.

    A wrong kernel is still noticed, in the layer.
    """
    torch.manual_seed(0)
    size = 2 * stride - 1
    taps = 1 - (torch.arange(size) - (size - 1) / 2).abs() / stride
    layer = nn.ConvTranspose2d(2, 3, size, stride, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(2, 3, 1, 1) * torch.outer(taps, taps))
    if normed:
        layer = torch.nn.utils.parametrizations.weight_norm(layer)
    model, x = nn.Sequential(layer, nn.ReLU()), (torch.randn(1, 2, 5, 6),)
    got = deconvfix.convert(
        model,
        to="resize",
        interpolation=interpolation,
        padding_mode="zeros",
        example_inputs=x,
    )
    assert got.report.layers[0].exact
    assert got.report.parity.ok
    assert "layer by layer" in got.report.parity.notes[-1]
    with torch.no_grad():
        got.model[0].conv.weight[0, 0, 0, 0] += 1e-5
    assert not compare_modules(model, got.model, [x], got.plan).ok
