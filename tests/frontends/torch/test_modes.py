"""The watch for transposed convolutions that still run."""

import copy

import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.frontends.torch.modes import executed_transposed_convolutions
from tests.support.decoders import Decoder


def test_the_watch_names_what_still_runs(example):
    model = Decoder()
    assert executed_transposed_convolutions(model, example) == ["first", "second"]
    half = deconvfix.convert(model, include="first").model
    assert executed_transposed_convolutions(half, example) == ["second"]


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, but models made with it exist
def test_the_watch_sees_into_torchscript(example):
    scripted = nn.Sequential(torch.jit.trace(copy.deepcopy(Decoder()), example))
    assert len(executed_transposed_convolutions(scripted, example)) == 2


def test_the_gradient_of_a_convolution_is_not_watched():
    """Its operator is a transposed convolution by arithmetic, not by name."""

    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            with torch.enable_grad():
                x = x.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(self.conv(x).square().sum(), x)
            return gradient

    assert executed_transposed_convolutions(Energy(), (torch.randn(1, 3, 5, 6),)) == []
