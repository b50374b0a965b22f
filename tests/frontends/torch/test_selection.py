"""Layers and calls that are left out, or converted in a second round."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deconvfix
from tests.support.modules import (
    B,
    Calls,
    Containers,
    Nested,
    W,
    X,
    assert_same_function,
    convert,
    decisions,
    integers,
    transposed_calls,
    up,
)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"exclude": "items.*"}, {"items.0", "items.1"}),
        ({"exclude": ["items.0", "table.b"]}, {"items.0", "table.b"}),
        ({"exclude": lambda name: name.endswith("1")}, {"items.1"}),
        ({"include": "table.*"}, {"items.0", "items.1"}),
        ({"include": ["table.*", "items.0"], "exclude": "table.b"}, {"items.1", "table.b"}),
        ({"include": "table.*", "exclude": lambda name: "a" in name}, {"items.0", "items.1",
         "table.a.0", "table.b"}),
        ({"exclude": "*"}, {"items.0", "items.1", "table.a.0", "table.b"}),
    ],
    ids=["glob", "two globs", "predicate", "include", "both", "both with predicate", "everything"],
)  # fmt: skip
def test_selection_keeps_what_it_says(options, kept):
    model = Containers()
    conversion = convert(model, X, **options)
    assert {name for name, verdict in decisions(conversion).items() if verdict == "kept"} == kept
    assert torch.equal(conversion.model(X), model(X))
    assert len(transposed_calls(conversion.model, X)) == len(kept)


def test_include_that_matches_nothing_is_an_error():
    with pytest.raises(
        deconvfix.OptionError, match=r"the pattern 'itmes\.\*' matches none of the 4"
    ):
        convert(Containers(), X, include="itmes.*")


def test_exclude_that_matches_nothing_is_an_error():
    with pytest.raises(deconvfix.OptionError, match="itmes"):
        convert(Containers(), X, exclude="itmes.*")


@pytest.mark.parametrize("exclude", ["up", lambda name: name == "up"], ids=["glob", "predicate"])
def test_excluded_layer_in_a_rerouted_module_stays_transposed(exclude):
    model = Nested(0)
    conversion = convert(model, X, exclude=exclude)
    assert decisions(conversion) == {"conv_transpose2d": "replaced", "up": "kept"}
    assert transposed_calls(conversion.model, X) == [tuple(model.up.weight.shape)]
    assert torch.equal(conversion.model(X), model(X))


def test_excluded_call_stays_transposed():
    model = Nested(1)
    conversion = convert(model, X, exclude=["conv_transpose2d"])
    assert transposed_calls(conversion.model, X) == [(3, 3, 2, 3)]
    assert torch.equal(conversion.model(X), model(X))


def test_excluded_call_in_a_child_of_a_rerouted_module_stays_transposed():
    model = Nested(1)
    conversion = convert(model, X, exclude=["inner.conv_transpose2d"])
    assert decisions(conversion)["inner.conv_transpose2d"] == "kept"
    assert transposed_calls(conversion.model, X) == [(3, 3, 2, 3)]
    assert torch.equal(conversion.model(X), model(X))


class TwoCalls(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(integers((3, 3, 2, 3), 1))

    def forward(self, x):
        x = F.conv_transpose2d(x, self.weight, stride=2).clamp(-2, 2)
        return F.conv_transpose2d(x, self.weight, stride=(1, 3))


class AroundTwoCalls(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = TwoCalls()
        self.weight = nn.Parameter(integers((3, 3, 4, 4), 1))

    def forward(self, x):
        return self.inner(F.conv_transpose2d(x, self.weight).clamp(-2, 2))


def test_one_of_two_calls_can_be_excluded():
    model = TwoCalls()
    conversion = convert(model, X, exclude="conv_transpose2d#2")
    assert decisions(conversion) == {"conv_transpose2d#1": "replaced", "conv_transpose2d#2": "kept"}
    assert len(transposed_calls(conversion.model, X)) == 1
    assert torch.equal(conversion.model(X), model(X))


def test_one_of_two_calls_in_a_child_of_a_rerouted_module_can_be_excluded():
    conversion = convert(AroundTwoCalls(), X, exclude="inner.conv_transpose2d#2")
    assert len(transposed_calls(conversion.model, X)) == 1


def test_model_converted_in_two_rounds():
    """First some of the calls, later the rest."""
    model = TwoCalls()
    first = convert(model, X, exclude="conv_transpose2d#2").model
    assert_same_function(convert(first, X), model, X)


def test_calls_of_equal_geometry_by_two_functions_are_told_apart():
    """Otherwise the plan says "replaced" of a call that still runs, and nobody notices."""

    def both(x):
        y = F.conv_transpose2d(x, W, B, 2)
        return y + torch.convolution(x, W, B, [2, 2], [0, 0], [1, 1], True, [0, 0], 1)

    conversion = convert(Calls(both), X, exclude="convolution")
    assert decisions(conversion) == {"conv_transpose2d": "replaced", "convolution": "kept"}
    assert len(transposed_calls(conversion.model, X)) == 1


def test_child_with_the_name_of_the_function_is_told_apart_from_a_call():
    class Confusing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_transpose2d = up(3, 3)
            self.weight = nn.Parameter(integers((3, 3, 2, 2), 1))

        def forward(self, x):
            return F.conv_transpose2d(self.conv_transpose2d(x), self.weight)

    model = Confusing()
    assert_same_function(convert(model, X), model, X)
