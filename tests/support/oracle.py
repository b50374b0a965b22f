"""The definition of the transposed convolution as plain loops. Shares no code with the package.

Notations follow arXiv:1603.07285, with dilation and asymmetric padding added. Per axis

    y[o] = b + sum of x[i] * W[j]   over i, j with   o + p_b = s*i + d*j,   0 <= o < L_out
    L_out = (L - 1)*s + d*(k - 1) + 1 - p_b - p_e + op
"""

import itertools

import numpy as np


def conv_transpose(x, w, b, stride, padding, output_padding, dilation, groups):
    """x (N, C_in, *L), w (C_in, C_out/g, *k), b (C_out,) or None; padding is (begin, end) per axis."""
    n_batch, c_in, *lengths = x.shape
    _, per_group, *k = w.shape
    c_out = per_group * groups
    out = [
        (lengths[a] - 1) * stride[a]
        + dilation[a] * (k[a] - 1)
        + 1
        - padding[a][0]
        - padding[a][1]
        + output_padding[a]
        for a in range(len(k))
    ]
    y = np.zeros((n_batch, c_out, *out), dtype=np.result_type(x, w))
    for position in itertools.product(*(range(n) for n in lengths)):
        for tap in itertools.product(*(range(n) for n in k)):
            o = [
                stride[a] * position[a] + dilation[a] * tap[a] - padding[a][0]
                for a in range(len(k))
            ]
            if any(o[a] < 0 or o[a] >= out[a] for a in range(len(k))):
                continue
            for group in range(groups):
                inputs = range(group * c_in // groups, (group + 1) * c_in // groups)
                outputs = range(group * per_group, (group + 1) * per_group)
                for ci in inputs:
                    for co in outputs:
                        y[(slice(None), co, *o)] += (
                            x[(slice(None), ci, *position)] * w[(ci, co - group * per_group, *tap)]
                        )
    if b is not None:
        for co in range(c_out):
            y[:, co] += b[co]
    return y


def local_mean(x, reach):
    """Weighted mean of the pixels at distances up to `reach` (per axis), the border repeated.

    The weight of distance i is reach + 1 - |i|, and 1 / (reach + 1)**2 of their sum is the mean.
    """
    x = np.asarray(x, np.float64)
    y = np.zeros_like(x)
    for n, c, *o in np.ndindex(*x.shape):
        total = 0.0
        for i in itertools.product(*(range(-r, r + 1) for r in reach)):
            weight, source = 1.0, []
            for r, distance, at, length in zip(reach, i, o, x.shape[2:], strict=True):
                weight *= (r + 1 - abs(distance)) / (r + 1) ** 2
                source.append(min(max(at + distance, 0), length - 1))
            total += weight * x[(n, c, *source)]
        y[(n, c, *o)] = total
    return y


def convolution(x, weight, bias, groups):
    """y[o, i] = b[o] + sum of w[o, c, m] x[c, i + m]; x (C_in, *L), weight (C_out, C_in/g, *k)."""
    kernel = weight.shape[2:]
    sizes = [n - k + 1 for n, k in zip(x.shape[1:], kernel, strict=True)]
    out = np.zeros((len(weight), *sizes), x.dtype)
    per_in, per_out = weight.shape[1], len(weight) // groups
    for o, c in itertools.product(range(len(weight)), range(per_in)):
        for place in np.ndindex(*sizes):
            for tap in np.ndindex(*kernel):
                at = tuple(i + m for i, m in zip(place, tap, strict=True))
                out[(o, *place)] += weight[(o, c, *tap)] * x[(o // per_out * per_in + c, *at)]
    return out if bias is None else out + bias.reshape(-1, *(1 for _ in sizes))
