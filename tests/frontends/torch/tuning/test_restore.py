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
    _SMOOTH,
    _locked,
    _Loss,
    _matrices,
    cost,
    restore,
)
from deconvfix.frontends.torch.tuning.teacher import cycle_spun
from tests.support.gridded import gridded, pictures_for


def test_the_locked_part_is_that_of_its_definition():
    """Patch by patch, with the weight of a patch from what its goal varies, against the mean of that."""
    error = torch.randn(2, 3, 16, 8, dtype=torch.float64)
    goal = torch.randn(2, 3, 16, 8, dtype=torch.float64)
    goal[0, :, :8] = goal[0, :, :1, :1]
    power, rough = [], []
    for n, i in itertools.product(range(2), range(2)):
        patch = error[n, :, 8 * i : 8 * i + 8]
        means = torch.stack([patch[:, a::2, b::2].mean((1, 2)) for a in (0, 1) for b in (0, 1)])
        power.append((means - means.mean(0)).square().mean())
        rough.append(goal[n, :, 8 * i : 8 * i + 8].var((1, 2), correction=0).mean())
    mean = torch.stack(rough).mean()
    weights = [_SMOOTH * mean / ((_SMOOTH - 1) * each + mean) for each in rough]
    want = torch.stack([w * p for w, p in zip(weights, power, strict=True)]).mean()
    torch.testing.assert_close(_locked(error, goal, (2, 2)), want)
    assert weights[0] == pytest.approx(_SMOOTH)


def test_the_locked_part_of_a_constant_goal_counts():
    error = torch.zeros(1, 1, 8, 8)
    error[..., ::2, :] = 1
    flat = _locked(error, torch.zeros_like(error), (2, 2))
    torch.testing.assert_close(flat, torch.tensor(0.25 * _SMOOTH))


def test_the_loss_is_its_definition():
    """Distance, what is locked, and the mean of each sample and channel, over the variance of the goal."""
    goal = torch.randn(2, 3, 16, 8, dtype=torch.float64)
    output = torch.randn(2, 3, 16, 8, dtype=torch.float64)
    pairs = [Inputs((Inputs((output[i : i + 1],), {}), [goal[i : i + 1]]), {}) for i in range(2)]
    got = _Loss(nn.Identity(), {}, {0: (2, 2)}, True, [0.0])(pairs)
    error = output - goal
    colour = np.mean([float(error[n, c].mean()) ** 2 for n in range(2) for c in range(3)])
    want = error.square().mean() + _LOCKED * _locked(error, goal, (2, 2)) + _COLOUR * colour
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
