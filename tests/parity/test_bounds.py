"""The bounds and their summary."""

import math

import numpy as np
import pytest

from deconvfix.parity.bounds import (
    Comparison,
    compare_arrays,
    rounding_unit,
    summarize,
    varies_array,
)


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


def test_integers_must_be_equal():
    equal = compare_arrays("y", "noise", np.array([1, 2]), np.array([1, 2]), 0.0)
    assert equal == Comparison("y", "noise", 0.0, 0.0, True)
    other = compare_arrays("y", "noise", np.array([1, 3]), np.array([1, 2]), 100.0)
    assert other == Comparison("y", "noise", 1.0, math.inf, False)


def test_nothing_equals_nothing_of_the_same_shape():
    empty = compare_arrays("y", "noise", np.zeros((0, 3)), np.zeros((0, 3)), 0.0)
    assert empty == Comparison("y", "noise", 0.0, 0.0, True)
    assert not compare_arrays("y", "noise", np.zeros((0, 3)), np.zeros((0, 4)), 0.0).ok


def test_one_number_may_vary():
    """A single output is evidence if it differs between inputs."""
    assert varies_array(np.array([1.0]), np.array([2.0]))
    assert not varies_array(np.array([1.0]), np.array([1.0]))
    assert not varies_array(np.array([1.0]), np.zeros(0))
    assert not varies_array(np.array([1.0]), None)
    assert varies_array(np.array([1.0, 2.0]), None)
