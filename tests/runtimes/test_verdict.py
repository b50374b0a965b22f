"""Verdicts on times whose truth is known: made-up noise, and intervals counted out by hand."""

import itertools
import math

import numpy as np
import pytest

from deconvfix.runtimes.verdict import LOOKS, NO_DIFFERENCE, Verdict, compare


def times(rng, *, seconds=1e-3, loads=8, rounds=4):
    """Noise as machines have it: all of a round, each load, each run, and rare runs that are disturbed."""
    shared = rng.lognormal(0, 0.2, (loads, rounds))
    result = []
    for factor in np.atleast_1d(seconds):
        layout = rng.normal(0, 0.01, (loads, 1))
        own = rng.exponential(0.02, (loads, rounds))
        disturbed = (rng.random((loads, rounds)) < 0.03) * rng.exponential(1.0, (loads, rounds))
        result.append(factor * shared * np.exp(layout + own + disturbed))
    return result


def at_looks(rng, seconds):
    """A verdict as a measurement gives it: after the first look at which it is decided."""
    one, other = times(rng, seconds=seconds, loads=LOOKS[-1])
    for look in LOOKS:
        verdict = compare(one[:look], other[:look])
        if verdict.decided:
            break
    return verdict


def test_the_same_file_against_itself():
    """At most 5 in 100 by the bound; 1000 seeds stay below 5 % and three deviations of that count."""
    rng = np.random.default_rng(0)
    found = [at_looks(rng, (1e-3, 1e-3)).words() for _ in range(1000)]
    assert 1000 - found.count(NO_DIFFERENCE) < 50 + 3 * math.sqrt(1000 * 0.05 * 0.95)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.1, 1.4, 5.0])
def test_a_known_ratio_is_found(ratio):
    rng = np.random.default_rng(1)
    found = [at_looks(rng, (1e-3, 1e-3 / ratio)) for _ in range(100)]
    assert sum(one.faster if ratio > 1 else one.slower for one in found) == 100
    assert sum(one.low <= ratio <= one.high for one in found) >= 95 - 3 * math.sqrt(
        100 * 0.05 * 0.95
    )
    assert np.median([one.ratio for one in found]) == pytest.approx(ratio, rel=0.01)


def test_pairs_that_are_torn_apart_show_little():
    """The control: the noise that a round shares hides a difference of 10 % unless rounds are paired."""
    rng = np.random.default_rng(2)
    paired, torn = 0, 0
    for _ in range(50):
        one, other = times(rng, seconds=(1.1e-3, 1e-3))
        paired += compare(one, other).faster
        torn += compare(one, rng.permuted(other.reshape(-1)).reshape(other.shape)).faster
    assert paired > 45
    assert torn < 25


@pytest.mark.parametrize("count", [7, 8, 10])
def test_the_interval_is_that_of_wilcoxon(count):
    """By counting: every choice of signs, which are equally likely where there is no difference."""
    rng = np.random.default_rng(3)
    logs = rng.normal(0, 1, count)
    sums = [
        sum(rank for rank, sign in enumerate(signs, 1) if sign)
        for signs in itertools.product((0, 1), repeat=count)
    ]
    means = sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement(logs, 2))
    # Outside of the k-th smallest lies the truth where the sum of ranks is below k.
    rank = max(k for k in range(len(means)) if sum(s < k for s in sums) / len(sums) <= 0.025)
    found = compare(np.exp(logs), np.ones(count), confidence=0.95)
    assert math.log(found.low) == pytest.approx(means[rank - 1], abs=1e-12)
    assert math.log(found.high) == pytest.approx(means[-rank], abs=1e-12)
    assert math.log(found.ratio) == pytest.approx(np.median(means), abs=1e-12)


@pytest.mark.parametrize(("loads", "known"), [(1, False), (7, False), (8, True)])
def test_too_few_loads_say_nothing(loads, known):
    """2 / 2^n is the least chance that n signs are equal: 1 % needs 8."""
    found = compare(np.full(loads, 2.0), np.ones(loads))
    assert found.ratio == pytest.approx(2)
    assert (found.words() == NO_DIFFERENCE) is not known
    assert (found.to_dict()["high"] is None) is not known


def test_the_loads_that_both_have_are_compared():
    long = np.concatenate([np.full((8, 4), 2.0), np.full((8, 4), 20.0)])
    assert compare(long, np.ones((8, 4))).ratio == pytest.approx(2)


@pytest.mark.parametrize(("one", "other"), [((0,), (3,)), ((8, 4), (8, 3)), ((8, 4), (8,))])
def test_what_cannot_be_compared(one, other):
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(np.ones(one), np.ones(other))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (1.12, 1.18, "faster by 12 to 18 %"),
        (0.95, 0.97, "slower by 3 to 5 %"),
        (1.0012, 1.0034, "faster by 0.1 to 0.3 %"),
        (1.121, 1.122, "faster by 12 %"),
        (2.04, 2.13, "2 to 2.1 times as fast"),
        (11.2, 14.9, "11 to 15 times as fast"),
        (0.31, 0.42, "0.3 to 0.4 times as fast"),
        (0.99, 1.01, NO_DIFFERENCE),
        (1.0, 1.2, NO_DIFFERENCE),
        (0.8, 1.0, NO_DIFFERENCE),
        (0.0, math.inf, NO_DIFFERENCE),
    ],
)
def test_words(low, high, words):
    assert Verdict(1.0, low, high, 0.99, 8).words() == words


@pytest.mark.parametrize(
    ("low", "high", "decided"),
    [(1.04, 1.5, True), (0.5, 0.96, True), (0.991, 1.009, True), (1.01, 1.08, False), (0.9, 1.2, False)],
)  # fmt: skip
def test_when_more_runs_change_nothing(low, high, decided):
    assert Verdict(1.0, low, high, 0.99, 8).decided is decided
