"""What a model gives on batches: as it is, without a grid, and on constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.errors import OptionError
from deconvfix.frontends.base import Frontend, Restores
from deconvfix.grid.flat_field import flat_field_of, network_tables
from deconvfix.grid.periods import Period
from deconvfix.plan import Match

__all__ = ["Outputs", "flat_db", "joined", "outputs_of", "spun"]

Outputs = list[NDArray[Any]]
# Output elements of the answer to a constant.
_MOST_OUTPUT = 2**20


def outputs_of(
    frontend: Frontend, model: Any, matches: Sequence[Match], batches: Sequence[Any]
) -> Outputs:
    """The outputs on all batches, joined along the first axis."""
    found: list[tuple[NDArray[Any], ...]] = []
    for batch in batches:
        probe = frontend.probe(model, batch, matches)
        if probe.run is None:
            raise OptionError(
                "data",
                "the model does not run on them" + "".join(f" ({note})" for note in probe.notes),
                "inputs as the model takes them are needed",
                "Correct the data",
            )
        found.append(probe.outputs)
    return [joined(column) for column in zip(*found, strict=True)]


def joined(column: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Outputs of several batches, cut to the smallest: phases are counted from the first pixel."""
    smallest = [min(sizes) for sizes in zip(*(values.shape[1:] for values in column), strict=True)]
    place = (slice(None), *(slice(0, size) for size in smallest))
    return np.concatenate([values[place] for values in column])


def spun(
    frontend: Any,
    model: Any,
    batches: Sequence[Any],
    periods: dict[int, Period],
    most: int,
    seed: int,
) -> Outputs | None:
    """The outputs without a grid by cycle spinning, where that is possible."""
    if not isinstance(frontend, Restores):
        return None
    found = []
    for i, batch in enumerate(batches):
        spun = frontend.cycle_spun(model, batch, periods, most, seed + i)
        if spun is None:
            return None
        found.append(spun)
    return [joined(column) for column in zip(*found, strict=True)]


def flat_db(
    frontend: Frontend, model: Any, matches: Sequence[Match], batch: Any, periods: dict[int, Period]
) -> float | None:
    """Ripple of the answer to a constant input, the largest of the outputs."""
    probe = frontend.probe(model, batch, matches)
    if probe.run is None:
        return None
    tables = network_tables(probe.run, probe.inputs, periods, _MOST_OUTPUT)
    return max((flat_field_of(table).ripple_db for table in tables.values()), default=None)
