"""A minute of damaged files: each ends with a result, or with a sentence and nothing written.

`python -m tests.fuzz` goes on for as long as you like.
"""

import random

import pytest

from tests.fuzz.readers import TARGETS, changed_json, check

# So many cases of each target, in pieces that run side by side.
PIECES, EACH = 4, 8


@pytest.mark.filterwarnings("ignore")  # torch warns of what is odd in a file
@pytest.mark.parametrize("piece", range(PIECES))
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_damaged_files_end_with_a_sentence(tmp_path, target, piece):
    for number in range(EACH):
        folder = tmp_path / str(number)
        folder.mkdir()
        check(target, random.Random(1000 * piece + number), folder)


def test_a_traceback_is_noticed(tmp_path, monkeypatch):
    """The control."""

    def broken(_):
        raise KeyError("x")

    monkeypatch.setattr("deconvfix.cli.main.convert_file", broken)
    with pytest.raises(KeyError):
        check(TARGETS[2], random.Random(0), tmp_path)


def test_what_is_written_in_spite_of_an_error_is_noticed(tmp_path, monkeypatch):
    from deconvfix.errors import ModelError

    def careless(job):
        job.output.write_text("half of it")
        raise ModelError("a", "b", "c", "d")

    monkeypatch.setattr("deconvfix.cli.main.convert_file", careless)
    with pytest.raises(AssertionError, match="something was written"):
        check(TARGETS[2], random.Random(0), tmp_path)


def test_damage_is_done():
    rng = random.Random(0)
    sound = {"a": [1, 2, {"b": 3}], "c": "d"}
    damaged = [changed_json({"a": [1, 2, {"b": 3}], "c": "d"}, rng) for _ in range(20)]
    assert sum(value != sound for value in damaged) > 15


# What half an hour of `python -m tests.fuzz` found.
FOUND = (
    *(3810, 4271, 5552, 5906, 8400, 9893, 10350, 10450, 12510),
    *(19616, 28094, 33005, 34608),
)


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_before(seed, tmp_path):
    check(TARGETS[seed % len(TARGETS)], random.Random(seed), tmp_path)
