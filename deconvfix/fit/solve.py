"""A layer solved: the ridge chosen on samples that are held out, then the fit to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.fit.design import Design
from deconvfix.fit.regression import (
    DEFAULT_RIDGE,
    beside,
    best_ridge,
    equations,
    ridge_fit,
    squared_error,
)

__all__ = ["HELDOUT_EVERY", "MEMORY", "SecondMoments", "Solved", "bytes_needed", "solve"]

Array = NDArray[np.float64]

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
        uneven = _complement(design.basis)
        banned = [_products(directions, uneven) for directions in flat]
        design = replace(design, basis=np.eye(len(design.basis)), has_offset=False)
    basis = [design.basis[list(phase.taps)] for phase in design.phases]
    # (C_in, C_out/g, free) -> (g, C_in/g, C_out/g, free)
    numbers = design.numbers(start, groups)
    w_0 = numbers.reshape(groups, -1, *numbers.shape[1:])
    offset = design.offset(start)
    kernels, biases, errors, power = [], [], 0.0, 0.0
    for group in range(groups):
        own_bias = None if bias is None else bias.reshape(groups, -1)[group]
        parts = moments.of_group(group)
        outputs = w_0.shape[2]
        judged = parts[1] if moments.has_heldout else parts[0]
        power += sum(float(np.trace(h[-outputs:, -outputs:])) for h in judged)
        if offset is not None:
            own = offset.reshape(groups, -1, *offset.shape[1:])[group]
            fixed = [own[..., list(phase.taps)] for phase in design.phases]
            parts = (beside(parts[0], fixed), beside(parts[1], fixed))
        fitted, heldout = (equations(part, basis, w_0[group].shape) for part in parts)
        if moments.has_heldout:
            ridge, error = best_ridge(fitted, heldout, w_0[group], own_bias, banned[group])
            w, b = ridge_fit(fitted + heldout, w_0[group], own_bias, ridge, banned[group])
        else:
            w, b = ridge_fit(fitted, w_0[group], own_bias, DEFAULT_RIDGE, banned[group])
            error = squared_error(fitted, w, b)
        errors += error
        kernels.append(w)
        biases.append(b)
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
