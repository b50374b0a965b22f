"""A decoder whose grid is measured."""

import torch
from torch import nn

import deconvfix
from tests.support.networks import smooth_batches

# Each tap of a float32 weight rounds by 6e-8 of its size, -144 dB; a few dozen are summed up.
ROUNDED_DB = -120


def decoder():
    """Strides 2 and 2, a frozen look at positive features, so that there is a level."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1),
    ).eval()


def convert(model, **options):
    options = {"to": "equalized", "init": "calibrated", **options}
    if options["init"] != "fit":
        options.setdefault("calibration", smooth_batches((4, 3, 16, 12)))
    return deconvfix.convert(model, **options)


def cancelling(kernel):
    """A layer, and the mean over each period of what it makes, which takes its grid away."""
    layer = nn.ConvTranspose2d(1, 1, 2, stride=2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(kernel).reshape(1, 1, 2, 2))
    return nn.Sequential(layer, nn.AvgPool2d(2, stride=1))


CALIBRATED = ("--to", "equalized", "--init", "calibrated", "--calibration")
