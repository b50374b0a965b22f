"""Nearest upsampling and a convolution are a transposed convolution, by the definition of all three."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvfix.core.folded import Folded
from deconvfix.core.steps import Pad, run
from deconvfix.forms.base import Settings
from deconvfix.forms.subpixel import SUBPIXEL
from tests.support.oracle import conv_transpose, convolution

MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge"}


def upsample(x, factors):
    """By definition: u[v] = x[floor(v / s)]."""
    out = np.zeros((len(x), *(n * s for n, s in zip(x.shape[1:], factors, strict=True))), x.dtype)
    for place in np.ndindex(*out.shape[1:]):
        out[(slice(None), *place)] = x[
            (slice(None), *(o // s for o, s in zip(place, factors, strict=True)))
        ]
    return out


def extend(x, padding, mode):
    return np.pad(x, [(0, 0), *padding], mode=MODES[mode])


@st.composite
def cases(draw):
    ndim = draw(st.integers(1, 3))
    most = {1: 5, 2: 4, 3: 2}[ndim]

    def per_axis(strategy):
        return tuple(draw(strategy) for _ in range(ndim))

    mode = draw(st.sampled_from(list(MODES)))
    factors, kernel = per_axis(st.integers(1, most)), per_axis(st.integers(1, most))
    # Beyond the kernel too; a reflection as far as it can be folded.
    padding = tuple(
        (draw(st.integers(0, limit)), draw(st.integers(0, limit)))
        for limit in (s - 1 if mode == "reflect" else most + 1 for s in factors)
    )
    sizes = tuple(
        draw(st.integers(least, least + 2))
        for least in (max(1, -(-k // s)) for k, s in zip(kernel, factors, strict=True))
    )
    groups = draw(st.integers(1, 2))
    folded = Folded(
        factors, kernel, padding, mode, groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 3)), groups, draw(st.booleans()),
    )  # fmt: skip
    return folded, sizes, draw(st.integers(0, 2**16))


def data(folded, sizes, seed):
    rng = np.random.default_rng(seed)
    shape = (folded.out_channels, folded.in_channels // folded.groups, *folded.kernel_size)
    weight = rng.integers(-9, 10, shape).astype(float)
    bias = rng.integers(-9, 10, folded.out_channels).astype(float) if folded.bias else None
    return rng.integers(-9, 10, (folded.in_channels, *sizes)).astype(float), weight, bias


def by_definition(folded, x, weight, bias):
    upsampled = extend(upsample(x, folded.factors), folded.padding, folded.mode)
    return convolution(upsampled, weight, bias, folded.groups)


def as_transposed(folded, x, weight, bias):
    spec, border = folded.spec, folded.border
    if border is not None:
        x = extend(x, border.amounts, border.mode)
    return conv_transpose(
        x[None], folded.transposed(weight), bias, stride=spec.stride, padding=spec.padding,
        output_padding=spec.output_padding, dilation=spec.dilation, groups=spec.groups,
    )[0]  # fmt: skip


@given(cases())
def test_equal_to_the_transposed_convolution(case):
    folded, sizes, seed = case
    assert folded.can_be_folded
    x, weight, bias = data(folded, sizes, seed)
    wanted = by_definition(folded, x, weight, bias)
    assert np.array_equal(as_transposed(folded, x, weight, bias), wanted)
    # The steps say the same.
    assert np.array_equal(run(folded.steps, x[None], weight, bias)[0], wanted)


def test_a_wider_reflection_is_none():
    folded = Folded((2, 3), (3, 4), ((2, 2), (2, 2)), "reflect", 2, 3, 1, True)
    assert not folded.can_be_folded
    x, weight, bias = data(folded, (4, 5), 0)
    wanted = by_definition(folded, x, weight, bias)
    assert not np.array_equal(as_transposed(folded, x, weight, bias), wanted)


def test_the_border_of_another_mode_is_another_function():
    zeros = Folded((2, 2), (3, 3), ((1, 1), (1, 1)), "zeros", 2, 3, 1, False)
    copies = Folded((2, 2), (3, 3), ((1, 1), (1, 1)), "replicate", 2, 3, 1, False)
    assert zeros.border is None
    assert copies.border == Pad(((1, 1), (1, 1)), "replicate")
    x, weight, bias = data(zeros, (3, 4), 1)
    got = as_transposed(zeros, x, weight, bias)
    assert not np.array_equal(got, by_definition(copies, x, weight, bias))


@pytest.mark.parametrize(
    ("kernel", "factor", "wanted"), [(3, 2, 36), (3, 3, 81), (5, 2, 100), (1, 2, 4)]
)
def test_multiply_accumulates_of_the_convolution(kernel, factor, wanted):
    pads = ((kernel // 2,) * 2,) * 2
    folded = Folded((factor,) * 2, (kernel,) * 2, pads, "zeros", 4, 6, 2, True)
    assert folded.macs_per_position() == wanted * 4 * 3


def test_the_sum_of_taps_is_within_the_bound_of_the_magnitudes():
    """Taps that cancel: the error is far above an eps of the sum, and below one of the magnitudes."""
    folded = Folded((2,), (2,), ((0, 0),), "zeros", 1, 1, 1, False)
    weight = np.array([[[1.0, -1.0 + 2**-24]]], np.float32)
    magnitude = folded.transposed(np.abs(weight))
    exact = folded.transposed(weight)
    rounded = exact.astype(np.float32)
    eps = np.finfo(np.float32).eps
    assert (np.abs(rounded - exact) <= eps * magnitude).all()
    assert magnitude[0, 0, 1] > 1.9


@pytest.mark.parametrize(
    ("kernel", "factors", "saves"),
    [((3, 3), (2, 2), True), ((1, 1), (2, 2), False), ((2, 2), (2, 2), False), ((1, 3), (2, 2), True),
     ((3, 2), (3, 2), True), ((3,), (1,), False)],
)  # fmt: skip
def test_whether_it_saves_is_what_the_form_says(kernel, factors, saves):
    folded = Folded(factors, kernel, ((0, 0),) * len(kernel), "zeros", 4, 6, 2, True)
    after = SUBPIXEL.compile(folded.spec, Settings()).macs_per_position
    assert folded.saves == saves == (after < folded.macs_per_position())
