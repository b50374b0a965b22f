"""Integers with equal sums: by definition, against all other integers, and against plain rounding."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvfix.core.phases import phase_of_taps
from deconvfix.fit.integers import rounded_with_sums
from deconvfix.fit.least_squares import equal_phase_sums

# Numbers of taps of the phases: different ones, and single ones.
phase_sizes = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def positions(sizes):
    """The taps of the phases, interleaved so that no phase is a slice."""
    rng = np.random.default_rng(len(sizes))
    ends = np.cumsum(sizes)
    return np.split(rng.permutation(ends[-1]), ends[:-1])


def even(rng, kernels, phases, scale):
    """Random taps whose phases have equal sums."""
    taps = scale * rng.standard_normal((kernels, sum(map(len, phases))))
    common = np.stack([taps[:, phase].sum(1) for phase in phases], 1).mean(1)
    for phase in phases:
        taps[:, phase] += ((common - taps[:, phase].sum(1)) / len(phase))[:, None]
    return taps


def limits(kernels, low, high):
    return np.full(kernels, low), np.full(kernels, high)


@given(phase_sizes, st.integers(0, 2**32 - 1), st.sampled_from([0.3, 4.0, 40.0]))
def test_equal_sums_stay_equal_and_no_tap_moves_by_a_unit(sizes, seed, scale):
    phases = positions(sizes)
    taps = even(np.random.default_rng(seed), 7, phases, scale)
    got = rounded_with_sums(taps, phases, *limits(7, -(10**6), 10**6))
    sums = np.stack([got[:, phase].sum(1) for phase in phases], 1)
    assert (sums == sums[:, :1]).all()
    assert np.abs(got - taps).max() < 1
    # The common sum is the closest integer; halves may go either way, by what rounding made of them.
    wanted = np.stack([taps[:, phase].sum(1) for phase in phases], 1).mean(1)
    assert np.abs(sums[:, 0] - wanted).max() <= 0.5 + 1e-9


@given(phase_sizes, st.integers(0, 2**32 - 1))
def test_integers_with_equal_sums_are_left_alone(sizes, seed):
    phases = positions(sizes)
    rng = np.random.default_rng(seed)
    taps = rng.integers(-50, 50, (5, sum(sizes)))
    for phase in phases:
        taps[:, phase[0]] += 7 - taps[:, phase].sum(1)
    got = rounded_with_sums(taps.astype(float), phases, *limits(5, -999, 999))
    np.testing.assert_array_equal(got, taps)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("low", "high"), [(-3, 3), (-1, 2), (0, 3)], ids=str)
def test_no_other_integers_with_these_sums_are_closer(seed, low, high):
    """All integers of the range are tried, for kernels that reach its ends."""
    rng = np.random.default_rng(seed)
    sizes = [3, 1, 2]
    phases = positions(sizes)
    taps = np.clip(even(rng, 9, phases, 1.5), low, high)
    got = rounded_with_sums(taps, phases, *limits(9, low, high))
    assert low <= got.min() <= got.max() <= high
    for phase in phases:
        every = np.array(list(itertools.product(range(low, high + 1), repeat=len(phase))))
        for row, chosen in zip(taps[:, phase], got[:, phase], strict=True):
            same = every[every.sum(1) == chosen.sum()]
            best = np.square(same - row).sum(1).min()
            assert np.square(chosen - row).sum() <= best + 1e-12


def test_each_kernel_has_its_own_range():
    taps = np.array([[2.4, 2.4, 2.4]] * 2)
    got = rounded_with_sums(taps, [np.arange(3)], np.array([-9, -9]), np.array([9, 2]))
    assert got.max(1).tolist() == [3, 2]
    assert got.sum(1).tolist() == [7, 6]  # as near as two of each allow


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [((3, 3), (2, 2), (1, 1)), ((4, 5), (2, 3), (1, 2)), ((6,), (4,), (1,))],
)
def test_plain_rounding_has_a_grid_where_this_has_none(kernel, stride, dilation):
    """The negative control: the same kernels, each tap rounded on its own."""
    rng = np.random.default_rng(2)
    phases = phase_of_taps(kernel, stride, dilation)
    weight = equal_phase_sums(20 * rng.standard_normal((5, 3, *kernel)), phases, stride)
    number = np.zeros(kernel, int)
    for axis, (phase, s) in enumerate(zip(phases, stride, strict=True)):
        number = number * s + phase.reshape(-1, *(1,) * (len(kernel) - 1 - axis))
    places = [np.flatnonzero(number.ravel() == f) for f in range(np.prod(stride))]
    taps = weight.reshape(15, -1)
    ours = rounded_with_sums(taps, places, *limits(15, -127, 127))
    plain = np.rint(taps).astype(int)

    def spread(integers):
        return np.ptp([integers[:, place].sum(1) for place in places], axis=0)

    assert (spread(ours) == 0).all()
    assert (spread(plain) > 0).mean() > 0.2
