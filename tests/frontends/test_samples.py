"""Calibration batches that are held out."""

import pytest

from deconvfix.frontends.samples import without_heldout


@pytest.mark.parametrize(
    ("count", "heldout"),
    [(0, []), (7, []), (8, [7]), (16, [7, 15]), (23, [7, 15]), (64, [*range(7, 64, 8)])],
)
def test_every_eighth_batch_is_held_out(count, heldout):
    fitted, held = without_heldout(list(range(count)), 64)
    assert held == heldout
    assert sorted([*fitted, *held]) == [*range(count)]


def test_of_very_many_not_more_than_eight_are():
    fitted, held = without_heldout(list(range(1000)), 1000)
    assert len(held) == 8
    assert len(fitted) == 992


def test_of_few_samples_none_is():
    batches = list(range(20))
    assert without_heldout(batches, 63) == (batches, [])
