"""A decoder to distil."""

import torch
from torch import nn

import deconvfix
from tests.support.networks import smooth_batches


def decoder():
    """Two converted layers (a wide one, and a weight-normalised one with few outputs), and others."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ConvTranspose2d(3, 9, 4, stride=2, padding=1),
        nn.BatchNorm2d(9),
        nn.LeakyReLU(0.1),
        nn.Conv2d(9, 4, 3, padding=1),
        torch.nn.utils.parametrizations.weight_norm(
            nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1)
        ),
    ).eval()


def convert(model, tuning=None, **options):
    options = {"to": "equalized", "init": "tuned", **options}
    return deconvfix.convert(
        model, calibration=smooth_batches((4, 3, 5, 6)), tuning=tuning, **options
    )


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}
