"""What counts as worse, each on its own."""

from dataclasses import replace

import pytest

from deconvfix.fixing.judge import objections
from deconvfix.fixing.report import Measured

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
