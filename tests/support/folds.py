"""Convolutions behind nearest upsampling, with whole numbers: what is folded is exact, and equal."""

import torch
from hypothesis import strategies as st
from torch import nn

from tests.support.strategies import upsamplings

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def whole(model, seed=0):
    """Whole numbers for all parameters, odd ones for weights."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 2.0 * torch.randint(-3, 3, parameter.shape, generator=generator) + 1
    return model.eval()


def whole_input(*shape, seed=1):
    return torch.randint(-5, 6, shape, generator=torch.Generator().manual_seed(seed)).float()


@st.composite
def geometries(draw):
    pair = draw(upsamplings())
    most = {1: 5, 2: 4, 3: 3}[len(pair.factors)]
    limits = (s - 1 if pair.mode == "reflect" else most + 1 for s in pair.factors)
    layer = CONVOLUTIONS[len(pair.factors)](
        pair.in_channels, pair.out_channels, pair.kernel, groups=pair.groups, bias=pair.bias,
        padding=tuple(draw(st.integers(0, limit)) for limit in limits), padding_mode=pair.mode,
    )  # fmt: skip
    return layer, pair.factors, pair.sizes, pair.seed
