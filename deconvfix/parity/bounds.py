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

__all__ = ["LIMIT", "RUNTIME_FACTOR", "Comparison", "ParityReport", "rounding_unit", "summarize"]

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
    """

    ok: bool
    max_abs: float
    max_error_ratio: float
    dtype: str
    comparisons: tuple[Comparison, ...] = ()
    first_departure: str | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
    )
