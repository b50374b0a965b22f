"""What whoever waits is told."""

import pytest

from deconvfix.parity import progress
from deconvfix.parity.progress import Stage, heard, step_by_step, tell_time


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


def test_work_with_a_time_is_told_in_seconds():
    told = []
    tell_time("Training", 12.4, 30)
    with heard(told.append):
        tell_time("Training", 0.9, 30)
        tell_time("Training", 12.4, 30)
        tell_time("Training", 31.2, 30)
    assert [stage.words for stage in told] == [
        "Training, 12 of 30 s (40 %), 18 s left",
        "Training, 31 of 31 s (100 %), 0 s left",
    ]
