"""What weights allow, held against the definition of the layer."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.structure import along, matrix_of, reduced, separated
from tests.support import oracle
from tests.support.strategies import cases

EPS = 2.0**-23


def by_definition(spec, x, weight, bias=None):
    return oracle.conv_transpose(
        x, weight, bias, spec.stride, spec.padding, spec.output_padding, spec.dilation, spec.groups
    )


@st.composite
def diagonal(draw):
    """A layer whose channels go to themselves alone, as one group or several."""
    case = draw(cases())
    per_group = case.spec.in_channels // case.spec.groups
    spec = replace(case.spec, out_channels=case.spec.in_channels)
    shape = (*spec.weight_shape[:2], *spec.kernel_size)
    weight = np.zeros(shape)
    channels = np.arange(spec.in_channels)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight[channels, channels % per_group] = rng.integers(-3, 4, (len(channels), *spec.kernel_size))
    bias = rng.integers(-3, 4, spec.out_channels).astype(float) if spec.bias else None
    return spec, case.x, weight, bias


@given(diagonal())
def test_a_diagonal_layer_is_depthwise(drawn):
    spec, x, weight, bias = drawn
    less = reduced(spec, weight)
    per_group = spec.in_channels // spec.groups
    assert less.diagonal == (per_group > 1)
    assert less.spec.groups == spec.in_channels
    assert less.weight.shape == less.spec.weight_shape
    expected = by_definition(spec, x, weight, bias)
    np.testing.assert_array_equal(by_definition(less.spec, x, less.weight, bias), expected)


def test_one_tap_between_two_channels_is_no_diagonal():
    spec = ConvTransposeSpec.create(6, 6, (3, 2), stride=2, groups=2)
    weight = np.zeros(spec.weight_shape)
    weight[range(6), np.arange(6) % 3] = 1
    assert reduced(spec, weight).diagonal
    for i, o in itertools.product(range(6), range(3)):
        if o == i % 3:
            continue
        one_more = weight.copy()
        one_more[i, o, 2, 1] = 1e-30
        less = reduced(spec, one_more)
        assert not less.diagonal
        assert less.spec.groups == 2


def test_layers_of_unequal_channels_are_not_diagonal():
    spec = ConvTransposeSpec.create(3, 2, (3, 2), stride=2)
    weight = np.zeros(spec.weight_shape)
    weight[range(2), range(2)] = 1
    assert not reduced(spec, weight).changed


@given(cases(), st.data())
def test_planes_of_zeros_are_no_taps(case, data):
    weight = case.weight.copy()
    for axis, size in enumerate(case.spec.kernel_size):
        kept = data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))
        inside = slice(min(kept), max(kept))
        mask = np.zeros(size)
        mask[inside.start : inside.stop : data.draw(st.integers(1, 3))] = 1
        weight *= mask.reshape(-1, *(1,) * (case.spec.ndim - 1 - axis))
    less = reduced(replace(case.spec, bias=False), weight)
    sizes = case.x.shape[2:]
    assert less.spec.output_size(sizes) == case.spec.output_size(sizes)
    expected = by_definition(case.spec, case.x, weight)
    np.testing.assert_array_equal(by_definition(less.spec, case.x, less.weight), expected)
    # No plane of zeros is left at the end, and none at the begin that the padding has room for.
    for axis, size in enumerate(less.spec.kernel_size):
        if size > 1:
            assert less.weight.take(size - 1, axis + 2).any()
            room = less.spec.padding[axis][0] >= less.spec.dilation[axis]
            assert less.weight.take(0, axis + 2).any() or not room


def test_planes_between_taps_are_dilation_where_phases_have_no_tap_then():
    spec = ConvTransposeSpec.create(2, 3, (7, 5), stride=(4, 3), padding=(1, 2), dilation=(1, 2))
    weight = np.ones(spec.weight_shape)
    weight[:, :, 1::2] = 0
    weight[..., 1::2] = 0
    less = reduced(spec, weight)
    # Two and three have no common factor: all phases have a tap.
    assert (less.spec.kernel_size, less.spec.dilation, less.planes) == ((4, 5), (2, 2), 3)
    weight[1, 2, 3, 0] = 1
    assert not reduced(spec, weight).changed
    # Without a stride a convolution has no taps of zero between its own.
    flat = replace(spec, stride=(4, 1), output_padding=(0, 0))
    less = reduced(flat, weight)
    assert (less.spec.kernel_size, less.spec.dilation, less.planes) == ((7, 3), (1, 4), 2)


def test_a_plane_with_a_tap_stays():
    spec = ConvTransposeSpec.create(2, 3, (3, 4), stride=2, padding=2)
    weight = np.ones(spec.weight_shape)
    weight[:, :, 2] = 0
    weight[..., 0] = 0
    less = reduced(spec, weight)
    assert (less.spec.kernel_size, less.planes) == ((2, 3), 2)
    assert less.spec.padding == ((2, 1), (1, 2))
    weight[1, 2, 2, 3] = weight[0, 1, 1, 0] = 1
    assert not reduced(spec, weight).changed


def factors_of(rng, channels, kernel):
    """Factors of floats, and the kernel (C, 1, *k) that they make, rounded once."""
    factors = [rng.standard_normal((channels, k)) for k in kernel]
    names = "ijk"[: len(kernel)]
    product = np.einsum(f"{','.join('c' + n for n in names)}->c{names}", *factors)
    return factors, product[:, None].astype(np.float32)


@pytest.mark.parametrize("kernel", [(4, 5), (64, 64), (3, 4, 5)])
def test_a_rounded_outer_product_is_separable(kernel):
    for seed in range(20):
        _, weight = factors_of(np.random.default_rng(seed), 7, kernel)
        weight[3] = 0  # a channel without taps
        weight[4] *= -1
        found = separated(weight, np.float32)
        assert found is not None
        names = "ijk"[: len(kernel)]
        wide = [np.broadcast_to(f, (7, f.shape[1])).astype(np.float64) for f in found]
        product = np.einsum(f"{','.join('c' + n for n in names)}->c{names}", *wide)
        difference = np.abs(product - weight[:, 0])
        # By the text of `core.structure`: 3 halves of an eps for each axis.
        assert (difference <= 1.5 * len(kernel) * EPS * np.abs(weight[:, 0])).all()


def test_one_tap_more_is_not_separable():
    _, weight = factors_of(np.random.default_rng(1), 3, (4, 5))
    assert separated(weight, np.float32) is not None
    for place in itertools.product(range(3), range(4), range(5)):
        changed = weight.copy()
        changed[place[0], 0, place[1], place[2]] *= 1 + 32 * EPS
        assert separated(changed, np.float32) is None, place
    with_hole = weight.copy()
    with_hole[1, 0, 2, 2] = 0
    assert separated(with_hole, np.float32) is None


def test_interpolation_has_exact_factors_that_all_channels_share():
    triangle = 1 - np.abs(np.arange(64) - 31.5) / 32
    weight = np.tile(np.multiply.outer(triangle, triangle), (21, 1, 1, 1)).astype(np.float32)
    first, second = separated(weight, np.float32)
    np.testing.assert_array_equal(first, triangle[None])
    np.testing.assert_array_equal(second, triangle[None])


@pytest.mark.parametrize("kernel", [(4,), (4, 1), (1, 1, 5), (1, 1)])
def test_one_axis_has_nothing_to_separate(kernel):
    assert separated(np.ones((3, 1, *kernel), np.float32), np.float32) is None


@given(cases())
def test_a_separable_layer_is_one_layer_for_each_axis(case):
    """With factors of integers; by layers of one axis, and by matrices."""
    channels = case.spec.in_channels
    spec = replace(case.spec, groups=channels, out_channels=channels, bias=False)
    rng = np.random.default_rng(channels)
    factors = [rng.integers(-3, 4, (channels, k)).astype(float) for k in spec.kernel_size]
    names = "ijk"[: spec.ndim]
    kernel = np.einsum(f"{','.join('c' + n for n in names)}->c{names}", *factors)
    expected = by_definition(spec, case.x, kernel[:, None])
    by_layers = by_matrices = case.x
    for axis in reversed(range(spec.ndim)):
        one = along(spec, axis)
        by_layers = by_definition(one, by_layers, factors[axis].reshape(one.weight_shape))
        matrix = matrix_of(spec, axis, factors[axis], case.x.shape[axis + 2])
        moved = np.moveaxis(by_matrices, axis + 2, -1)
        # (N, C, .., L) with (C, L_out, L)
        moved = np.einsum("nc...l,col->nc...o", moved, matrix)
        by_matrices = np.moveaxis(moved, -1, axis + 2)
    np.testing.assert_array_equal(by_layers, expected)
    np.testing.assert_array_equal(by_matrices, expected)
