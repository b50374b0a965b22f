"""A network and layers of every kind to calibrate, with batches for them."""

import pytest
import torch
from torch import nn

from deconvfix.frontends.torch.layers import read_weight, spec_of
from deconvfix.grid.kernel import ripple_db


class Net(nn.Module):
    """A residual connection, two branches, a layer that runs twice, and one that never runs."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1)
        self.side = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.mix = nn.Conv2d(6, 4, 3, padding=1)
        self.twice = nn.ConvTranspose2d(4, 4, (4, 5), stride=2, padding=(1, 2), dilation=1)
        self.never = nn.ConvTranspose2d(4, 4, 4, stride=2)

    def forward(self, x):
        x = torch.relu(self.mix(self.up(x) + self.side(x))) + nn.functional.interpolate(
            x, scale_factor=2
        )
        x = self.twice(x, output_size=[2 * n for n in x.shape[2:]])
        return self.twice(torch.tanh(x)).mean(1)


def smooth_batches(shape, count=6, seed=0):
    """Inputs with the neighbourhood of real features: noise at half the resolution, enlarged."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        coarse = torch.randn(*shape[:2], *(max(2, n // 2) for n in shape[2:]), generator=generator)
        mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[len(shape)]
        batches.append(nn.functional.interpolate(coarse, shape[2:], mode=mode))
    return batches


def error_of(model, other, batches):
    with torch.no_grad():
        return float(sum((model(x) - other(x)).square().sum() for x in batches))


def ripples(model):
    return [
        ripple_db(spec_of(each), read_weight(each.weight))
        for each in model.modules()
        if isinstance(each, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    ]


layers_of_every_kind = pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose1d(4, 6, 7, stride=3, padding=2, groups=2),
        nn.ConvTranspose1d(3, 2, 4, stride=2, padding=3, dilation=3, bias=False),
        nn.ConvTranspose2d(3, 2, (4, 3), stride=(2, 1), padding=1),
        nn.ConvTranspose3d(2, 2, (4, 2, 3), stride=(2, 2, 1), padding=(1, 0, 1)),
        torch.nn.utils.parametrizations.weight_norm(
            nn.ConvTranspose1d(3, 2, 8, stride=4, padding=2)
        ),
    ],
    ids=["groups", "dilation", "anisotropic", "3-D", "weight norm"],
)


def unequal(channels=3):
    return nn.ConvTranspose2d(channels, 2, 3, 2, 1, 1)
