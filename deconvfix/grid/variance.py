"""Analysis of variance of outputs by phase: is there a grid, how strong is it, and could it be chance?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from deconvfix.grid.spectra import FEWEST_CELLS, high_pass, manageable, spatial_index

__all__ = ["PhaseVariance", "phase_variance"]

Array = NDArray[np.float64]

_EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class PhaseVariance:
    """Analysis of variance of an output by phase, see `phase_variance`.

    Attributes:
        period: Of the grid, in output pixels per axis.
        layers: Those whose grid has this period, or a multiple of it.
        share: Of the variance of the high-pass residual, what the phase explains, 0 to 1. Without a
            grid 1 / cells is to be expected.
        rms: Root mean square of the grid, in units of the output.
        f_statistic: Variance between phases over what the variance within phases explains.
        p_value: Probability of an F as large as that without a grid.
        cells: Number of whole periods that were compared.
    """

    period: tuple[int, ...]
    layers: tuple[str, ...]
    share: float
    rms: float
    f_statistic: float
    p_value: float
    cells: int


def phase_variance(
    values: NDArray[Any], period: Sequence[int], layers: Sequence[str] = ()
) -> PhaseVariance | None:
    """Analysis of variance of an output by phase: is there a grid, and how strong is it?

    The high-pass residual (`high_pass`) is cut into cells of one period. Each cell i is one observation
    of a vector x_i: its pixels of all channels, each channel's mean taken off. Without a grid the mean
    vector m of n cells is noise:

        F = n |m|^2 / tr(V),    V the covariance of the x_i

    is 1 on average. Pixels within a cell are correlated, so the degrees of freedom are those of Box's
    approximation (Box 1954, doi 10.1214/aoms/1177728786; in repeated-measures analyses Greenhouse and
    Geisser 1959), tr(V)^2 / tr(V^2) and n - 1 times that, with tr(V^2) estimated without bias (Bai and
    Saranadasa 1996). With white noise and one channel this is the F test of a one-way analysis.

    Neighbouring cells count as independent, and positions as equal: textures that are longer than a cell
    make p a few times too small, and pictures that are all aligned with the grid (centred digits) have
    phases of their own. A grid that is there usually gives a p far below 1e-6.

    Args:
        values: (N, C, *spatial).
        period: Of the grid, per axis.
        layers: Whose grid it is.

    Returns:
        None if there are fewer than four whole periods.
    """
    values = manageable(values)
    if any(n < 2 * s + s for n, s in zip(values.shape[2:], period, strict=True)):
        return None
    cells = _cells(high_pass(values, period), period)
    count = len(cells)
    if count < FEWEST_CELLS:
        return None
    # A channel's level is no grid, so each cell loses the mean of its channels.
    x = (cells - cells.mean(2, keepdims=True)).reshape(count, -1)
    channels, most = cells.shape[1], cells.shape[1] * (cells.shape[2] - 1)
    # The mean over the cells estimates the grid. What varies between cells is noise.
    mean = x.mean(0)
    between = count * float(mean @ mean)
    total = float(np.vdot(x, x))
    # What rounding leaves in an output without any noise.
    floor = x.size * (_EPS * float(np.abs(values).max(initial=0))) ** 2
    if total <= floor:
        return PhaseVariance(tuple(period), tuple(layers), 0.0, 0.0, 0.0, 1.0, count)
    deviations = x - mean
    variance = max(total - between, floor) / (count - 1)
    # tr(V^2) from the smaller of the two products.
    product = deviations @ deviations.T if count < x.shape[1] else deviations.T @ deviations
    squared = float(np.vdot(product, product)) / (count - 1) ** 2
    # Bai and Saranadasa's estimate of tr(V^2).
    unbiased = (
        (squared - variance**2 / (count - 1)) * (count - 1) ** 2 / ((count + 1) * (count - 2))
    )
    # At most the numbers that vary: pixels of a cell less one for each channel.
    freedom = min(variance**2 / unbiased, most) if unbiased > 0 else most
    freedom = max(freedom, 1.0)
    statistic = between / variance
    return PhaseVariance(
        period=tuple(period),
        layers=tuple(layers),
        share=between / total,
        rms=math.sqrt(float(mean @ mean) / (channels * cells.shape[2])),
        f_statistic=statistic,
        p_value=float(fdtrc(freedom, freedom * (count - 1), statistic)),
        cells=count,
    )


def _cells(residual: Array, period: Sequence[int]) -> Array:
    """(N, C, *spatial) -> (cells, C, phases)."""
    counts = [n // s for n, s in zip(residual.shape[2:], period, strict=True)]
    whole = spatial_index(slice(0, n * s) for n, s in zip(counts, period, strict=True))
    pairs = [size for pair in zip(counts, period, strict=True) for size in pair]
    samples, channels = residual.shape[:2]
    # (N, C, n_1, S_1, n_2, S_2, ..) -> (N, n_1, n_2, .., C, S_1, S_2, ..)
    split = residual[whole].reshape(samples, channels, *pairs)
    ndim = len(counts)
    order = (0, *(2 + 2 * a for a in range(ndim)), 1, *(3 + 2 * a for a in range(ndim)))
    cells: Array = split.transpose(order).reshape(-1, channels, math.prod(period))
    return cells
