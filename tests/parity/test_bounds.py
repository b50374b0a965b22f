"""The bounds and their summary."""

import pytest

from deconvfix.parity.bounds import Comparison, rounding_unit, summarize


def test_nothing_compared_is_not_ok():
    report = summarize([], [], "float64")
    assert not report.ok
    assert report.problems == ("Nothing was compared: give example inputs.",)


def test_the_rounding_unit_grows_with_long_sums_only():
    assert rounding_unit(1e-7, 50) == 1e-7
    assert rounding_unit(1e-7, 40_000) == pytest.approx(20e-7)


def test_the_first_departure_is_the_first_in_order():
    good = Comparison("a", "x", 0.0, 0.0, True)
    bad = [Comparison(name, "x", 1.0, 100.0, False) for name in ("b", "c")]
    assert summarize([good, *bad], [], "float32").first_departure == "b"
