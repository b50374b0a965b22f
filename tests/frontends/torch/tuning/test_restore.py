"""Cycle spinning and the training of a model's own weights."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from deconvfix.frontends.base import Restoration
from deconvfix.frontends.torch.tuning.restore import (
    _locked,
    constant_like,
    cost,
    cycle_spun,
    restore,
)
from tests.support.gridded import gridded, pictures_for


def test_cycle_spinning_is_its_definition():
    """Each shift by itself: move, run, move back, and the mean of all."""
    model, (x, *_) = gridded(), pictures_for(4, side=16)
    (got,) = cycle_spun(model, x, {0: (2, 2)}, 64, 0)
    wide = functional.pad(x, (2, 2, 2, 2), mode="reflect")
    total = np.zeros(x.shape)
    for row, column in itertools.product(range(2), range(2)):
        with torch.no_grad():
            y = model(wide[:, :, row : row + 18, column : column + 18])
        total += y[:, :, 2 - row : 18 - row, 2 - column : 18 - column].numpy()
    np.testing.assert_allclose(got, total / 4, atol=1e-6)


def test_what_commutes_with_shifts_stays_as_it_is():
    model = nn.Conv2d(3, 2, 1)
    x = torch.randn(2, 3, 12, 12)
    (got,) = cycle_spun(model, x, {0: (4, 4)}, 64, 0)
    np.testing.assert_allclose(got, model(x).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "x", "period"),
    [
        (nn.ConvTranspose2d(3, 2, 2, 2), torch.ones(1, 3, 8, 8), (2, 2)),
        (nn.Conv2d(3, 2, 3), torch.ones(1, 3, 8, 8), (2, 2)),
        (nn.Flatten(), torch.ones(1, 3, 8, 8), (2, 2)),
        (nn.Linear(8, 8), torch.ones(1, 8), (2, 2)),
    ],
    ids=["a shift is a period", "another size", "no map", "no picture"],
)
def test_where_pixels_do_not_correspond_there_is_none(model, x, period):
    assert cycle_spun(model, x, {0: period}, 64, 0) is None


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


def test_constants_have_the_means_of_the_channels():
    x = torch.randn(2, 3, 4, 5)
    (got,) = constant_like(x).args
    assert got.shape == x.shape
    torch.testing.assert_close(got[1, 2, 3, 4], x[1, 2].mean())
    assert got.var((2, 3)).max() < 1e-12


def test_cost_counts_operations():
    narrow, wide = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 8, 3)
    x = torch.ones(1, 3, 8, 8)
    assert cost(wide, (x,)) == 2 * cost(narrow, (x,)) > 0
