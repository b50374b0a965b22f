"""Periods of stacked layers, and the layers that share a frequency."""

from fractions import Fraction

from deconvfix.grid import periods as grids

# --- stacked grids ------------------------------------------------------------------------------


def test_periods_multiply_in_execution_order():
    strides = [(2, 2), (3, 1), (8,), (1, 2)]
    assert grids.stacked_periods(strides) == [(6, 4), (3, 1), (8,), (1, 2)]


# --- arrays -------------------------------------------------------------------------------------


def test_layers_with_a_frequency():
    periods = {"a": (8, 8), "b": (2, 2), "c": (2,)}
    half, eighth = Fraction(1, 2), Fraction(1, 8)
    assert grids.layers_with((half, Fraction(0)), periods) == ("b", "a")
    assert grids.layers_with((half, eighth), periods) == ("a",)
