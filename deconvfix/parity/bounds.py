"""Proof that two models compute the same function: the numbers, and their bounds.

*Layers.* A layer of trained weight W and bias b, on an input x, has the rounding error

    |dy| <= c * eps * (|W| (*) |x| + |b|)

for any usual order of summation; the right side is the layer itself, run on absolute values. A correct
form stays below c = 10; a wrong one departs by many powers of ten. Rounding errors of a sum of n terms
grow like sqrt(n) (Higham and Mary 2019, doi 10.1137/18M1226312), so c is sqrt(n) where that is more.

*End to end.* The original is run again with noise of one eps * (|W| (*) |x| + |b|) on each of these
layers' outputs. What that does to the model's output is what rounding may do to it; the converted model
must stay within ten times that.

*Between runtimes* every operation rounds differently. The original is run under Monte Carlo arithmetic
(Parker 1997): each operation's operands and result are moved by one eps at random. Ten times the largest
departure is what rounding explains there: elementary functions are accurate to several eps only (1e-6 is
usual for exp and tanh in vectorised kernels), and the same way on every call. The limit is ten times that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.decibels import LOWEST_DB, decibels

__all__ = [
    "LIMIT",
    "RUNTIME_FACTOR",
    "Comparison",
    "ParityReport",
    "compare_arrays",
    "equal_arrays",
    "is_inexact",
    "psnr",
    "rounding_of",
    "rounding_unit",
    "summarize",
    "varies_array",
]

Array = NDArray[Any]

LIMIT = 10.0
RUNTIME_FACTOR = 10.0


@dataclass(frozen=True)
class Comparison:
    """One pair of results, compared.

    Attributes:
        what: What was compared: a layer's name, or "output" with its number.
        inputs: On which inputs, in words.
        max_abs: Largest absolute difference.
        error_ratio: Largest difference over what rounding explains, see the module's text.
        ok: Whether the ratio is within its limit and NaN and infinities agree.
    """

    what: str
    inputs: str
    max_abs: float
    error_ratio: float
    ok: bool


@dataclass(frozen=True)
class ParityReport:
    """The outcome of a verification.

    Attributes:
        ok: Whether everything compared agrees, and there was evidence.
        max_abs: Largest absolute difference of the end-to-end outputs (of layers without those).
        max_error_ratio: Largest ratio of any comparison; the limit is 10.
        dtype: The dtype of the comparison.
        comparisons: All of them.
        first_departure: Name of the first layer, in execution order, that differs by more than
            rounding; None if none does.
        problems: Sentences: what failed.
        notes: Sentences: what limits the evidence.
        remedy: What to do about the problems, where that is known; a sentence.
        ran: Whether both models ran from their inputs to their outputs, and those were compared. Without
            that the layers alone were.
    """

    ok: bool
    max_abs: float
    max_error_ratio: float
    dtype: str
    comparisons: tuple[Comparison, ...] = ()
    first_departure: str | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    remedy: str = ""
    ran: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def rounding_unit(eps: float, terms: int) -> float:
    """What one rounding explains, relative to the sum of the magnitudes of that many terms."""
    return eps * max(1.0, math.sqrt(terms) / LIMIT)


def summarize(
    layers: Sequence[Comparison],
    outputs: Sequence[Comparison],
    dtype: str,
    problems: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> ParityReport:
    """Draws the verdict from comparisons; without any, there is no evidence and it is not ok."""
    compared = (*layers, *outputs)
    departed = [comparison for comparison in compared if not comparison.ok]
    problems = list(problems)
    if not compared and not problems:
        problems.append("Nothing was compared: give example inputs.")
    for comparison in departed[:3]:
        problems.append(
            f"{comparison.what} differs by {comparison.max_abs:.3g} on {comparison.inputs}, "
            f"{comparison.error_ratio:.3g} x the rounding bound (limit {LIMIT:g})."
        )
    return ParityReport(
        ok=not problems,
        max_abs=max((comparison.max_abs for comparison in outputs or layers), default=0.0),
        max_error_ratio=max((comparison.error_ratio for comparison in compared), default=0.0),
        dtype=dtype,
        comparisons=compared,
        first_departure=next((layer.what for layer in layers if not layer.ok), None),
        problems=tuple(problems),
        notes=tuple(notes),
        ran=bool(outputs),
    )


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
