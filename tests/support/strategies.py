"""The one Hypothesis strategy: every parameter of a transposed convolution, with data for it.

A new field of `ConvTransposeSpec` must be drawn here, so that every property sees it.
Values are small integers: sums of products of them are exact in every dtype that is tested, so that
results are compared with equality.
"""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from deconvfix.core.spec import ConvTransposeSpec
from tests.support import oracle


@dataclass(frozen=True)
class Case:
    """A layer with integer-valued data, and its output by definition."""

    spec: ConvTransposeSpec
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None

    @property
    def expected(self):
        spec = self.spec
        return oracle.conv_transpose(
            self.x,
            self.weight,
            self.bias,
            spec.stride,
            spec.padding,
            spec.output_padding,
            spec.dilation,
            spec.groups,
        )


@st.composite
def specs(draw, *, symmetric=False, torch_limits=False, square=False):
    """Any spec; `symmetric` padding and `torch_limits` on output_padding are what torch.nn has.

    `square`: two axes of one stride above 1, which is what DepthToSpace has.
    """
    ndim = 2 if square else draw(st.integers(1, 3))
    most = {1: 7, 2: 5, 3: 3}[ndim]

    def per_axis(strategy):
        return tuple(draw(st.lists(strategy, min_size=ndim, max_size=ndim)))

    groups = draw(st.integers(1, 3))
    stride = (draw(st.integers(2, 5)),) * 2 if square else per_axis(st.integers(1, 5))
    dilation = per_axis(st.integers(1, 4))
    begin = per_axis(st.integers(0, 6))
    end = begin if symmetric else per_axis(st.integers(0, 6))
    output_padding = tuple(
        draw(st.integers(0, max(s, d) - 1 if torch_limits else 5))
        for s, d in zip(stride, dilation, strict=True)
    )
    return ConvTransposeSpec(
        in_channels=groups * draw(st.integers(1, 3)),
        out_channels=groups * draw(st.integers(1, 3)),
        kernel_size=per_axis(st.integers(1, most)),
        stride=stride,
        padding=tuple(zip(begin, end, strict=True)),
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )


@st.composite
def cases(draw, **kinds):
    """A spec of `kinds` with an input for which it has an output, and integer-valued data."""
    spec = draw(specs(**kinds))
    most = {1: 6, 2: 4, 3: 3}[spec.ndim]
    sizes = []
    for axis in range(spec.ndim):
        least = 1
        while spec.output_size([least] * spec.ndim)[axis] < 1:
            least += 1
        sizes.append(least + draw(st.integers(0, most - 1)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def integers(*shape):
        return rng.integers(-3, 4, shape).astype(np.float64)

    return Case(
        spec,
        integers(draw(st.integers(1, 2)), spec.in_channels, *sizes),
        integers(*spec.weight_shape),
        integers(spec.out_channels) if spec.bias else None,
    )


@dataclass(frozen=True)
class Upsampled:
    """Nearest upsampling by `factors` on the first axis at least, and a convolution behind it."""

    factors: tuple[int, ...]
    kernel: tuple[int, ...]
    mode: str
    in_channels: int
    out_channels: int
    groups: int
    bias: bool
    sizes: tuple[int, ...]
    seed: int


@st.composite
def upsamplings(draw):
    """Any pair that can be folded; its border is for the caller to draw."""
    ndim = draw(st.integers(1, 3))
    most = {1: 5, 2: 4, 3: 3}[ndim]

    def per_axis(strategy):
        return tuple(draw(strategy) for _ in range(ndim))

    factors, kernel = per_axis(st.integers(1, most)), per_axis(st.integers(1, most))
    groups = draw(st.integers(1, 2))
    return Upsampled(
        (max(2, factors[0]), *factors[1:]),
        (max(3, kernel[0]), *kernel[1:]),
        draw(st.sampled_from(["zeros", "replicate", "reflect"])),
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 3)),
        groups,
        draw(st.booleans()),
        per_axis(st.integers(3, 5)),
        draw(st.integers(0, 2**16)),
    )
