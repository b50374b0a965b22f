"""fx, export and compile on converted models."""

import pytest
import torch
from torch import nn

from tests.support.modules import (
    MODELS,
    Functional,
    Modulated,
    Nested,
    Tied,
    X,
    convert,
    transposed_calls,
    up,
)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            Functional,
        ),
        lambda: nn.Sequential(Functional()),
        lambda: nn.Sequential(up(), nn.ReLU()),
        MODELS["subclass with its own forward"],
    ],
    ids=["root", "child", "layer", "subclass"],
)
def test_fx_trace_of_a_converted_model_has_no_transposed_convolution(make):
    converted = convert(make(), X).model
    traced = torch.fx.symbolic_trace(converted)
    assert torch.equal(traced(X), converted(X))
    assert transposed_calls(traced, X) == []


@pytest.mark.filterwarnings(
    # The reroute is a mode that is entered and left; torch names no source.
    "ignore:While compiling, we found certain side effects:UserWarning",
)
@pytest.mark.parametrize(
    ("make", "strict"),
    [
        (Functional, True),
        (Functional, False),
        pytest.param(
            Nested,
            True,
        ),
        (Nested, False),
        (Tied, True),
        (Tied, False),
        (MODELS["scaled by parametrization"], True),
        (MODELS["scaled by parametrization"], False),
    ],
    ids=[
        f"{name}-{mode}"
        for name in ("function", "nested", "tied", "parametrized")
        for mode in ("strict", "non-strict")
    ],
)
def test_export_of_a_converted_model_has_no_transposed_convolution(make, strict):
    converted = convert(make(), X).model
    program = torch.export.export(converted, (X,), strict=strict)
    assert not [node for node in program.graph.nodes if "transpose" in str(node.target)]
    assert torch.equal(program.module()(X), converted(X))


@pytest.mark.parametrize(
    "make",
    [
        Functional,
        pytest.param(
            Nested,
        ),
        Tied,
        Modulated,
    ],
)
def test_compiled_model_computes_the_same(make):
    model = make()
    torch._dynamo.reset()
    compiled = torch.compile(convert(model, X).model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(X), model(X))


def test_compiled_model_with_an_excluded_layer_computes_the_same():
    """The excluded layer lies inside a rerouted module."""
    model = Nested(0)
    torch._dynamo.reset()
    compiled = torch.compile(convert(model, X, exclude="up").model, backend="eager")
    assert torch.equal(compiled(X), model(X))
