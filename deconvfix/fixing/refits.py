"""Layers fitted in closed form, as candidates: which of them, and how strongly."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from deconvfix.fixing.judge import leaves_grid
from deconvfix.fixing.report import Candidate, Measured
from deconvfix.frontends.base import LayerFits
from deconvfix.plan import Plan

__all__ = ["UNTRAINED", "refitted"]

UNTRAINED = (
    "Nothing is trained, because ONNX models are fixed without torch: layers are fitted one by one, in "
    "closed form, which takes less of a grid and costs up to 0.2 dB of quality. Training the module or "
    "program that the file was exported from usually takes more of it and costs none."
)
# Weights that are tried for a set of layers: the first, and how far apart they are.
_TRIED, _FIRST, _FACTOR = 4, 20.0, 4.0


class _Doubt:
    """A number that is turned up and down: as much as makes nothing worse.

    Args:
        first: Where it begins.
        factor: How far it goes up or down, until it was too much once and not too much once.
    """

    def __init__(self, first: float, factor: float) -> None:
        self.value = first
        self._factor = factor
        self._low, self._high = 0.0, math.inf

    def turn(self, original: Measured, last: Candidate) -> bool:
        """Goes on from the last candidate; False where no number is right."""
        leaves = last.measured is not None and leaves_grid(original, last.measured)
        worse = len(last.objections) > int(leaves)
        if leaves and worse:
            return False
        if worse:
            self._high = self.value
        else:
            self._low = self.value
        if self._low and self._high < math.inf:
            self.value = math.sqrt(self._low * self._high)
        else:
            self.value *= 1 / self._factor if worse else self._factor
        return True


def refitted(
    fits: LayerFits,
    original: Measured,
    tried: Sequence[Candidate],
    notes: list[str],
    until: float,
) -> Iterator[tuple[str, Any, Plan, bool]]:
    """All layers, then fewer of the first ones, each with as much weight as makes nothing worse.

    Args:
        fits: Of the model.
        original: Measured.
        tried: The candidates so far; the last one is judged when the next is asked for.
        notes: What could not be fitted is added.
        until: When the time is over.

    Yields:
        Name, model, plan, and that names and shapes stay.
    """
    for count in range(len(fits.names), 0, -1):
        names = fits.names[len(fits.names) - count :]
        what = "its layers" if count == len(fits.names) else f"its last layers ({count})"
        weight = _Doubt(_FIRST, _FACTOR)
        for _ in range(_TRIED):
            model, plan, more = fits.refit(names, weight.value)
            notes += [note for note in more if note not in notes]
            if not plan.replaced:
                break
            yield f"{what}, fitted with weight {weight.value:.3g}", model, plan, True
            if time.monotonic() >= until:
                return
            if not weight.turn(original, tried[-1]):
                break
