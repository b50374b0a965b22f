"""What a model is trained on: as many versions and shifts as there is time for."""

import numpy as np
import pytest

from deconvfix.fixing.goals import Goals
from deconvfix.fixing.runs import ALL_SHIFTS
from deconvfix.frontends.base import Probe


class Front:
    """Tells what it was asked for."""

    def __init__(self, spins=True, varies=True):
        self.spins, self.varies, self.asked = spins, varies, []

    def cycle_spun(self, model, inputs, periods, most, seed):
        self.asked.append((inputs, most))
        return [np.zeros((1, 1, 4, 4))] if self.spins else None

    def varied(self, inputs, seed):
        return f"{inputs} in another way" if self.varies else None

    def constant_like(self, inputs, seed):
        return f"{inputs} all over"

    def unused(self, *args):
        raise AssertionError

    def run(self, model, inputs):
        return Probe(run=self.unused, outputs=(np.full((1, 1, 2), BATCHES.index(inputs[0])),))

    can_grow = False
    shuffles = drawn_batches = restore = cost = with_arrays = unused


BATCHES = ["a", "b", "c", "d"]


def taught(front, affordable):
    # An output of two pixels has no room for a grid: less its grid it is itself.
    return Goals(front, None, (), {0: (8,)}, BATCHES, None, 0).examples(affordable)


@pytest.mark.parametrize(
    ("affordable", "versions", "shifts"),
    [(1000, 3, 16), (4 * 48, 2, 16), (4 * 20, 0, 16), (4 * 8, 0, 8), (0, 0, 4)],
)
def test_time_goes_into_shifts_first_and_then_into_versions(affordable, versions, shifts):
    front = Front()
    inputs, targets = taught(front, affordable)
    assert len(inputs) == len(targets)
    assert inputs[:4] == BATCHES
    assert sum("another way" in x for x in inputs) == 4 * versions
    assert inputs[-2:] == ["a all over", "d all over"]
    assert {most for x, most in front.asked if "all over" not in x} == {shifts}
    assert {most for x, most in front.asked if "all over" in x} == {ALL_SHIFTS}


def test_without_shifts_the_goal_is_another_and_there_are_no_constants():
    inputs, targets = taught(Front(spins=False), 4 * 32)
    assert [int(values[0, 0, 0]) for [values] in targets] == [BATCHES.index(x[0]) for x in inputs]
    assert len(inputs) == 8


def test_what_is_no_picture_comes_as_it_is():
    inputs, _ = taught(Front(varies=False), 1000)
    assert inputs[:4] == BATCHES
    assert len(inputs) == 6
