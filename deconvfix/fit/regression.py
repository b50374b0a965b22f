"""Ridge regression of a layer's outputs on a form's features, from second moments.

For the pixels of phase f let u_f be the features (each input channel at each tap of the phase) and y
the target outputs. With the kernel W = Z w of a form (Z: `forms.base.Design.basis`) and a bias b the
fit minimises

    J(w, b) = sum over f and pixels |y - b - u_f Z_f w|^2  +  ridge * |w - w_0|^2

where Z_f are the rows of Z for the taps of phase f, and w_0 is the fit to the weights alone: where the
data say nothing, the kernel stays there. All that J needs of the data are the moments

    H_f = sum over pixels of z z^T,   z = (u_f, 1, y)

which are sums: over pixels, batches and processes. `Equations` are what is left of them for a form: the
normal equations A v = B of v = (w, b), before the ridge. Without the ridge, J of any kernel can be read
off them for any data, also for data that it was not fitted to (`squared_error`): that is how `ridge` is
chosen (`best_ridge`), and how two borders are compared. Where a part K of the kernel is fixed,
W = Z w + K, the target outputs of Z w are y - u_f K_f, whose moments follow from H_f (`beside`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.fit.design import Design

__all__ = [
    "DEFAULT_RIDGE",
    "HELDOUT_EVERY",
    "MEMORY",
    "RIDGES",
    "Equations",
    "SecondMoments",
    "Solved",
    "beside",
    "best_ridge",
    "bytes_needed",
    "equations",
    "ridge_fit",
    "solve",
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
        power: Sum of the squares of the target outputs.
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
    # Only one half was written above.
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
    # Without a bias its row and column go.
    normal, right = problem.normal[:kept, :kept].copy(), problem.right[:kept].copy()
    # Relative to the data, so that one list of candidates suits every scale; 1 where all inputs are zero.
    penalty = ridge * float(np.trace(normal[:size, :size])) / size or 1.0
    normal[np.arange(size), np.arange(size)] += penalty
    right[:size] += penalty * _rows(start)
    none = np.zeros((size, 0))
    solved = _solve_beside(normal, right, none if banned is None else banned)
    # (free * C_in, C_out) -> (C_in, C_out, free)
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
        # T is the identity but for the rows of the outputs, which lose what the fixed part explains.
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
    # min |.|^2 under B^T w = 0 is w = f - R (B^T R)^-1 B^T f, with f the free minimum and R = N^-1 B.
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
    # J = power + v^T A v - 2 v^T B, held at 0 where rounding makes it negative.
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

    # Down the ridges first, then up: only one of the two can get anywhere from a start that is no minimum.
    at = RIDGES.index(_FIRST_RIDGE)
    for step in (-1, 1):
        while error(at + step) < error(at):
            at += step
    return RIDGES[at], error(at)


# Of `bytes_needed`, in GiB, unless something else is asked for.
MEMORY = 8.0


# One sample in so many is held out while the ridge and the border are chosen.
HELDOUT_EVERY = 4


class SecondMoments(Protocol):
    """The sums that a fit needs, of one layer in one form; see `fit.regression`."""

    @property
    def design(self) -> Design:
        """The form as a linear model."""
        ...

    @property
    def groups(self) -> int:
        """Groups of the layer's channels."""
        ...

    @property
    def has_heldout(self) -> bool:
        """Whether there are samples to choose on that were not fitted to."""
        ...

    def of_group(self, group: int) -> tuple[Sequence[Array], Sequence[Array]]:
        """H_f of each phase, of the samples to fit to and of those held out."""
        ...


@dataclass(frozen=True)
class Solved:
    """A solved layer.

    Attributes:
        kernel: The form's kernel.
        bias: (C_out,) or None.
        error: Squared error on held-out samples of the fit to the others, as a share of the power.
    """

    kernel: Array
    bias: Array | None
    error: float


def bytes_needed(design: Design, spec: ConvTransposeSpec, *, any_kernel: bool = False) -> int:
    """Memory for the fit of a layer: its moments, and its equations with what the solver copies.

    Args:
        design: The form as a linear model.
        spec: The layer.
        any_kernel: Whether inputs are flat in some directions only (`flat` of `solve`).
    """
    c_in = spec.in_channels // spec.groups
    unknown: int = c_in * design.basis.shape[0 if any_kernel else 1] + 1
    sizes = design.moment_sizes(spec)
    # Those to fit to and those held out, as moments and as equations; the solver's matrix, twice.
    return 8 * (2 * spec.groups * sum(size * size for size in sizes) + 4 * unknown * unknown)


def solve(
    moments: SecondMoments, start: Array, bias: Array | None, flat: Array | None = None
) -> Solved:
    """The fit of one layer.

    Args:
        moments: Of all its samples.
        start: The fit to the weights alone, (.., C_out / groups, *taps), where the data say nothing.
        bias: Any bias, (C_out,), to say that there is one; None without.
        flat: Directions of the input channels, (groups, C_in / groups, n), orthonormal or zero: only what
            the layer gets along these keeps to the design's kernels, and the rest may have any kernel.
            For designs of one copy; `start` is then any kernel too.
    """
    design, groups = moments.design, moments.groups
    banned: list[Array | None] = [None] * groups
    if flat is not None:
        # The basis becomes that of all kernels, and what must not be in it is forbidden along `flat` alone.
        uneven = _complement(design.basis)
        banned = [_products(directions, uneven) for directions in flat]
        design = replace(design, basis=np.eye(len(design.basis)), has_offset=False)
    # Per phase the rows of Z for its taps.
    basis = [design.basis[list(phase.taps)] for phase in design.phases]
    # (C_in, C_out/g, free) -> (g, C_in/g, C_out/g, free)
    numbers = design.numbers(start, groups)
    w_0 = numbers.reshape(groups, -1, *numbers.shape[1:])
    offset = design.offset(start)
    kernels, biases, errors, power = [], [], 0.0, 0.0
    # Groups share no channels, so each is a problem of its own.
    for group in range(groups):
        own_bias = None if bias is None else bias.reshape(groups, -1)[group]
        parts = moments.of_group(group)
        outputs = w_0.shape[2]
        # The error is a share of what is there to explain in the samples that judge.
        judged = parts[1] if moments.has_heldout else parts[0]
        power += sum(float(np.trace(h[-outputs:, -outputs:])) for h in judged)
        # The fixed part of the kernel explains a part of the outputs, which goes first.
        if offset is not None:
            own = offset.reshape(groups, -1, *offset.shape[1:])[group]
            fixed = [own[..., list(phase.taps)] for phase in design.phases]
            parts = (beside(parts[0], fixed), beside(parts[1], fixed))
        fitted, heldout = (equations(part, basis, w_0[group].shape) for part in parts)
        # The ridge is chosen on held-out samples. The final fit then uses all of them.
        if moments.has_heldout:
            ridge, error = best_ridge(fitted, heldout, w_0[group], own_bias, banned[group])
            w, b = ridge_fit(fitted + heldout, w_0[group], own_bias, ridge, banned[group])
        else:
            w, b = ridge_fit(fitted, w_0[group], own_bias, DEFAULT_RIDGE, banned[group])
            error = squared_error(fitted, w, b)
        errors += error
        kernels.append(w)
        biases.append(b)
    # (C_in, C_out/g, free) for all groups -> the kernel's layout
    kernel = design.kernel(np.concatenate(kernels), groups)
    return Solved(
        (kernel if offset is None else kernel + offset).reshape(start.shape),
        None if bias is None else np.concatenate([bias for bias in biases if bias is not None]),
        errors / power if power else 0.0,
    )


def _complement(basis: Array) -> Array:
    """Orthonormal columns for the kernels outside of the span of Z, (taps, taps - free numbers)."""
    _, _, rows = np.linalg.svd(basis.T)
    return np.ascontiguousarray(rows[basis.shape[1] :].T)


def _products(directions: Array, uneven: Array) -> Array:
    """What the directions must not meet: (C_in / g, n) and (taps, m) -> (taps * C_in / g, up to n * m)."""
    strong = directions[:, np.abs(directions).sum(0) > 0]
    return np.asarray(np.kron(uneven, strong), np.float64)
