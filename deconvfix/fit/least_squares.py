"""Closed-form fits on the weights alone: no data, no iterations.

Both are separable or tiny problems, solved in float64 for all channel pairs at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.phases import phase_sums

__all__ = [
    "apply_operators",
    "equal_phase_sums",
    "factor_out",
    "relative_distance",
    "sum_rule_basis",
]

Array = NDArray[np.float64]


def factor_out(weight: Array, operators: Sequence[Array]) -> Array:
    """The kernel w that comes closest to `weight` when the operators are applied to it.

    Minimises |(A_1 x .. x A_n) w - W| under sum(A w) = sum(W): the answer to a constant input, which
    is what the eye sees first, stays as it was. With P = pinv(A) and the gain c = A^T 1,

        w = P W + u * (sum(W) - c^T P W),   u = (A^T A)^-1 c / (c^T (A^T A)^-1 c)

    and everything is a product over the axes.

    Args:
        weight: Target kernels, (C_in, C_out / groups, *K).
        operators: Per axis the matrix A, (K, taps), of full column rank.

    Returns:
        The kernels w, (C_in, C_out / groups, *taps).
    """
    fitted = weight
    direction = np.ones(())
    gain = np.ones(())
    for axis, matrix in enumerate(operators, start=2):
        # P is a Kronecker product, so it is applied axis by axis; the same for u and c.
        fitted = np.moveaxis(np.tensordot(np.linalg.pinv(matrix), fitted, (1, axis)), 0, axis)
        column_sums = matrix.sum(0)
        direction = np.multiply.outer(direction, np.linalg.solve(matrix.T @ matrix, column_sums))
        gain = np.multiply.outer(gain, column_sums)
    axes = tuple(range(2, weight.ndim))
    # The unconstrained minimum has lost so much of the sum; u puts it back where it costs least.
    missing = weight.sum(axes) - (fitted * gain).sum(axes)
    correction: Array = direction / (gain * direction).sum()
    result: Array = fitted + np.multiply.outer(missing, correction)
    return result


def apply_operators(kernel: Array, operators: Sequence[Array]) -> Array:
    """(A_1 x .. x A_n) w for kernels of shape (C_in, C_out / groups, *taps)."""
    for axis, matrix in enumerate(operators, start=2):
        kernel = np.moveaxis(np.tensordot(matrix, kernel, (1, axis)), 0, axis)
    return kernel


def equal_phase_sums(
    weight: Array,
    phases: Sequence[NDArray[np.int64]],
    stride: Sequence[int],
    strength: float = 1.0,
) -> Array:
    """The smallest change of `weight` that makes the sums of all phases equal, or a part of it.

    With g_f the sum and n_f the number of the taps of phase f, each of them gets (c - g_f) / n_f,
    c = sum(g_f / n_f) / sum(1 / n_f): the minimum of |change|^2 over the common value c. The change is
    linear in the weight, so that with the part s of it, what is unequal becomes (1 - s) of what it was.

    Args:
        weight: Kernels, (C_in, C_out / groups, *k).
        phases: Per axis the phase of each tap, see `phase_of_taps`; every phase must have a tap.
        stride: Phases per axis.
        strength: Part of the change that is made.
    """
    sums = phase_sums(weight, phases, stride)
    counts = phase_sums(np.ones((1, 1, *weight.shape[2:])), phases, stride)
    axes = tuple(range(2, weight.ndim))
    common = (sums / counts).sum(axes, keepdims=True) / (1 / counts).sum(axes, keepdims=True)
    change = (common - sums) / counts
    # From one value per phase to one per tap: every tap gets that of its phase.
    for axis, phase in enumerate(phases, start=2):
        change = np.take(change, phase, axis)
    result: Array = weight + strength * change
    return result


def sum_rule_basis(phases: Sequence[NDArray[np.int64]], stride: Sequence[int]) -> Array:
    """An orthonormal basis Z, (taps, free numbers), of the kernels whose phase sums are all equal.

    The null space of sum_f - mean of all sums, one row for each phase f: taps - (phases - 1) columns
    where every phase has a tap.
    """
    members = [
        (phase == np.arange(s)[:, None]).astype(np.float64)
        for phase, s in zip(phases, stride, strict=True)
    ]
    member = members[0]
    for more in members[1:]:
        member = np.kron(member, more)  # (phases, taps), both flattened with the last axis fastest
    # Right singular vectors of the singular value 0 span the null space, and are orthonormal.
    _, values, rows = np.linalg.svd(member - member.mean(0))
    rank = int(np.sum(values > values.max(initial=0) * 1e-12))
    return np.ascontiguousarray(rows[rank:].T)


def relative_distance(new: Array, old: Array) -> float:
    """|new - old| / |old|, Frobenius norms; 0 when both are zero."""
    scale = float(np.linalg.norm(old))
    distance = float(np.linalg.norm(new - old))
    return distance / scale if scale else (0.0 if distance == 0 else math.inf)
