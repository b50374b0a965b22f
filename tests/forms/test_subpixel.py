"""The sub-pixel form: the definition bit for bit, for every geometry, and what it costs."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given

from deconvfix.core.rearrange import rearrange
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Conv, Crop, PixelShuffle, run
from deconvfix.errors import Refusal
from deconvfix.forms import form
from deconvfix.forms.base import Convolution, Settings
from tests.support import oracle
from tests.support.forms import run_form
from tests.support.strategies import cases


@pytest.mark.parametrize("convolution", get_args(Convolution))
@given(case=cases())
def test_subpixel_is_the_definition(convolution, case):
    settings = Settings(convolution=convolution)
    assert np.array_equal(run_form("subpixel", case, settings), case.expected)


@pytest.mark.parametrize(
    ("geometry", "ratio"),
    [
        ({"kernel_size": (4, 4), "stride": 2, "padding": 1}, 1.0),
        ({"kernel_size": (3, 3), "stride": 2, "padding": 1, "output_padding": 1}, 16 / 9),
        ({"kernel_size": (2, 2), "stride": 2}, 1.0),
        ({"kernel_size": (1, 1), "stride": 2}, 1.0),
        ({"kernel_size": (3, 3), "stride": 5}, 1.0),
        ({"kernel_size": (16,), "stride": 8, "padding": 4}, 1.0),
        ({"kernel_size": (3, 3), "stride": 1, "dilation": 4}, 1.0),
        ({"kernel_size": (3, 3), "stride": 2, "dilation": 4}, 1.0),
        ({"kernel_size": (4, 4), "stride": 4, "dilation": 2}, 1.0),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_multiply_accumulates_of_subpixel(geometry, ratio):
    """Design section 2: prod(q*s / k), and phases that no tap reaches cost nothing."""
    spec = ConvTransposeSpec.create(6, 4, groups=2, **geometry)
    compiled = form("subpixel").compile(spec, Settings())
    assert compiled.macs_per_position / spec.macs_per_position() == pytest.approx(ratio)


def test_the_usual_layer_becomes_conv_shuffle_crop():
    spec = ConvTransposeSpec.create(3, 5, (4, 4), stride=2, padding=1)
    conv = Conv(3, 20, (2, 2), (1, 1), (1, 1), 1, True)
    assert form("subpixel").compile(spec, Settings()).steps == (
        conv,
        PixelShuffle((2, 2)),
        Crop(((1, 1), (1, 1))),
    )


def test_stride_one_becomes_a_plain_convolution():
    spec = ConvTransposeSpec.create(3, 5, (3, 5), padding=(1, 4))
    (conv,) = form("subpixel").compile(spec, Settings()).steps
    assert conv == Conv(3, 5, (3, 5), (1, 0), (1, 1), 1, True)


def test_a_weight_that_would_explode_is_refused():
    spec = ConvTransposeSpec.create(64, 64, (3, 3), stride=2, dilation=100_001)
    refusal = form("subpixel").settle(spec, Settings(), None)
    assert isinstance(refusal, Refusal)
    assert "elements instead of" in refusal.found
    assert "exclude it" in refusal.todo


def test_a_huge_stride_is_not_refused():
    """Phases that no tap reaches are not computed, so only the output is large."""
    spec = ConvTransposeSpec.create(64, 64, (3, 3), stride=100_000)
    assert not isinstance(form("subpixel").settle(spec, Settings(), None), Refusal)


# Negative controls: the equality above notices each of the classical mistakes.
def break_phases(compiled, weight):
    return compiled.steps, weight[[1, 0, *range(2, len(weight))]]


def break_crop(compiled, weight):
    steps = tuple(
        Crop(tuple((b - 1, e + 1) for b, e in step.amounts)) if isinstance(step, Crop) else step
        for step in compiled.steps
    )
    return steps, weight


def break_flip(compiled, weight):
    return compiled.steps, weight[..., ::-1]


def break_channel_order(compiled, weight):
    """DepthToSpace mode DCR instead of CRD: phase-major instead of channel-major."""
    phases = 4
    order = np.arange(len(weight)).reshape(-1, phases).T.ravel()
    return compiled.steps, weight[order]


@pytest.mark.parametrize(
    "mistake", [break_phases, break_crop, break_flip, break_channel_order], ids=lambda f: f.__name__
)
def test_mistakes_are_noticed(mistake):
    spec = ConvTransposeSpec.create(2, 3, (4, 4), stride=2, padding=1)
    rng = np.random.default_rng(1)
    x = rng.integers(-3, 4, (1, 2, 3, 5)).astype(np.float64)
    weight = rng.integers(-3, 4, spec.weight_shape).astype(np.float64)
    compiled = form("subpixel").compile(spec, Settings())
    new = rearrange(compiled.weight, weight)
    want = oracle.conv_transpose(x, weight, None, (2, 2), spec.padding, (0, 0), (1, 1), 1)
    assert np.array_equal(run(compiled.steps, x, new), want)
    steps, broken = mistake(compiled, new)
    assert not np.array_equal(run(steps, x, broken), want)
