"""Kernels with and without a grid."""

import itertools
import math

import numpy as np

from deconvfix.core.spec import ConvTransposeSpec


def box_filtered(spec, rng):
    """A random kernel divided by the box of the stride: the sum rule holds for it."""
    shape = tuple(s * 2 for s in spec.stride)
    weight = rng.standard_normal((spec.in_channels, spec.out_channels // spec.groups, *shape))
    weight[...] = 0
    core = rng.standard_normal((*weight.shape[:2], *(s + 1 for s in spec.stride)))
    for offset in itertools.product(*map(range, spec.stride)):
        at = tuple(slice(o, o + n) for o, n in zip(offset, core.shape[2:], strict=True))
        weight[(..., *at)] += core
    return weight


def layer(*stride, kernel=None, channels=(3, 2)):
    kernel = kernel or tuple(2 * s for s in stride)
    return ConvTransposeSpec.create(*channels, kernel, stride=stride)


def inner_period(spec, y):
    """The first whole period that all taps reach."""
    for axis, (big, s) in enumerate(zip(spec.effective_kernel_size, spec.stride, strict=True)):
        begin = math.ceil((big - 1) / s) * s
        y = np.take(y, range(begin, begin + s), axis=axis + 2)
    return y
