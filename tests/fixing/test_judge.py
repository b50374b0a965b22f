"""What counts as worse, each on its own."""

from dataclasses import replace

import pytest

from deconvfix.fixing.judge import objections
from deconvfix.fixing.report import Measured
from deconvfix.grid.tones import LockedTones

BEFORE = Measured(1.0, 2.0, 33.0, None, 0.0, truth_db=25.0, flat_db=-40.0)
GOOD = Measured(0.1, 0.5, 36.0, 35.0, 0.3, truth_db=25.1, flat_db=-45.0)


def test_better_in_everything_has_nothing_against_it():
    assert not [*objections(BEFORE, GOOD, 1.2, 1.3)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seen": 0.8}, "it leaves a grid of 0.80 steps"),
        ({"worst": 2.2}, "the worst patches go from 2.00 to 2.20"),
        ({"match_db": 32.0}, "further from the outputs without a grid"),
        ({"colour_shift": 1.5}, "the mean of a channel moves by 1.5 steps"),
        ({"truth_db": 24.9}, "its quality falls from 25.00 to 24.90 dB"),
        ({"flat_db": -30.0}, "its answer to a constant ripples more"),
    ],
)
def test_each_thing_that_is_worse_is_named(change, words):
    [found] = objections(BEFORE, replace(GOOD, **change), 1.0, 1.3)
    assert words in found


def test_what_costs_too_much_is_not_taken():
    assert [*objections(BEFORE, GOOD, 1.5, 1.3)] == ["it costs x1.50"]


def test_an_invisible_ripple_is_no_objection():
    """Below a step of 255, whatever it was before."""
    exact = replace(BEFORE, flat_db=-150.0)
    assert not [*objections(exact, replace(GOOD, flat_db=-55.0), 1.0, 1.3)]


TONES = LockedTones(-50.0, -53.0, 0.25, None)
LOUD = Measured(3.2, 3.2, 60.0, None, 0.0, flat_db=-50.0, tones=TONES)
QUIET = replace(LOUD, seen=0.9, worst=0.9, match_db=45.0, tones=replace(TONES, total_db=-61.0))


def test_a_sound_that_is_not_heard_to_differ_has_nothing_against_it():
    """45 dB to the goal is close, however close the original was; another mean is not heard."""
    assert not [*objections(LOUD, replace(QUIET, colour_shift=5.0), 1.0, 1.3)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seen": 3.0}, "it leaves tones in real outputs: 61 dB below the programme"),
        ({"worst": 4.0}, "the tones in silence are louder"),
        ({"match_db": 39.0}, "39.0 dB"),
    ],
)
def test_what_is_heard_is_named(change, words):
    [found] = objections(LOUD, replace(QUIET, **change), 1.0, 1.3)
    assert words in found


def test_closer_than_40_db_is_close_enough():
    close = replace(BEFORE, match_db=55.0)
    assert not [*objections(close, replace(GOOD, match_db=41.0), 1.0, 1.3)]
    assert [*objections(close, replace(GOOD, match_db=39.0), 1.0, 1.3)]


def test_without_training_a_bit_of_quality_may_be_lost():
    less = replace(GOOD, truth_db=24.85)
    assert not [*objections(BEFORE, less, 1.0, 1.3, trained=False)]
    assert [*objections(BEFORE, replace(less, truth_db=24.75), 1.0, 1.3, trained=False)]
