"""Layers written by what their weights allow: the same numbers, by the operators that were meant."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import deconvfix
from deconvfix.core.spec import ConvTransposeSpec
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


WAYS = [None, "none", "reduced", "passes", "matrices", "upsampling"]


@settings(max_examples=25)
@given(structured(), st.sampled_from(WAYS), st.booleans(), st.data())
def test_all_structures_are_the_layer(drawn, structure, behind, data):
    spec, weight, bias, x = drawn
    sizes = data.draw(st.sampled_from([x.shape[2:], [None] * spec.ndim]))
    if min(spec.output_size(x.shape[2:])) < 1:
        return
    # A weight of zeros alone is no evidence of anything, and the definition is compared here.
    how = {"structure": structure, "verify": False}
    converted(spec, weight, bias, x, sizes=sizes, behind=behind, **how)


def bilinear(channels, k, s, *, depthwise=False):
    """(C, C or 1, k, k): linear interpolation from each channel to itself."""
    triangle = 1 - np.abs(np.arange(k) - (k - 1) / 2) / s
    weight = np.zeros((channels, 1 if depthwise else channels, k, k), np.float32)
    weight[range(channels), 0 if depthwise else range(channels)] = np.multiply.outer(
        triangle, triangle
    )
    return weight


def layer(k, s, *, channels=5, groups=1, **others):
    return ConvTransposeSpec.create(
        channels, channels, (k, k), stride=s, groups=groups, bias=False, **others
    )


def kinds(conversion):
    return [kind for kind in operators(conversion.model) if kind not in ("Constant", "Neg")]


@pytest.mark.parametrize(
    ("k", "s", "behind", "expected"),
    [
        (16, 8, True, ["MatMul", "Pad", "Gather", "MatMul", "Reshape"]),
        (16, 8, False, ["MatMul", "MatMul"]),
        (4, 2, True, ["Conv", "Reshape", "Transpose", "Reshape"] * 2),
    ],
)
def test_interpolation_is_written_as_measured(k, s, behind, expected):
    x = np.random.default_rng(1).integers(-3, 4, (2, 5, 6, 7))
    done = converted(layer(k, s), bilinear(5, k, s), None, x, behind=behind)
    assert kinds(done) == expected
    (decision,) = done.plan.decisions
    how = "two matrix products" if s == 8 else "two passes"
    assert decision.reason.endswith(f"its weight is diagonal: 5 groups; separable: {how}")


def test_the_cost_is_that_of_the_matrix_products():
    x = np.ones((1, 5, 6, 7))
    done = converted(layer(16, 8), bilinear(5, 16, 8), None, x, behind=True, verify=False)
    (decision,) = done.plan.decisions
    # Rows of 7 to 64 pixels as one matrix; then 7 windows of two of them, 8 phases, on 64 columns.
    products = 5 * 6 * 7 * 64 + 5 * 7 * 8 * 2 * 64
    assert decision.macs_before == 5 * 5 * 16 * 16
    assert decision.macs_after == round(products / (6 * 7))


def changed(weight, place, value):
    weight = weight.copy()
    weight[place] = value
    return weight


def test_one_number_off_is_written_as_it_is():
    x = np.random.default_rng(1).integers(-3, 4, (2, 5, 6, 7))
    weight = bilinear(5, 4, 2)
    for off in (changed(weight, (1, 2, 3, 0), 1.0), changed(weight, (0, 4, 0, 0), 1e-30)):
        done = deconvfix.convert(file_of(layer(4, 2), off, None, x.shape[2:]))
        (decision,) = done.plan.decisions
        assert decision.settings.structure == "none"
        assert decision.macs_after == decision.macs_before
        assert decision.reason == "the same function"
    no_factors = changed(weight, (3, 3, 1, 1), 0.5)
    done = converted(layer(4, 2), no_factors, None, x)
    assert done.plan.decisions[0].settings.structure == "reduced"
    assert not done.plan.decisions[0].settings.convolution


def test_a_constant_kernel_is_nearest_upsampling():
    x = np.random.default_rng(1).integers(-3, 4, (2, 5, 6, 7))
    ones = np.ones((5, 1, 2, 2))
    done = converted(layer(2, 2, groups=5), ones, None, x)
    assert kinds(done) == ["Resize"]
    scaled = ones * np.arange(1, 6).reshape(-1, 1, 1, 1)
    done = converted(layer(2, 2, groups=5, padding=1), scaled, None, x)
    assert kinds(done) == ["Mul", "Resize", "Slice"]
    assert done.plan.decisions[0].macs_after == 5
    done = converted(layer(2, 2, groups=5), changed(ones, (4, 0, 1, 1), 2), None, x)
    assert "Resize" not in kinds(done)


def test_it_can_be_switched_off_and_chosen():
    x = np.random.default_rng(1).integers(-3, 4, (2, 5, 6, 7))
    weight = bilinear(5, 4, 2)
    off = converted(layer(4, 2), weight, None, x, structure="none")
    assert kinds(off) == ["Conv", "DepthToSpace"]
    chosen = converted(layer(4, 2), weight, None, x, structure="matrices")
    assert kinds(chosen).count("MatMul") == 2
    written = converted(layer(4, 2), weight, None, x, convolution="union", shuffle="axes")
    assert written.plan.decisions[0].settings.structure == "reduced"
    assert kinds(written) == ["Conv", *["Reshape", "Transpose"] * 2, "Reshape"]


def test_a_recipe_uses_what_the_weight_of_its_model_has():
    x = np.random.default_rng(1).integers(-3, 4, (2, 5, 6, 7))
    done = converted(layer(16, 8), bilinear(5, 16, 8), None, x)
    plan = Plan.from_json(done.plan.to_json())
    assert plan.decisions[0].settings.structure == "matrices"
    other = np.random.default_rng(2).integers(-3, 4, (5, 5, 16, 16))
    again = converted(layer(16, 8), other, None, x, plan=plan)
    assert kinds(again) == ["Conv", "DepthToSpace"]


def test_open_sizes_have_a_depthwise_layer():
    x = np.random.default_rng(1).integers(-3, 4, (2, 5, 6, 7))
    done = converted(layer(8, 4), bilinear(5, 8, 4), None, x, sizes=["H", "W"])
    assert done.plan.decisions[0].settings.structure == "reduced"
    passes = converted(
        layer(8, 4), bilinear(5, 8, 4), None, x, sizes=["H", "W"], structure="passes"
    )
    assert kinds(passes).count("Conv") == 2


@pytest.mark.parametrize("target", ["ncnn", "rank4", "opencv", "openvino", "onnxruntime"])
def test_targets_get_what_they_accept(target):
    x = np.random.default_rng(1).integers(-3, 4, (1, 5, 6, 7))
    done = converted(layer(16, 8), bilinear(5, 16, 8), None, x, target=target, behind=True)
    (decision,) = done.plan.decisions
    assert decision.settings.structure in ("reduced", "matrices")
    assert (decision.settings.structure == "matrices") == ("MatMul" in kinds(done))


@pytest.mark.parametrize(
    ("sizes", "stride", "shuffle"),
    [((6, 7), (2, 2), "slices"), ((6, 7), (2, 5), "slices"), (("H", "W"), (2, 2), "dcr")],
)
def test_stride_and_dilation_without_a_common_factor_waste_no_taps(sizes, stride, shuffle):
    spec = ConvTransposeSpec.create(4, 6, (3, 2), stride=stride, dilation=3, padding=1, groups=2)
    rng = np.random.default_rng(3)
    weight, bias = rng.integers(1, 4, spec.weight_shape), rng.integers(-3, 4, 6)
    x = rng.integers(-3, 4, (2, 4, 6, 7))
    done = converted(spec, weight, bias, x, sizes=sizes)
    (decision,) = done.plan.decisions
    assert (decision.settings.convolution, decision.settings.shuffle) == ("phases", shuffle)
    assert decision.macs_after == decision.macs_before


def test_a_common_factor_wastes_none():
    spec = ConvTransposeSpec.create(4, 6, (3, 2), stride=2, dilation=2, padding=1, groups=2)
    rng = np.random.default_rng(3)
    weight, bias = rng.integers(1, 4, spec.weight_shape), rng.integers(-3, 4, 6)
    done = converted(spec, weight, bias, rng.integers(-3, 4, (2, 4, 6, 7)))
    (decision,) = done.plan.decisions
    assert decision.settings.convolution is None
    assert decision.macs_after == decision.macs_before


def random_factors(dtype):
    """A depthwise layer of random factors, whose products are no binary fractions, and an input."""
    rng = np.random.default_rng(4)
    rows, columns = rng.standard_normal((2, 5, 16))
    weight = np.einsum("ci,cj->cij", rows, columns)[:, None].astype(dtype)
    x = rng.standard_normal((2, 5, 6, 7)).astype(dtype)
    up = helper.make_node(
        "ConvTranspose",
        ["x", "w"],
        ["y"],
        name="up",
        group=5,
        strides=[8, 8],
        kernel_shape=[16, 16],
    )
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model([up], [value("x", x.shape, kind)], [value("y", 4, kind)], {"w": weight}), x


@pytest.mark.parametrize("structure", ["matrices", "passes"])
def test_factors_that_round_are_within_the_proof(structure):
    proto, x = random_factors(np.float32)
    done = deconvfix.convert(proto, structure=structure, example_inputs={"x": x}, strict=True)
    assert done.plan.decisions[0].settings.structure == structure
    assert all_layers_compared(done)


def test_float16_has_no_factors():
    """Their products would be rounded below the normal numbers."""
    proto, x = random_factors(np.float16)
    done = deconvfix.convert(proto, structure="matrices", example_inputs={"x": x}, strict=True)
    assert done.plan.decisions[0].settings.structure == "none"
