"""What layers and whole networks make of a constant input: without a grid, a constant.

The answer is looked at away from the border, where it repeats with the period of the grid. With y_f its
mean at the phase f of the period, over samples and channels

    ripple = 20 log10 ( rms of (y_f - mean of y_f) / rms of (mean of y_f) )
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.decibels import LOWEST_DB, decibels
from deconvfix.core.phases import phase_of_taps, phase_sums
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.errors import DeconvfixError

__all__ = [
    "NOT_PERIODIC",
    "FlatField",
    "Run",
    "flat_field_of",
    "layer_answer",
    "network_answers",
    "network_tables",
    "with_channels",
]

Array = NDArray[np.float64]
Run = Callable[[Sequence[NDArray[Any]]], Sequence[NDArray[Any]]]

# Why there is no flat field, in words.
NOT_PERIODIC = (
    "the output for a constant input does not become periodic away from the border. Either the model takes "
    "no larger inputs, so that the border reaches the middle, or it influences every pixel, as a position "
    "encoding does"
)
# The middle must repeat to this many roundings, or to this part of the ripple, to be believed.
_ROUNDINGS = 64
_PART = 0.1
_FACTORS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_MOST_ELEMENTS = 2**21
_MOST_OUTPUT = 2**24


@dataclass(frozen=True)
class FlatField:
    """The answer to a constant input, away from the border.

    Attributes:
        ripple_db: Decibels, see the module's text; -300 for none at all. Rounding in float32 leaves
            about -130. Where the mean is about zero, as in sound, look at `rms`.
        rms: rms of the ripple, in units of the output.
        level: rms of the mean, in units of the output.
        apart: Largest difference between two phases of one channel, in units of the output.
    """

    ripple_db: float
    rms: float
    level: float
    apart: float


def flat_field_of(tables: Array) -> FlatField:
    """The numbers for tables of phases, (N, C, *period)."""
    axes = tuple(range(2, tables.ndim))
    mean = tables.mean(axes, keepdims=True)
    spread = float(np.sqrt(np.mean((tables - mean) ** 2)))
    level = float(np.sqrt(np.mean(mean**2)))
    apart = float((tables.max(axes) - tables.min(axes)).max())
    if level == 0:
        return FlatField(LOWEST_DB if spread == 0 else -LOWEST_DB, spread, level, apart)
    return FlatField(decibels(spread / level), spread, level, apart)


def layer_answer(
    spec: ConvTransposeSpec, weight: Array, bias: Array | None, constants: Array
) -> Array:
    """The phases of a layer's answer to a constant in each channel, away from the border.

    Args:
        spec: The layer.
        weight: (C_in, C_out / groups, *kernel_size).
        bias: (C_out,) or None.
        constants: (N, C_in).

    Returns:
        (N, C_out, *stride): b + sum over the input channels of constant times phase sum.
    """
    phases = phase_of_taps(spec.kernel_size, spec.stride, spec.dilation)
    sums = phase_sums(weight, phases, spec.stride)
    g = spec.groups
    # (N, g, C_in/g) x (g, C_in/g, C_out/g, phases) -> (N, g, C_out/g, phases)
    answer: Array = np.einsum(
        "ngi,giop->ngop",
        constants.reshape(len(constants), g, -1),
        sums.reshape(g, spec.in_channels // g, spec.out_channels // g, -1),
    ).reshape(len(constants), spec.out_channels, *spec.stride)
    if bias is not None:
        answer = answer + bias.reshape(-1, *[1] * spec.ndim)
    return answer


def network_answers(
    run: Run, inputs: Sequence[NDArray[Any]], periods: Mapping[int, tuple[int, ...]]
) -> dict[int, FlatField]:
    """The flat fields of a network's outputs; see `network_tables`."""
    tables = network_tables(run, inputs, periods)
    return {index: flat_field_of(table) for index, table in tables.items()}


def network_tables(
    run: Run,
    inputs: Sequence[NDArray[Any]],
    periods: Mapping[int, tuple[int, ...]],
    most_output: int = _MOST_OUTPUT,
) -> dict[int, Array]:
    """The phases of a network's answers to a constant input, away from the border.

    Each floating-point input with spatial axes becomes constant, at its own mean in each sample and
    channel (0.5 or 0 if the network has no finite answer to that). Where the border reaches the middle
    of the output, the input is made larger, for networks that take other sizes: up to 32 times. How far
    the border reaches is measured, not computed: the middle two periods per axis must be equal, to
    rounding or to a tenth of the ripple.

    Args:
        run: Gives the outputs for inputs like those of the example.
        inputs: The example.
        periods: For each output to look at, by its number, the period of its grid.
        most_output: Inputs are not made larger any more once an output has so many elements.

    Returns:
        (N, C, *period) by the number of the output; one that never repeats itself is missing.
    """
    found: dict[int, Array] = {}
    if not any(map(_is_spatial, inputs)):
        return found
    # The model's own level first: other constants may be far from what it was trained on.
    for fill in (None, 0.5, 0.0):
        answered = False
        # Small inputs first, as time grows with a power of the factor.
        for factor in _FACTORS:
            constants = [
                _constant(array, fill, factor) if _is_spatial(array) else array for array in inputs
            ]
            # Larger and larger, until the border does not reach the middle any more.
            if factor > 1 and sum(constant.size for constant in constants) > _MOST_ELEMENTS:
                break
            try:
                outputs = run(constants)
            # A model that refuses one size is not tried on larger ones.
            except DeconvfixError:
                break
            for index, period in periods.items():
                if index in found or index >= len(outputs):
                    continue
                output = with_channels(outputs[index], len(period))
                # Another constant may have a finite answer.
                if output is None or not np.isfinite(output).all():
                    continue
                answered = True
                answer = _middle(output, period)
                if answer is not None:
                    found[index] = answer
            too_large = max((output.size for output in outputs), default=0) > most_output
            if not answered or len(found) == len(periods) or too_large:
                break
        if answered:
            break
    return found


def with_channels(output: NDArray[Any], ndim: int) -> NDArray[Any] | None:
    """An output as (N, C, *spatial); None if it is not one of floats with that many axes."""
    if output.dtype.kind != "f" or output.size == 0:
        return None
    if output.ndim == ndim + 2:
        return output
    return output[:, None] if output.ndim == ndim + 1 else None


def _is_spatial(values: NDArray[Any]) -> bool:
    return values.dtype.kind == "f" and values.ndim > 2


def _constant(values: NDArray[Any], fill: float | None, factor: int) -> NDArray[Any]:
    """Constant over the spatial axes, which are `factor` times as long."""
    shape = (*values.shape[:2], *(factor * n for n in values.shape[2:]))
    if fill is not None:
        return np.full(shape, fill, values.dtype)
    mean = values.astype(np.float64).mean(tuple(range(2, values.ndim)), keepdims=True)
    return np.ascontiguousarray(np.broadcast_to(mean.astype(values.dtype), shape))


def _middle(output: NDArray[Any], period: Sequence[int]) -> Array | None:
    """The phases in the middle of an output, (N, C, *period), if it repeats itself there."""
    eps = float(np.finfo(output.dtype).eps)
    pairs: list[int] = []
    index: list[Any] = [...]
    for n, s in zip(output.shape[2:], period, strict=True):
        if n < 2 * s:
            return None
        # Phases count from the first pixel of the output.
        begin = (n // s - 2) // 2 * s
        index.append(slice(begin, begin + 2 * s))
        pairs += [2, s]
    ndim = len(period)
    # Two periods per axis, (N, C, 2*S_1, 2*S_2, ..) -> (N, C, 2, S_1, 2, S_2, ..)
    middle = output[tuple(index)].astype(np.float64).reshape(*output.shape[:2], *pairs)
    repeats = tuple(2 + 2 * a for a in range(ndim))
    # The first against the second period, on each axis.
    drift = float((middle.max(repeats) - middle.min(repeats)).max())
    table: Array = middle.mean(repeats)
    axes = tuple(range(2, 2 + ndim))
    apart = float((table.max(axes) - table.min(axes)).max())
    rounding = _ROUNDINGS * eps * float(np.abs(middle).max())
    if not math.isfinite(drift) or drift > max(rounding, _PART * apart):
        return None
    return table
