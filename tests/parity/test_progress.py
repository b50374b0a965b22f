"""What whoever waits is told."""

import pytest

from deconvfix.parity import progress
from deconvfix.parity.progress import Stage, heard, step_by_step


@pytest.fixture
def clock(monkeypatch):
    """Two seconds for each look at it."""
    times = iter(range(0, 99, 2))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))


def test_each_step_is_told_with_its_share_and_the_time_that_is_left(clock):
    told = []
    with heard(told.append):
        assert list(step_by_step("Comparing", "abcd")) == [*"abcd"]
    assert told == [Stage("Comparing", n, 4, 2.0 * n) for n in (1, 2, 3, 4)]
    assert told[0].words == "Comparing, 1 of 4 (25 %), 6 s left"
    assert told[3].words == "Comparing, 4 of 4 (100 %), 0 s left"


def test_a_step_counts_when_it_is_done(clock):
    told = []
    with heard(told.append):
        steps = step_by_step("Comparing", "ab")
        next(steps)
        assert told == []
        next(steps)
        assert [stage.done for stage in told] == [1]


def test_nobody_needs_to_listen():
    told = []
    with heard(told.append):
        pass
    assert list(step_by_step("Comparing", [3, 4])) == [3, 4]
    assert told == []
