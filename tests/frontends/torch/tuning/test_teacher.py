"""Cycle spinning, and inputs made constant and varied."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from deconvfix.frontends.torch.tuning.teacher import (
    constant_like,
    cycle_spun,
    varied,
)
from deconvfix.grid.spinning import spread_shifts
from tests.support.gridded import gridded, pictures_for


def test_cycle_spinning_is_its_definition():
    """Each shift by itself: move, run, move back, and the mean of all, in the colours of the output."""
    model, (x, *_) = gridded(), pictures_for(4, side=16)
    (got,) = cycle_spun(model, x, {0: (2, 2)}, 64, 0)
    wide = functional.pad(x, (2, 2, 2, 2), mode="reflect")
    total = np.zeros(x.shape)
    for row, column in itertools.product(range(2), range(2)):
        with torch.no_grad():
            y = model(wide[:, :, row : row + 18, column : column + 18])
        total += y[:, :, 2 - row : 18 - row, 2 - column : 18 - column].numpy()
    with torch.no_grad():
        colours = model(x).numpy().mean((2, 3), keepdims=True)
    want = total / 4 - total.mean((2, 3), keepdims=True) / 4 + colours
    np.testing.assert_allclose(got, want, atol=1e-6)


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


@pytest.mark.parametrize(
    ("shifts", "most", "strata"),
    [
        ((8, 8), 64, (8, 8)),
        ((8, 8), 100, (8, 8)),
        ((8, 8), 16, (4, 4)),
        ((8, 8), 4, (2, 2)),
        ((6, 4), 8, (3, 2)),
        ((64,), 16, (16,)),
        ((3, 3), 4, (1, 3)),
        ((2, 2), 1, (1, 1)),
    ],
)
def test_fewer_shifts_meet_the_phases_of_shorter_periods_equally_often(shifts, most, strata):
    chosen = spread_shifts(shifts, most, 0)
    assert len(chosen) == math.prod(strata) <= most
    assert all(0 <= place < n for shift in chosen for place, n in zip(shift, shifts, strict=True))
    met = Counter(
        tuple(place % n for place, n in zip(shift, strata, strict=True)) for shift in chosen
    )
    assert len(met) == len(chosen)


def test_other_shifts_are_drawn_for_another_seed():
    drawn = {tuple(spread_shifts((8, 8), 16, seed)) for seed in range(8)}
    assert len(drawn) == 8


def test_constants_are_pixels_of_their_sample():
    x = torch.randn(3, 2, 4, 5)
    (got,) = constant_like(x, 0).args
    assert got.shape == x.shape
    assert torch.equal(got, got[:, :, :1, :1].expand_as(got))
    for sample, pixel in zip(x, got[:, :, 0, 0], strict=True):
        assert (pixel == sample.flatten(1).T).all(1).any()
    places = [constant_like(x, seed).args[0][0, 0, 0, 0].item() for seed in range(8)]
    assert len(set(places)) > 1
    numbers = torch.arange(6).reshape(1, 2, 3)
    assert torch.equal(constant_like(numbers, 0).args[0], numbers)


def turned(picture):
    """The eight ways to put a square, the first one as it is."""
    for flips in itertools.product((False, True), repeat=3):
        seen = picture.transpose(1, 2) if flips[2] else picture
        yield seen.flip([axis for axis, flip in zip((1, 2), flips, strict=False) if flip])


def test_pictures_are_mirrored_turned_and_more():
    x = torch.rand(64, 3, 12, 12)
    (got,) = varied(x, 0).args
    assert got.shape == x.shape
    assert x.min() <= got.min()
    assert got.max() <= x.max()
    ways = [
        [torch.equal(new, way) for way in turned(old)].index(True)
        if any(torch.equal(new, way) for way in turned(old))
        else None
        for old, new in zip(x, got, strict=True)
    ]
    assert {*range(8)} <= set(ways)
    # Half of them have another contrast, and two fifths are smoother.
    assert 0.5 < ways.count(None) / len(ways) < 0.9
    roughness = got.diff(dim=3).var((1, 2, 3)) / x.diff(dim=3).var((1, 2, 3))
    assert 0.2 < (roughness < 0.15).double().mean() < 0.6
    assert torch.equal(varied(x, 0).args[0], got)
    assert not torch.equal(varied(x, 1).args[0], got)


def test_wide_pictures_are_not_turned():
    x = torch.rand(16, 1, 6, 10)
    assert varied(x, 0).args[0].shape == x.shape


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(2, 8, 4, 4),
        torch.rand(2, 3, 9),
        torch.ones(2, 3, 4, 4, dtype=torch.int64),
        (torch.rand(2, 3, 4, 4), torch.rand(2, 1)),
    ],
    ids=["features", "sound", "integers", "two inputs"],
)
def test_what_is_no_picture_is_not_varied(x):
    assert varied(x, 0) is None
