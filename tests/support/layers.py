"""One layer in every geometry, with integer-valued weights and inputs."""

import copy

import pytest
import torch
from torch import nn

import deconvfix

CLASSES = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

SIZES = {1: (5,), 2: (4, 5), 3: (2, 3, 4)}

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


def reachable(layer, x, end):
    """The least or the largest spatial size that torch accepts as output_size."""
    plain = copy.deepcopy(layer)
    plain.output_padding = (0,) * len(layer.kernel_size)
    least = plain(x).shape[-len(layer.kernel_size) :]
    return tuple(n + (s - 1) * (end == "largest") for n, s in zip(least, layer.stride, strict=True))
