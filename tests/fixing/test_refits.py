"""How the weight of a closed form is searched for."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from deconvfix.fixing.refits import refitted
from deconvfix.fixing.report import Candidate, Measured

ORIGINAL = Measured(1.0, 2.0, 33.0, None, 0.0)


class Fits:
    """Layers whose fits are judged by `judge(names, weight)`: what is left of the grid, and objections."""

    names = ("one", "two")

    def __init__(self, judge, tried):
        self.judge, self.tried, self.asked = judge, tried, []

    def refit(self, names, weight):
        self.asked.append((names, weight))
        seen, objections = self.judge(names, weight)
        measured = replace(ORIGINAL, seen=seen)
        self.pending = Candidate("", measured, 1.0, True, tuple(objections))
        return None, SimpleNamespace(replaced=names), ["a note"]


def search(judge, seconds=1000.0):
    tried, notes = [], []
    fits = Fits(judge, tried)
    until = time.monotonic() + seconds
    names = []
    for name, _, _, keeps in refitted(fits, ORIGINAL, tried, notes, until):
        tried.append(fits.pending)
        names.append(name)
        assert keeps
    return fits.asked, names, notes


def test_between_what_was_too_much_and_what_was_not():
    asked, names, notes = search(lambda names, weight: (0.1, ["worse"] if weight > 9 else []))
    weights = [weight for names, weight in asked if len(names) == 2]
    assert weights == pytest.approx([20, 5, 10, 50**0.5])
    assert names[0] == "its layers, fitted with weight 20"
    assert names[4] == "its last layers (1), fitted with weight 20"
    assert notes == ["a note"]


def test_more_while_nothing_is_worse():
    asked, _, _ = search(lambda names, weight: (0.1, []))
    assert [weight for names, weight in asked if len(names) == 2] == [20, 80, 320, 1280]


def test_what_leaves_a_grid_and_is_worse_is_given_up():
    asked, _, _ = search(lambda names, weight: (0.9, ["it leaves a grid", "worse"]))
    assert asked == [(("one", "two"), 20), (("two",), 20)]


def test_what_leaves_a_grid_alone_gets_more_weight():
    asked, _, _ = search(lambda names, weight: (0.9, ["it leaves a grid"]))
    assert [weight for names, weight in asked if len(names) == 1] == [20, 80, 320, 1280]


def test_the_time_ends_it():
    asked, _, _ = search(lambda names, weight: (0.1, []), seconds=0)
    assert len(asked) == 1
