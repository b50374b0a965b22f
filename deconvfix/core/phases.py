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
    """Per axis the phase (d*j mod s) of each tap j."""
    return tuple(
        np.arange(k) * d % s for k, s, d in zip(kernel_size, stride, dilation, strict=True)
    )


def phase_sums(weight: Array, phases: Sequence[NDArray[np.int64]], stride: Sequence[int]) -> Array:
    """Sums of the taps of each phase: (C_in, C_out / groups, *k) -> (C_in, C_out / groups, *s)."""
    for axis, (phase, s) in enumerate(zip(phases, stride, strict=True), start=2):
        member = (phase == np.arange(s)[:, None]).astype(np.float64)
        weight = np.moveaxis(np.tensordot(member, weight, (1, axis)), 0, axis)
    return weight
