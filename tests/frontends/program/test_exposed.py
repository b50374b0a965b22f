"""Convolutions in front of pixel shuffles in programs: found, the same function, corrected in place."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import deconvfix
from deconvfix.frontends.program.exposed import (
    as_in,
    shows_shuffles,
    with_shuffled,
    with_transposed,
)
from deconvfix.frontends.program.restore import copy_program
from deconvfix.frontends.torch.shuffles import executed_shuffles, shuffled_parameters


class Shuffling(nn.Module):
    """Two shuffles, written differently, and a transposed convolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 20, 3, padding=1)
        self.second = nn.Conv2d(5, 18, (3, 5), padding=(1, 2), groups=1, bias=False)
        self.last = nn.ConvTranspose2d(3, 2, 4, 2, 1)

    def forward(self, x):
        x = F.pixel_shuffle(torch.relu(self.first(x)), 2)
        y = self.second(x)
        n, _, h, w = y.shape
        # Phases first, two rows by three columns.
        y = y.view(n, 2, 3, 3, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, 3, 2 * h, 3 * w)
        return self.last(torch.tanh(y))


X = torch.linspace(-1, 1, 2 * 3 * 7 * 8).sin().reshape(2, 3, 7, 8)


@pytest.fixture(scope="module", params=[False, True], ids=["fixed", "open"])
def program(request):
    dim = torch.export.Dim
    sizes = {0: dim("n", max=8), 2: dim("h", min=4, max=64), 3: dim("w", min=4, max=64)}
    return torch.export.export(
        Shuffling().eval(), (X,), dynamic_shapes={"x": sizes} if request.param else None
    )


def names(program):
    return [str(node.target) for node in program.graph.nodes]


def stored(program):
    return {name: value.detach() for name, value in program.state_dict.items()}


def test_found_by_their_weights(program):
    found, notes = shuffled_parameters(program.module(), (X,))
    assert not notes
    assert {name: channels.shape for name, channels in found.items()} == {
        "first.weight": (5, 2, 2),
        "second.weight": (3, 2, 3),
    }
    assert [s.factors for s in executed_shuffles(program.module(), (X,))] == [(2, 2), (2, 3)]


def test_the_same_function_there_and_back(program):
    shown, notes = with_transposed(copy_program(program), (X,))
    assert not notes
    assert shows_shuffles(shown)
    assert not shows_shuffles(program)
    assert sum("conv_transpose" in target for target in names(shown)) == 3
    shown.validate()
    # Sums of a few dozen products of size one, in another order.
    assert torch.allclose(shown.module()(X), program.module()(X), rtol=0, atol=1e-5)
    again = as_in(copy_program(program), shown)
    assert torch.equal(again.module()(X), shown.module()(X))
    back = with_shuffled(shown)
    assert names(back) == names(program)
    assert [*back.state_dict] == [*program.state_dict]
    for name, value in program.state_dict.items():
        assert torch.equal(back.state_dict[name], value)


@pytest.mark.parametrize(
    "options", [{"init": "fit"}, {"calibration": [(X.cos(),), (X * 2,), (X.tan(),)]}]
)
def test_corrected_in_place(program, options, tmp_path):
    converted = deconvfix.convert(program, to="equalized", example_inputs=(X,), **options)
    layers = {layer.name: layer for layer in converted.report.layers}
    assert {name: layer.op for name, layer in layers.items()} == {
        "first": "Conv2d + PixelShuffle",
        "second": "Conv2d + PixelShuffle",
        "last": "conv_transpose2d",
    }
    assert {layer.decision for layer in layers.values()} == {"replaced"}
    assert names(converted.model) == names(program)
    torch.export.save(converted.model, tmp_path / "corrected.pt2")
    state = stored(torch.export.load(tmp_path / "corrected.pt2"))
    # By definition: the taps of each phase of a channel have one sum, and its bias no phases.
    sums = state["first.weight"].double().sum((2, 3)).reshape(5, 4, 3)
    assert np.ptp(sums.numpy(), axis=1).max() < 1e-5
    assert torch.equal(
        state["first.bias"].reshape(5, 4), state["first.bias"].reshape(5, 4)[:, :1].expand(5, 4)
    )
    sums = state["second.weight"].double().sum((2, 3)).reshape(6, 3, 5)
    assert np.ptp(sums.numpy(), axis=0).max() < 1e-5
    before = stored(program)["first.weight"].double().sum((2, 3)).reshape(5, 4, 3)
    assert np.ptp(before.numpy(), axis=1).max() > 0.01


def test_other_forms_leave_them_alone(program):
    assert [layer.name for layer in deconvfix.convert(program).report.layers] == ["last"]
