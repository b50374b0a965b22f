"""Two models that are not meant to be the same function, compared within limits that the user gives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.decibels import LOWEST_DB, decibels
from deconvfix.errors import ParityError

__all__ = ["Limits", "OutputDistance", "ToleranceReport", "compare_within"]

FORMAT = "deconvfix.tolerance/1"


@dataclass(frozen=True)
class Limits:
    """What is allowed: |after - before| <= atol + rtol * |before|, and at least so much SNR.

    Attributes:
        min_snr: In dB; None: any.
        atol: In the unit of the outputs; None, where `rtol` is None too: any.
        rtol: Relative to the original.
    """

    min_snr: float | None = None
    atol: float | None = None
    rtol: float | None = None

    @property
    def given(self) -> bool:
        """Whether anything is limited."""
        return any(limit is not None for limit in (self.min_snr, self.atol, self.rtol))


@dataclass(frozen=True)
class OutputDistance:
    """How far one output is from the original's.

    Attributes:
        index: Number of the output.
        snr_db: Power of the original over that of the difference; 300 dB: equal.
        max_abs: Largest absolute difference.
        beyond: Share of the elements that are further away than the limits allow.
        ok: Whether it is within all limits.
    """

    index: int
    snr_db: float
    max_abs: float
    beyond: float
    ok: bool


@dataclass(frozen=True)
class ToleranceReport:
    """All outputs, and the limits."""

    limits: Limits
    outputs: tuple[OutputDistance, ...]

    @property
    def ok(self) -> bool:
        """Whether there is an output, and all are within the limits."""
        return bool(self.outputs) and all(output.ok for output in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"format": FORMAT, "ok": self.ok, **asdict(self)}


def compare_within(limits: Limits, before: object, after: object) -> ToleranceReport:
    """Compares what two models give for the same inputs.

    Args:
        limits: What is allowed.
        before: Outputs of the original, nested as they are: arrays or tensors.
        after: Those of the other model.

    Raises:
        ParityError: If their numbers or shapes differ.
    """
    old, new = list(_arrays(before)), list(_arrays(after))
    shapes = [[array.shape for array in arrays] for arrays in (old, new)]
    if shapes[0] != shapes[1]:
        raise ParityError(
            "outputs",
            f"the shapes are {shapes[1]} instead of {shapes[0]}",
            "both models must have the same outputs",
            "Name the file that was made from the other one",
        )
    pairs = enumerate(zip(old, new, strict=True))
    return ToleranceReport(limits, tuple(_distance(limits, index, *pair) for index, pair in pairs))


def _distance(
    limits: Limits, index: int, before: NDArray[Any], after: NDArray[Any]
) -> OutputDistance:
    before, after = before.astype(np.float64), after.astype(np.float64)
    with np.errstate(all="ignore"):
        same = (before == after) | (np.isnan(before) & np.isnan(after))
        difference = np.where(same, 0.0, np.abs(after - before))
        power = float(np.square(np.where(np.isfinite(before), before, 0.0)).sum())
        noise = float(np.square(difference).sum())
    snr = -LOWEST_DB if noise == 0 else decibels(math.sqrt(power / noise))
    beyond = 0.0
    if limits.atol is not None or limits.rtol is not None:
        with np.errstate(all="ignore"):
            allowed = (limits.atol or 0.0) + (limits.rtol or 0.0) * np.abs(before)
        # Not "greater than": nothing is within the limits of a difference that is no number.
        beyond = float(np.mean(~same & ~(difference <= allowed))) if difference.size else 0.0
    loud = limits.min_snr is None or snr >= limits.min_snr
    largest = float(difference.max()) if difference.size else 0.0
    return OutputDistance(index, snr, largest, beyond, loud and beyond == 0)


def _arrays(value: object) -> Iterator[NDArray[Any]]:
    """All arrays in a nested value, in order; complex numbers as pairs."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _arrays(inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from _arrays(inner)
    elif hasattr(value, "__array__") or hasattr(value, "detach"):
        tensor: Any = value
        array = np.asarray(tensor.detach().cpu().float() if hasattr(tensor, "detach") else tensor)
        if array.dtype.kind in "fiub":
            yield array
