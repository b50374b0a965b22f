"""A convolution and a pixel shuffle are a transposed convolution, by the definition of all three."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deconvfix.core.shuffled import Shuffled, channels_of
from tests.support.oracle import conv_transpose, convolution


def shuffle(y, channels):
    """By definition: z[c, r*i + f] = y[channels[c, f], i]."""
    count, *factors = channels.shape
    out = np.zeros((count, *(n * r for n, r in zip(y.shape[1:], factors, strict=True))), y.dtype)
    for index in np.ndindex(*out.shape):
        c, *place = index
        phase = tuple(o % r for o, r in zip(place, factors, strict=True))
        source = tuple(o // r for o, r in zip(place, factors, strict=True))
        out[index] = y[(channels[(c, *phase)], *source)]
    return out


@st.composite
def cases(draw):
    ndim = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    per_in, per_out = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    most = 4 - ndim
    factors = tuple(draw(st.integers(1, most + 1)) for _ in range(ndim))
    kernel = tuple(draw(st.integers(1, most + 1)) for _ in range(ndim))
    padding = tuple((draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in kernel)
    sizes = tuple(draw(st.integers(k, k + 2)) for k in kernel)
    seed = draw(st.integers(0, 2**16))
    return groups, per_in, per_out, factors, kernel, padding, sizes, seed


@given(cases())
def test_equal_to_the_transposed_convolution(case):
    groups, per_in, per_out, factors, kernel, padding, sizes, seed = case
    rng = np.random.default_rng(seed)
    phases = int(np.prod(factors))
    # Any order of the phases within a group, as depth-to-space and einops write them.
    channels = np.concatenate(
        [rng.permutation(per_out * phases) + g * per_out * phases for g in range(groups)]
    ).reshape(groups * per_out, *factors)
    weight = rng.integers(-9, 9, (channels.size, per_in, *kernel)).astype(float)
    bias = rng.integers(-9, 9, channels.size) * float(phases)
    x = rng.integers(-9, 9, (groups * per_in, *sizes)).astype(float)
    found = Shuffled.of(channels, groups * per_in, kernel, padding, groups, bias=True)
    mean = found.mean_bias(bias)
    rest = bias - found.spread_bias(mean)
    spec = found.spec
    padded = np.pad(x, [(0, 0), *padding])
    wanted = shuffle(convolution(padded, weight, bias, groups), channels)
    got = conv_transpose(
        x[None], found.transposed(weight), mean,
        stride=spec.stride, padding=spec.padding, output_padding=spec.output_padding,
        dilation=spec.dilation, groups=groups,
    )[0]  # fmt: skip
    got = got + shuffle(np.broadcast_to(
        rest.reshape(-1, *(1 for _ in sizes)),
        (channels.size, *(n // r for n, r in zip(wanted.shape[1:], factors, strict=True))),
    ), channels)  # fmt: skip
    assert np.array_equal(got, wanted)
    assert np.array_equal(found.convolution(found.transposed(weight)), weight)
    by_hand = [bias[channels[c]].mean() for c in range(len(channels))]
    assert np.array_equal(mean, by_hand)


@given(cases())
def test_a_shuffle_is_known_by_where_its_elements_come_from(case):
    _, _, per_out, factors, _, _, sizes, seed = case
    count = per_out * int(np.prod(factors))
    channels = np.random.default_rng(seed).permutation(count).reshape(per_out, *factors)
    indices = shuffle(np.arange(count * int(np.prod(sizes))).reshape(count, *sizes), channels)
    found = channels_of(indices, sizes)
    if max(factors) < 2 or any(r > 1 and n < 2 for r, n in zip(factors, sizes, strict=True)):
        assert found is None
        return
    assert np.array_equal(found, channels)
    # Elements of two pixels exchanged, and it is none.
    flat = indices.ravel()
    flat[[0, -1]] = flat[[-1, 0]]
    assert channels_of(indices, sizes) is None


def test_padding_beyond_the_kernel_and_mixed_groups_are_none():
    channels = np.arange(8).reshape(2, 2, 2)
    assert Shuffled.of(channels, 3, (1, 1), ((0, 0), (0, 1)), 1, bias=False) is None
    assert (
        Shuffled.of(channels.transpose(1, 0, 2), 2, (1, 1), ((0, 0), (0, 0)), 2, bias=False) is None
    )
