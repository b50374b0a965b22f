"""Arrays compared: the numbers behind every parity report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.decibels import LOWEST_DB, decibels
from deconvfix.parity.bounds import LIMIT, Comparison

__all__ = ["compare_arrays", "equal_arrays", "is_inexact", "psnr", "rounding_of", "varies_array"]

Array = NDArray[Any]


def compare_arrays(
    what: str, inputs: str, actual: Array, expected: Array, rounding: Array | float
) -> Comparison:
    """Compares two results.

    Args:
        what: What is compared, for the report.
        inputs: On which inputs, for the report.
        actual: The result in question.
        expected: What it should be; integers and strings must be equal.
        rounding: The difference that one rounding explains, for each element or for all.
    """
    if actual.shape != expected.shape:
        shapes = f"{inputs} (shapes {actual.shape}, {expected.shape})"
        return Comparison(what, shapes, math.inf, math.inf, False)
    if actual.size == 0:
        return Comparison(what, inputs, 0.0, 0.0, True)
    if not is_inexact(expected):
        unequal = float(np.sum(actual != expected))
        return Comparison(what, inputs, unequal, math.inf if unequal else 0.0, unequal == 0)
    if not np.iscomplexobj(expected):
        actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    with np.errstate(all="ignore"):
        same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
        difference = np.where(same, 0.0, np.abs(actual - expected))
        ratio = np.where(same, 0.0, difference / np.asarray(rounding, np.float64))
    worst = math.inf if np.isnan(difference).any() else float(difference.max())
    worst_ratio = math.inf if np.isnan(ratio).any() else float(ratio.max())
    return Comparison(what, inputs, worst, worst_ratio, worst_ratio <= LIMIT)


def rounding_of(value: Array, disturbed: Sequence[Array], eps: float, tiny: float) -> float:
    """How far rounding moves a result: the largest departure seen, at least one eps of its size.

    Args:
        value: The result.
        disturbed: The same computed again with disturbances of the size of one rounding.
        eps: Distance of 1 from the next number of the result's dtype.
        tiny: Smallest normal number of the result's dtype.
    """
    value = value.astype(np.float64)
    finite = np.abs(value[np.isfinite(value)])
    size = float(finite.max()) if finite.size else 0.0
    with np.errstate(all="ignore"):
        departures = [np.abs(other - value) for other in disturbed if other.shape == value.shape]
    largest = [
        float(departure[np.isfinite(departure)].max())
        for departure in departures
        if np.isfinite(departure).any()
    ]
    return max([eps * size, tiny, *largest])


def psnr(before: Sequence[Array], after: Sequence[Array]) -> float | None:
    """Peak signal-to-noise ratio of outputs, in dB.

    The peak is the range of the original's outputs. 300 dB stand for equal outputs; None means that
    there is no floating-point output to compare.
    """
    pairs = [
        (old.astype(np.float64), new.astype(np.float64))
        for old, new in zip(before, after, strict=True)
        if old.dtype.kind == "f" and old.shape == new.shape and old.size
    ]
    if not pairs:
        return None
    peak = max(float(old.max() - old.min()) for old, _ in pairs)
    count = sum(old.size for old, _ in pairs)
    error = math.sqrt(sum(float(((old - new) ** 2).sum()) for old, new in pairs) / count)
    return decibels(peak / error) if error else -LOWEST_DB


def equal_arrays(one: Array, other: Array) -> bool:
    """Equality where NaN equals NaN."""
    if one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def varies_array(value: Array, other: Array | None) -> bool:
    """Whether a result is more than one constant.

    Args:
        value: The result; not empty.
        other: The result on other inputs, if there is one.
    """
    first = value.reshape(-1)[:1]
    if not equal_arrays(np.broadcast_to(first, value.size), value.reshape(-1)):
        return True
    return other is not None and other.size > 0 and not equal_arrays(first, other.reshape(-1)[:1])


def is_inexact(value: Array) -> bool:
    """Whether it holds floating-point or complex numbers."""
    return value.dtype.kind in "fc"
