"""The phases of a stride: which taps of a kernel reach which residue of the output position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "phase_of_taps",
    "phase_sums",
]

Array = NDArray[np.float64]


def phase_of_taps(
    kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[NDArray[np.int64], ...]:
    """Per axis the phase (d*j mod s) of each tap j.

    A dilation that shares a factor with the stride leaves phases without a tap:

    >>> phase_of_taps((4, 3), stride=(2, 2), dilation=(1, 2))
    (array([0, 1, 0, 1]), array([0, 0, 0]))
    """
    return tuple(
        np.arange(k) * d % s for k, s, d in zip(kernel_size, stride, dilation, strict=True)
    )


def phase_sums(weight: Array, phases: Sequence[NDArray[np.int64]], stride: Sequence[int]) -> Array:
    """Sums of the taps of each phase: (C_in, C_out / groups, *k) -> (C_in, C_out / groups, *s).

    The axes of the kernel become axes of the stride, however many taps there are:

    >>> weight = np.array([[[1.0, 2.0, 3.0, 4.0, 5.0]]])
    >>> phase_sums(weight, phase_of_taps((5,), (2,), (1,)), (2,))  # 1 + 3 + 5 and 2 + 4
    array([[[9., 6.]]])
    """
    for axis, (phase, s) in enumerate(zip(phases, stride, strict=True), start=2):
        # (s, k) of 0 and 1, summed over the taps of one axis after the other.
        member = (phase == np.arange(s)[:, None]).astype(np.float64)
        weight = np.moveaxis(np.tensordot(member, weight, (1, axis)), 0, axis)
    return weight
