"""The training of a model's own weights."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from deconvfix.frontends.base import Restoration
from deconvfix.frontends.torch.inputs import Inputs
from deconvfix.frontends.torch.tuning.restore import (
    _COLOUR,
    _LOCKED,
    _locked,
    _Loss,
    _matrices,
    cost,
    restore,
)
from deconvfix.frontends.torch.tuning.teacher import cycle_spun
from tests.support.gridded import gridded, pictures_for


def test_the_locked_part_is_that_of_its_definition():
    error = torch.randn(2, 3, 16, 8, dtype=torch.float64)
    want = []
    for n, c, i, j in itertools.product(range(2), range(3), range(2), range(1)):
        patch = error[n, c, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
        means = torch.stack([
            torch.stack([patch[a::2, b::2].mean() for b in range(2)]) for a in range(2)
        ])  # fmt: skip
        want.append((means - means.mean()).square().mean())
    torch.testing.assert_close(_locked(error, (2, 2)), torch.stack(want).mean())


def test_the_loss_is_its_definition():
    """Distance, what is locked, and the mean of each sample and channel, over the variance of the goal."""
    goal = torch.randn(2, 3, 16, 8, dtype=torch.float64)
    output = torch.randn(2, 3, 16, 8, dtype=torch.float64)
    pairs = [Inputs((Inputs((output[i : i + 1],), {}), [goal[i : i + 1]]), {}) for i in range(2)]
    got = _Loss(nn.Identity(), {}, {0: (2, 2)}, True)(pairs)
    error = output - goal
    colour = np.mean([float(error[n, c].mean()) ** 2 for n in range(2) for c in range(3)])
    want = error.square().mean() + _LOCKED * _locked(error, (2, 2)) + _COLOUR * colour
    torch.testing.assert_close(got, want / goal.var())


def test_kernels_are_moved_as_matrices_in_their_own_memory():
    """Those with eight outputs and eight inputs at least; what Muon moves is the kernel itself."""
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(8, 2, 2), nn.Conv2d(2, 7, 3))
    model.append(nn.Conv2d(7, 16, 3).to(memory_format=torch.channels_last))
    found = _matrices(dict(model.named_parameters()))
    assert {name: tuple(matrix.shape) for name, matrix in found.items()} == {
        "0.weight": (8, 36),
        "1.weight": (8, 8),
    }
    with torch.no_grad():
        found["0.weight"].zero_()
    assert not model[0].weight.any()
    assert model[1].weight.any()


@pytest.mark.parametrize("grow", [(), ("up",)])
def test_training_lowers_the_distance(grow):
    model, batches = gridded(), pictures_for(16, side=32)
    targets = [cycle_spun(model, x, {0: (2, 2)}, 64, 0) for x in batches]
    task = Restoration(batches, targets, {0: (2, 2)}, 1.5, 0, grow)
    trained = restore(model, task)
    assert trained.up.kernel_size == ((5, 5) if grow else (3, 3))
    fresh = pictures_for(8, side=32, seed=3)
    for x in fresh:
        (goal,) = cycle_spun(model, x, {0: (2, 2)}, 64, 0)
        with torch.no_grad():
            assert trained(x).shape == model(x).shape
            old, new = (((m(x).numpy() - goal) ** 2).mean() for m in (model, trained))
        assert new < old


def test_a_grown_layer_computes_the_same_at_first():
    """In no time nothing moves: the new taps are zero."""
    model, batches = gridded(), pictures_for(8, side=32)
    nn.utils.parametrizations.weight_norm(model.up)
    targets = [[model(x).detach().numpy()] for x in batches]
    trained = restore(model, Restoration(batches, targets, {0: (2, 2)}, 1e-6, 0, ("up",)))
    assert trained.up.weight.shape[2:] == (5, 5)
    torch.testing.assert_close(trained(batches[0]), model(batches[0]), atol=2e-3, rtol=0)


def test_cost_counts_operations():
    narrow, wide = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 8, 3)
    x = torch.ones(1, 3, 8, 8)
    assert cost(wide, (x,)) == 2 * cost(narrow, (x,)) > 0
