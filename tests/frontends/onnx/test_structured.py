"""Layers written by what their weights allow: the same numbers, by the operators that were meant."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import deconvfix
from deconvfix.plan import Plan
from tests.support import oracle
from tests.support.onnx_models import (
    all_layers_compared,
    is_valid,
    model,
    node,
    operators,
    run,
    value,
)
from tests.support.strategies import cases

INTS = st.integers(-3, 3)


def file_of(spec, weight, bias, sizes, *, opset=17, behind=False):
    """The layer in a file; `behind`: another operator takes its result."""
    stored = {"w": weight} | ({} if bias is None else {"b": bias})
    up = helper.make_node(
        "ConvTranspose", ["x", *stored], ["u" if behind else "y"], name="up",
        kernel_shape=spec.kernel_size, strides=spec.stride, dilations=spec.dilation, group=spec.groups,
        pads=[b for b, _ in spec.padding] + [e for _, e in spec.padding],
        output_padding=spec.output_padding,
    )  # fmt: skip
    nodes = [up, *([node("Neg", "u", "n"), node("Neg", "n", "y")] if behind else [])]
    x = value("x", ["N", spec.in_channels, *sizes])
    return model(nodes, [x], [value("y", spec.ndim + 2)], stored, opset=opset)


def converted(spec, weight, bias, x, *, sizes=None, opset=17, behind=False, **options):
    """Converts the layer, and compares with its definition, bit for bit."""
    weight = weight.astype(np.float32)
    bias = None if bias is None else bias.astype(np.float32)
    sizes = x.shape[2:] if sizes is None else sizes
    proto = file_of(spec, weight, bias, sizes, opset=opset, behind=behind)
    conversion = deconvfix.convert(proto, **options)
    assert not conversion.plan.refused
    assert is_valid(conversion.model)
    assert options.get("verify", True) is False or all_layers_compared(conversion)
    expected = oracle.conv_transpose(
        x, weight, bias, spec.stride, spec.padding, spec.output_padding, spec.dilation, spec.groups
    )
    for optimize in (True, False):
        (y,) = run(conversion.model, {"x": x.astype(np.float32)}, optimize=optimize)
        np.testing.assert_array_equal(y, expected)
    return conversion


@st.composite
def structured(draw):
    """A depthwise or diagonal layer, with or without factors of powers of two, and its input."""
    case = draw(cases(torch_limits=True))
    spec = replace(case.spec, out_channels=case.spec.in_channels)
    channels, per_group = spec.in_channels, spec.in_channels // spec.groups
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["factors", "shared factors", "random", "constant"]))
    rows = 1 if kind == "shared factors" else channels
    if kind == "random":
        kernel = rng.integers(-2, 3, (channels, *spec.kernel_size)).astype(float)
    elif kind == "constant":
        kernel = np.ones((channels, *spec.kernel_size)) * rng.integers(
            -2, 3, (channels, *(1,) * spec.ndim)
        )
        spec = replace(spec, stride=spec.kernel_size)
    else:
        # Of one size in each channel, so that their factors are exact.
        factors = [rng.choice([-2.0, -1.0, 1.0, 2.0], (rows, k)) for k in spec.kernel_size]
        names = "ijk"[: spec.ndim]
        kernel = np.einsum(f"{','.join('c' + n for n in names)}->c{names}", *factors)
        kernel = np.broadcast_to(kernel, (channels, *spec.kernel_size))
    weight = np.zeros((channels, per_group, *spec.kernel_size))
    weight[np.arange(channels), np.arange(channels) % per_group] = kernel
    bias = rng.integers(-3, 4, channels).astype(float) if spec.bias else None
    return spec, weight, bias, case.x


WAYS = [None, "none", "reduced", "passes", "matrices", "resize"]


@settings(max_examples=60)
@given(structured(), st.sampled_from(WAYS), st.booleans(), st.data())
def test_all_structures_are_the_layer(drawn, structure, behind, data):
    spec, weight, bias, x = drawn
    sizes = data.draw(st.sampled_from([x.shape[2:], [None] * spec.ndim]))
    if min(spec.output_size(x.shape[2:])) < 1:
        return
    # A weight of zeros alone is no evidence of anything, and the definition is compared here.
    how = {"structure": structure, "verify": False}
    converted(spec, weight, bias, x, sizes=sizes, behind=behind, **how)
