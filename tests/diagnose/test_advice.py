"""Which form is recommended, what it costs, and whether the advice is true."""

import numpy as np
import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.forms import EQUALIZED
from deconvfix.forms.base import Settings
from tests.support.grids import box_filtered, layer
from tests.support.networks import unequal

# --- from the weights ---------------------------------------------------------------------------


def module(spec, weight, kind=nn.ConvTranspose2d):
    made = kind(
        *(spec.in_channels, spec.out_channels, spec.kernel_size, spec.stride), groups=spec.groups
    )
    made.weight.data = torch.from_numpy(weight).float()
    return made


def bilinear(channels, groups):
    made = nn.ConvTranspose2d(channels, channels, 4, 2, 1, groups=groups, bias=False)
    tent = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    with torch.no_grad():
        made.weight.zero_()
        for ci in range(channels):
            made.weight[ci, 0 if groups > 1 else ci] = torch.outer(tent, tent)
    return made


RNG = np.random.default_rng(0)

EQUAL_ONLY = RNG.standard_normal((3, 2, 4, 4))

SHUFFLE_FREE = EQUALIZED.fit(layer(2, 2), Settings(), EQUAL_ONLY)


@pytest.mark.parametrize(
    ("model", "form", "words", "cost"),
    [
        (nn.ConvTranspose2d(3, 2, 3), "keep", "Stride 1", 1.0),
        (unequal(), "equalized", "phase sums differ", 1.0),
        (nn.ConvTranspose2d(3, 2, 1, 2), "resize", "cannot be corrected", 4.0),
        (module(layer(2, 2), SHUFFLE_FREE), "subpixel", "phase sums are equal", 1.0),
        (module(layer(2, 2), box_filtered(layer(2, 2), RNG)), "resize", "nearest", 2.25),
        (bilinear(3, 3), "resize", "linear upsampling alone is enough", 2.25),
        (bilinear(3, 1), "resize", "linear upsampling alone is enough", 2.25),
        (nn.LazyConvTranspose2d(3, 2, 2), None, "", 0),
    ],
    ids=["stride1", "k3s2", "k1s2", "equal", "box", "bilinear", "diagonal", "lazy"],
)
def test_recommended_form_and_its_cost(model, form, words, cost):
    (found,) = deconvfix.inspect(model).layers
    if form is None:
        assert found.recommendation is None
        return
    assert (found.recommendation.form, found.recommendation.relative_macs) == (form, cost)
    assert words in found.recommendation.reason


def test_computed_weights_are_left_to_the_exact_form():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(2, 3, 3, 3))

        def forward(self, x):
            return nn.functional.conv_transpose2d(x, self.w * 2, stride=2)

    found = deconvfix.inspect(Functional(), (torch.randn(1, 2, 12, 13),))
    (each,) = found.layers
    assert (each.recommendation.form, each.sum_rule) == ("subpixel", None)
    assert each.flat_field.apart > 0


# --- gradients ----------------------------------------------------------------------------------


def test_layers_whose_gradient_has_a_grid_are_advice():
    model = nn.ModuleDict(
        {
            "uneven": nn.Conv2d(3, 4, 3, stride=2),
            "even": nn.Conv2d(3, 4, 4, stride=2),
            "dense": nn.Conv2d(3, 4, 3),
            "skip": nn.Conv1d(3, 4, 1, stride=2),
            "pool": nn.MaxPool2d(3, 2),
            "plain": nn.AvgPool2d(2),
            "volume": nn.AvgPool3d((2, 2, 3), (2, 2, 2)),
            "up": nn.ConvTranspose2d(3, 4, 3, 2),
        }
    )
    uneven, skip, pool, volume = deconvfix.inspect(model).advice
    assert uneven.startswith("uneven: Conv2d with kernel 3x3 and stride 2x2: its windows overlap")
    assert skip.startswith("skip: Conv1d with kernel 1 and stride 2: some input pixels get no")
    assert pool.startswith("pool: MaxPool2d with kernel 3x3 and stride 2x2")
    assert volume.startswith("volume: AvgPool3d with kernel 2x2x3 and stride 2x2x2")


def test_the_advice_is_true():
    """Gradients of ones, where the advice says that there is a grid and where it does not."""
    for layer_, has_grid in ((nn.Conv2d(1, 1, 3, stride=2), True), (nn.AvgPool2d(2), False)):
        for parameter in layer_.parameters():
            nn.init.ones_(parameter)
        x = torch.zeros(1, 1, 21, 21, requires_grad=True)
        layer_(x).sum().backward()
        inside = x.grad[0, 0, 4:12, 4:12]
        assert bool(inside.max() > inside.min()) is has_grid
        assert bool(deconvfix.inspect(layer_).advice) is has_grid


class Cancelled(nn.Module):
    """A layer with a strong grid, and a mean over its period behind it."""

    def __init__(self, cancel):
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.ConvTranspose2d(3, 4, 3, 2)
        self.mean = nn.AvgPool2d(2, 1) if cancel else nn.Identity()

    def forward(self, x):
        return self.mean(self.up(x))


@pytest.mark.parametrize(("cancel", "form"), [(True, "subpixel"), (False, "equalized")])
def test_where_no_grid_is_visible_the_exact_form_is_recommended(cancel, form):
    x = (torch.rand(1, 3, 24, 20),)
    (found,) = deconvfix.inspect(Cancelled(cancel), example_inputs=x).layers
    assert found.recommendation.form == form
    assert ("no visible grid" in found.recommendation.reason) is cancel
    (unseen,) = deconvfix.inspect(Cancelled(cancel)).layers
    assert unseen.recommendation.form == "equalized", "without a run nothing is known of the output"
