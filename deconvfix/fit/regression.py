"""Ridge regression of a layer's outputs on a form's features, from second moments.

For the pixels of phase f let u_f be the features (each input channel at each tap of the phase) and y
the outputs wanted. With the kernel W = Z w of a form (Z: `forms.base.Design.basis`) and a bias b the
fit minimises

    J(w, b) = sum over f and pixels |y - b - u_f Z_f w|^2  +  ridge * |w - w_0|^2

where Z_f are the rows of Z for the taps of phase f, and w_0 is the fit to the weights alone: where the
data say nothing, the kernel stays there. All that J needs of the data are the moments

    H_f = sum over pixels of z z^T,   z = (u_f, 1, y)

which are sums: over pixels, batches and processes. Without the ridge, J of any kernel can be read off
the moments of any data, also of data that it was not fitted to (`squared_error`): that is how `ridge`
is chosen (`best_ridge`), and how two borders are compared. Where a part K of the kernel is fixed,
W = Z w + K, the outputs wanted of Z w are y - u_f K_f, whose moments follow from H_f (`beside`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEFAULT_RIDGE", "RIDGES", "beside", "best_ridge", "ridge_fit", "squared_error"]

Array = NDArray[np.float64]

# Candidates, relative to the mean power of a feature.
RIDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
# Where there is nothing to choose by.
DEFAULT_RIDGE = 1e-4


def ridge_fit(
    moments: Sequence[Array],
    basis: Sequence[Array],
    start: Array,
    bias: Array | None,
    ridge: float,
    banned: Array | None = None,
) -> tuple[Array, Array | None]:
    """The minimum of J for one group of channels.

    Args:
        moments: H_f for each phase, features ordered (input channel, tap of the phase).
        basis: Z_f for each phase, (taps of the phase, free numbers).
        start: w_0, (C_in, C_out, free numbers).
        bias: Any bias, (C_out,), to say that there is one; None without.
        ridge: Relative to the mean of the diagonal of the normal equations.
        banned: Orthonormal columns, (C_in * free numbers, n), that w of each output must have no part of.

    Returns:
        w, shaped as `start`, and b.
    """
    return _solved(*_equations(moments, basis, start.shape), start, bias, ridge, banned)


def _equations(
    moments: Sequence[Array], basis: Sequence[Array], shape: tuple[int, ...]
) -> tuple[Array, Array]:
    """A and B of the normal equations A (w, b) = B, before the ridge: the large part of the work.

    Args:
        moments: As for `ridge_fit`, like `basis`.
        basis: Likewise.
        shape: Of w, (C_in, C_out, free numbers).

    Returns:
        (C_in * free + 1, C_in * free + 1) and (C_in * free + 1, C_out).
    """
    c_in, c_out, free = shape
    size = c_in * free
    normal = np.zeros((size + 1, size + 1))
    right = np.zeros((size + 1, c_out))
    for h, z in zip(moments, basis, strict=True):
        taps = len(z)
        features = c_in * taps
        gram = h[:features, :features].reshape(c_in, taps, c_in, taps)
        # (C_in, taps, C_in, taps) -> (C_in, free, C_in, free)
        gram = np.einsum("ap,iajb,bq->ipjq", z, gram, z, optimize=True)
        normal[:size, :size] += gram.reshape(size, size)
        others = h[:features, features:].reshape(c_in, taps, 1 + c_out)
        others = np.einsum("ap,iay->ipy", z, others).reshape(size, 1 + c_out)
        normal[:size, size] += others[:, 0]
        right[:size] += others[:, 1:]
        normal[size, size] += h[features, features]
        right[size] += h[features, features + 1 :]
    normal[size, :size] = normal[:size, size]
    return normal, right


def _solved(
    normal: Array,
    right: Array,
    start: Array,
    bias: Array | None,
    ridge: float,
    banned: Array | None,
) -> tuple[Array, Array | None]:
    """w and b from `_equations`, which stay as they are."""
    c_in, c_out, free = start.shape
    size = c_in * free
    # (C_in, C_out, free) -> (C_in * free, C_out)
    w_0 = start.transpose(0, 2, 1).reshape(size, c_out)
    penalty = ridge * float(np.trace(normal[:size, :size])) / size or 1.0
    kept = size if bias is None else size + 1
    normal, right = normal[:kept, :kept].copy(), right[:kept].copy()
    normal[np.arange(size), np.arange(size)] += penalty
    right[:size] += penalty * w_0
    none = np.zeros((size, 0))
    solved = _solve_beside(normal, right, none if banned is None else banned)
    w = solved[:size].reshape(c_in, free, c_out).transpose(0, 2, 1)
    return w, None if bias is None else solved[size]


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
        rows = k.transpose(1, 0, 2).reshape(c_out, c_in * taps)
        transform = np.eye(len(h))
        transform[-c_out:, : c_in * taps] = -rows
        left.append(transform @ h @ transform.T)
    return left


def _solve_beside(normal: Array, right: Array, banned: Array) -> Array:
    """The minimum under banned^T w = 0, by the Schur complement of its Lagrange multipliers."""
    size, count = banned.shape
    if count == 0:
        return np.asarray(np.linalg.solve(normal, right), np.float64)
    columns = np.zeros((len(normal), count))
    columns[:size] = banned
    both = np.linalg.solve(normal, np.concatenate([right, columns], 1))
    free, response = both[:, : right.shape[1]], both[:, right.shape[1] :]
    solved = free - response @ np.linalg.solve(columns.T @ response, columns.T @ free)
    # What rounding has left.
    solved -= columns @ (columns.T @ solved)
    result: Array = solved
    return result


def squared_error(
    moments: Sequence[Array], basis: Sequence[Array], w: Array, bias: Array | None
) -> float:
    """J without the ridge: the squared error of w and b on the data of the moments."""
    c_in, c_out, _ = w.shape
    total = 0.0
    for h, z in zip(moments, basis, strict=True):
        # (C_in, C_out, free) -> (C_in, taps, C_out) -> (features, C_out)
        kernel = np.einsum("ap,iop->iao", z, w).reshape(c_in * len(z), c_out)
        offset = np.zeros(c_out) if bias is None else bias
        error = np.concatenate([kernel, offset[None], -np.eye(c_out)])
        total += float(np.einsum("zo,zy,yo->", error, h, error, optimize=True))
    return max(total, 0.0)


def best_ridge(
    fitted: Sequence[Array],
    heldout: Sequence[Array],
    basis: Sequence[Array],
    start: Array,
    bias: Array | None,
    banned: Array | None = None,
) -> tuple[float, float]:
    """The candidate of `RIDGES` whose fit to `fitted` has the smallest error on `heldout`, and that."""
    equations = _equations(fitted, basis, start.shape)
    errors = {
        ridge: squared_error(heldout, basis, *_solved(*equations, start, bias, ridge, banned))
        for ridge in RIDGES
    }
    ridge = min(errors, key=lambda ridge: errors[ridge])
    return ridge, errors[ridge]
