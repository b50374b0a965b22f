"""Cycle spinning from runs alone."""

import numpy as np
import pytest

from deconvfix.errors import ModelError
from deconvfix.grid.spinning import cycle_spun


def gridded(x):
    """The identity, with one phase of four (two on each axis) that is brighter."""
    y = x.copy()
    y[..., ::2, 1::2] += 1.0
    return [y]


def test_the_grid_averages_out_and_nothing_else_changes():
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 12))
    [found] = cycle_spun(gridded, x, {0: (2, 2)}, 64, 0)
    np.testing.assert_allclose(found, x + 0.25, atol=1e-12)
    # Against what does nothing: one shift leaves the grid.
    [once] = cycle_spun(gridded, x, {0: (2, 2)}, 1, 0)
    assert np.abs(once - x - 0.25).max() > 0.5


def test_outputs_of_half_the_size_move_by_two_input_pixels():
    """What is locked to a phase of the output, at a ratio below one."""

    def half(x):
        y = x[..., ::2, ::2].copy()
        y[..., ::2, :] += 1.0
        return [y]

    x = np.random.default_rng(0).standard_normal((1, 2, 16, 16))
    [found] = cycle_spun(half, x, {0: (2, 1)}, 64, 0)
    np.testing.assert_allclose(found, x[..., ::2, ::2] + 0.5, atol=1e-12)


def test_a_few_shifts_cover_the_shortest_grids_evenly():
    """Of 64 shifts 16: what repeats with 4 averages out, whatever is drawn."""

    def locked(x):
        y = np.zeros_like(x)
        y[..., ::4, ::4] += 1.0
        return [y]

    x = np.zeros((1, 1, 32, 32))
    for seed in range(3):
        [found] = cycle_spun(locked, x, {0: (8, 8)}, 16, seed)
        np.testing.assert_allclose(found, 1 / 16, atol=1e-12)


def fixed(x):
    if x.shape[2:] != (8, 8):
        raise ModelError("model", "its sizes are fixed", "8 x 8 is needed", "Give that")
    return [x]


@pytest.mark.parametrize(
    ("run", "periods"),
    [
        (fixed, {0: (2, 2)}),
        (lambda x: [x[:, 0, 0]], {0: (2, 2)}),
        (lambda x: [x, x], {0: (2, 2)}),
        # A pixel of the input is a whole period: no shift moves the output within it.
        (lambda x: [np.kron(x, np.ones((2, 2)))], {0: (2, 2)}),
        (lambda x: [x], {0: (8, 8)}),
        (lambda x: [x[..., : x.shape[-1] // 2]], {0: (2, 2)}),
    ],
    ids=[
        "fixed sizes",
        "no map",
        "an output without a grid",
        "whole periods",
        "too small",
        "two ratios",
    ],
)
def test_where_there_is_no_mean_over_shifts(run, periods):
    assert cycle_spun(run, np.zeros((1, 3, 8, 8)), periods, 64, 0) is None
