"""The windows of the output phases, by the definition of the layer."""

import numpy as np
from hypothesis import given

from deconvfix.core.windows import windows
from tests.support.strategies import specs


@given(specs())
def test_each_output_position_meets_its_taps(spec):
    """o + p_b = s*i + d*j, for every output position of a long input, and for no other pair."""
    length = 40
    sizes = spec.output_size((length,) * spec.ndim)
    for axis, found in enumerate(windows(spec)):
        s, d = spec.stride[axis], spec.dilation[axis]
        begin, _ = spec.padding[axis]
        assert (length + found.more) * s - found.surplus == sizes[axis]
        assert 0 <= found.surplus < s
        for o in range(sizes[axis]):
            u, f = divmod(o, s)
            window = found.phases[f]
            met = {(u + window.first + found.gap * m, j) for m, j in enumerate(window.taps)}
            every = {
                ((o + begin - d * j) // s, j)
                for j in range(spec.kernel_size[axis])
                if (o + begin - d * j) % s == 0
            }
            assert met == every


@given(specs())
def test_the_union_has_every_window(spec):
    for found in windows(spec):
        first, size, distance = found.union()
        taps = np.reshape(found.taps_in_union(), (-1, size))
        for window, row in zip(found.phases, taps, strict=True):
            there = {
                (first + distance * m, j) for m, j in enumerate(row.tolist()) if j != found.stored
            }
            assert there == {(window.first + found.gap * m, j) for m, j in enumerate(window.taps)}
