"""Ridge regression of a layer's outputs on a form's features, from second moments.

For the pixels of phase f let u_f be the features (each input channel at each tap of the phase) and y
the outputs wanted. With the kernel W = Z w of a form (Z: `forms.base.Design.basis`) and a bias b the
fit minimises

    J(w, b) = sum over f and pixels |y - b - u_f Z_f w|^2  +  ridge * |w - w_0|^2

where Z_f are the rows of Z for the taps of phase f, and w_0 is the fit to the weights alone: where the
data say nothing, the kernel stays there. All that J needs of the data are the moments

    H_f = sum over pixels of z z^T,   z = (u_f, 1, y)

which are sums: over pixels, batches and processes. `Equations` are what is left of them for a form: the
normal equations A v = B of v = (w, b), before the ridge. Without the ridge, J of any kernel can be read
off them for any data, also for data that it was not fitted to (`squared_error`): that is how `ridge` is
chosen (`best_ridge`), and how two borders are compared. Where a part K of the kernel is fixed,
W = Z w + K, the outputs wanted of Z w are y - u_f K_f, whose moments follow from H_f (`beside`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

__all__ = [
    "DEFAULT_RIDGE",
    "RIDGES",
    "Equations",
    "beside",
    "best_ridge",
    "equations",
    "ridge_fit",
    "squared_error",
]

Array = NDArray[np.float64]

# Candidates, relative to the mean power of a feature.
RIDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
# Where the search begins.
_FIRST_RIDGE = 1e-5
# Where there is nothing to choose by.
DEFAULT_RIDGE = 1e-4


@dataclass(frozen=True)
class Equations:
    """A and B of the normal equations for one group of channels, and the power of the outputs.

    Attributes:
        normal: A, (free numbers * C_in + 1, the same); the last row is that of the bias.
        right: B, (free numbers * C_in + 1, C_out).
        power: Sum of the squares of the outputs wanted.
    """

    normal: Array
    right: Array
    power: float

    def __add__(self, other: Equations) -> Equations:
        """Those of both data."""
        return Equations(
            self.normal + other.normal, self.right + other.right, self.power + other.power
        )


def equations(
    moments: Sequence[Array], basis: Sequence[Array], shape: tuple[int, ...]
) -> Equations:
    """The normal equations of a form.

    Args:
        moments: H_f for each phase, features ordered (tap of the phase, input channel).
        basis: Z_f for each phase, (taps of the phase, free numbers).
        shape: Of w, (C_in, C_out, free numbers).
    """
    c_in, c_out, free = shape
    size = c_in * free
    normal = np.zeros((size + 1, size + 1))
    right = np.zeros((size + 1, c_out))
    power = 0.0
    for h, z in zip(moments, basis, strict=True):
        taps = len(z)
        features = c_in * taps
        # Z^T from the left: (taps, C_in * all) -> (free * C_in, all); then Z from the right, tap by tap.
        left = (z.T @ h[:features].reshape(taps, -1)).reshape(size, -1)
        gram = z.T @ left[:, :features].reshape(size, taps, c_in)
        normal[:size, :size] += gram.reshape(size, size)
        normal[:size, size] += left[:, features]
        right[:size] += left[:, features + 1 :]
        normal[size, size] += h[features, features]
        right[size] += h[features, features + 1 :]
        power += float(np.trace(h[features + 1 :, features + 1 :]))
    normal[size, :size] = normal[:size, size]
    return Equations(normal, right, power)


def ridge_fit(
    problem: Equations,
    start: Array,
    bias: Array | None,
    ridge: float,
    banned: Array | None = None,
) -> tuple[Array, Array | None]:
    """The minimum of J for one group of channels.

    Args:
        problem: Its normal equations.
        start: w_0, (C_in, C_out, free numbers).
        bias: Any bias, (C_out,), to say that there is one; None without.
        ridge: Relative to the mean of the diagonal of the normal equations.
        banned: Orthonormal columns, (free numbers * C_in, n), that w of each output must have no part of.

    Returns:
        w, shaped as `start`, and b.
    """
    c_in, c_out, free = start.shape
    size = c_in * free
    kept = size if bias is None else size + 1
    normal, right = problem.normal[:kept, :kept].copy(), problem.right[:kept].copy()
    penalty = ridge * float(np.trace(normal[:size, :size])) / size or 1.0
    normal[np.arange(size), np.arange(size)] += penalty
    right[:size] += penalty * _rows(start)
    none = np.zeros((size, 0))
    solved = _solve_beside(normal, right, none if banned is None else banned)
    w = solved[:size].reshape(free, c_in, c_out).transpose(1, 2, 0)
    return w, None if bias is None else solved[size]


def _rows(w: Array) -> Array:
    """(C_in, C_out, free) -> (free * C_in, C_out)."""
    return w.transpose(2, 0, 1).reshape(-1, w.shape[1])


def beside(moments: Sequence[Array], fixed: Sequence[Array]) -> list[Array]:
    """The moments of z' = (u, 1, y - u K): what is left to fit beside a fixed part of the kernel.

    z' = T z, so that H' = T H T^T.

    Args:
        moments: H_f for each phase.
        fixed: K_f for each phase, (C_in, C_out, taps of the phase).
    """
    left = []
    for h, k in zip(moments, fixed, strict=True):
        c_in, c_out, taps = k.shape
        # (C_in, C_out, taps) -> (C_out, features)
        rows = k.transpose(1, 2, 0).reshape(c_out, taps * c_in)
        transform = np.eye(len(h))
        transform[-c_out:, : taps * c_in] = -rows
        left.append(transform @ h @ transform.T)
    return left


def _solve_beside(normal: Array, right: Array, banned: Array) -> Array:
    """The minimum under banned^T w = 0, by the Schur complement of its Lagrange multipliers.

    `normal` is overwritten. It has no factors where the data are not finite: then the minimum is NaN.
    """
    size, count = banned.shape
    try:
        # It is symmetric, and its transpose lies in memory as LAPACK wants it.
        factors = cho_factor(normal.T, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return np.full(right.shape, np.nan)
    free: Array = cho_solve(factors, right, check_finite=False)
    if count == 0:
        return free
    columns = np.zeros((len(normal), count))
    columns[:size] = banned
    response = cho_solve(factors, columns, check_finite=False)
    solved = free - response @ np.linalg.solve(columns.T @ response, columns.T @ free)
    # What rounding has left.
    solved -= columns @ (columns.T @ solved)
    result: Array = solved
    return result


def squared_error(problem: Equations, w: Array, bias: Array | None) -> float:
    """J without the ridge: the squared error of w and b on the data of the equations."""
    offset = np.zeros(w.shape[1]) if bias is None else bias
    v = np.concatenate([_rows(w), offset[None]])
    return max(problem.power + float(np.sum(v * (problem.normal @ v - 2 * problem.right))), 0.0)


def best_ridge(
    fitted: Equations,
    heldout: Equations,
    start: Array,
    bias: Array | None,
    banned: Array | None = None,
) -> tuple[float, float]:
    """The candidate of `RIDGES` whose fit to `fitted` has the smallest error on `heldout`, and that.

    A solve takes long where a layer has many channels. The errors fall with the ridge, as less is fitted to
    noise, and then rise, as less is fitted at all: the search goes downhill from one candidate.
    """
    errors: dict[int, float] = {}

    def error(number: int) -> float:
        if number not in range(len(RIDGES)):
            return np.inf
        if number not in errors:
            w, b = ridge_fit(fitted, start, bias, RIDGES[number], banned)
            errors[number] = squared_error(heldout, w, b)
        return errors[number]

    at = RIDGES.index(_FIRST_RIDGE)
    for step in (-1, 1):
        while error(at + step) < error(at):
            at += step
    return RIDGES[at], error(at)
