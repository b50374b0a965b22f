"""What a model gives on batches: as it is, without a grid, and on constants."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.diagnose.measure import outputs_with_grids
from deconvfix.errors import OptionError
from deconvfix.frontends.base import Frontend, Probe, Refits, Restores
from deconvfix.frontends.shuffled import ShowsShuffles
from deconvfix.grid.flat_field import FlatField, flat_field_of, network_tables
from deconvfix.grid.periods import Period, longest_period, measured_period
from deconvfix.grid.spinning import cycle_spun
from deconvfix.grid.tones import quietest, rms
from deconvfix.parity.progress import step_by_step
from deconvfix.plan import Match

__all__ = [
    "ALL_SHIFTS",
    "Outputs",
    "channelled",
    "flat_fields",
    "joined",
    "outputs_of",
    "periods_of",
    "silence_of",
    "spun",
]

Outputs = list[NDArray[Any]]
# Shifts of cycle spinning, where there is time for them.
ALL_SHIFTS = 64
# Output elements of the answer to a constant.
_MOST_OUTPUT = 2**20


def runner_of(frontend: Frontend, model: Any, matches: Sequence[Match]) -> Callable[[Any], Probe]:
    """Runs a model on batches; one that can be trained whatever layers it has."""
    if isinstance(frontend, Restores):
        return functools.partial(frontend.run, model)
    if isinstance(frontend, Refits):
        return frontend.runner(model)
    return lambda batch: frontend.probe(model, batch, matches)


def periods_of(
    frontend: Frontend, model: Any, matches: Sequence[Match], batch: Any
) -> dict[int, Period]:
    """The longest period of the grids in each output, of transposed convolutions and of pixel shuffles."""
    if isinstance(frontend, ShowsShuffles):
        copy, _ = frontend.with_transposed(frontend.prepare(model, batch, inplace=False), batch)
        layers: Sequence[Match] = frontend.find(copy, batch).matches
        probe = frontend.probe(copy, batch, layers)
    else:
        layers, probe = matches, frontend.probe(model, batch, matches)
    shown = outputs_with_grids(layers, probe)
    periods = {index: longest_period(grids) for index, (_, grids) in shown.items()}
    if not isinstance(frontend, Restores):
        return periods
    shuffles = frontend.shuffles(model, batch)
    outputs = frontend.run(model, batch).outputs if shuffles else ()
    for shuffle in shuffles:
        for index, output in enumerate(outputs):
            if output.ndim != 2 + len(shuffle.factors) or not min(shuffle.output_size):
                continue
            found = measured_period(shuffle.factors, shuffle.output_size, output.shape[2:])
            known = periods.get(index, (1,) * len(found))
            longest = tuple(map(max, zip(known, found, strict=True)))
            if max(longest) > 1:
                periods[index] = longest
    return periods


def outputs_of(
    frontend: Frontend,
    model: Any,
    matches: Sequence[Match],
    batches: Sequence[Any],
    periods: Mapping[int, Period] | None = None,
) -> Outputs:
    """The outputs on all batches, joined along the first axis; those with a period with a channel axis."""
    found: list[tuple[NDArray[Any], ...]] = []
    run = runner_of(frontend, model, matches)
    for batch in step_by_step("Measuring", batches):
        probe = run(batch)
        if probe.run is None:
            raise OptionError(
                "data",
                "the model does not run on them" + "".join(f" ({note})" for note in probe.notes),
                "inputs as the model takes them are needed",
                "Correct the data",
            )
        found.append(probe.outputs)
    return channelled([joined(column) for column in zip(*found, strict=True)], periods or {})


def channelled(outputs: Sequence[NDArray[Any]], periods: Mapping[int, Period]) -> Outputs:
    """Outputs as (N, C, *spatial) where they have a period; (N, *spatial) are of one channel."""
    return [
        values[:, None] if values.ndim == 1 + len(periods.get(i, values.shape)) else values
        for i, values in enumerate(outputs)
    ]


def joined(column: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Outputs of several batches, cut to the smallest: phases are counted from the first pixel."""
    smallest = [min(sizes) for sizes in zip(*(values.shape[1:] for values in column), strict=True)]
    place = (slice(None), *(slice(0, size) for size in smallest))
    return np.concatenate([values[place] for values in column])


def spun(
    frontend: Frontend,
    model: Any,
    matches: Sequence[Match],
    batches: Sequence[Any],
    periods: dict[int, Period],
    most: int,
    seed: int,
) -> Outputs | None:
    """The outputs without a grid by cycle spinning, where that is possible."""
    found = []
    run = runner_of(frontend, model, matches)
    for i, batch in enumerate(step_by_step("Running on shifted inputs", batches)):
        if isinstance(frontend, Restores):
            spun = frontend.cycle_spun(model, batch, periods, most, seed + i)
        else:
            spun = _spun_by_runs(run(batch), periods, most, seed + i)
        if spun is None:
            return None
        found.append(spun)
    return [joined(column) for column in zip(*found, strict=True)]


def _spun_by_runs(
    probe: Probe, periods: dict[int, Period], most: int, seed: int
) -> list[NDArray[Any]] | None:
    """Of a model that is only run."""
    run = probe.run
    if run is None or len(probe.inputs) != 1 or probe.inputs[0].dtype.kind != "f":
        return None
    return cycle_spun(lambda x: run([x]), probe.inputs[0], periods, most, seed)


def silence_of(
    frontend: Frontend,
    model: Any,
    matches: Sequence[Match],
    batches: Sequence[Any],
    index: int,
    period: Period,
) -> list[NDArray[Any]] | None:
    """The constant input that a model answers most quietly: zeros, or what it gets in the quietest part.

    Args:
        frontend: Of the model's kind.
        model: The model.
        matches: Its layers.
        batches: Real inputs.
        index: Of the output that is a sound.
        period: Of the grid in it.
    """
    run = runner_of(frontend, model, matches)
    probes = [run(batch) for batch in batches]
    sounds = [(channelled(probe.outputs, {index: period}), probe) for probe in probes]
    found = [
        (*quietest(probe.inputs, outputs[index]), probe)
        for outputs, probe in sounds
        if index < len(outputs) and outputs[index].ndim == 3
    ]
    if not found:
        return None
    _, constants, probe = min(found, key=lambda entry: entry[0])
    zeros = [np.zeros_like(x) if x.dtype.kind == "f" and x.ndim == 3 else x for x in constants]
    loudness = []
    for inputs in (zeros, constants):
        tables = {}
        if probe.run is not None:
            tables = network_tables(probe.run, inputs, {index: period}, _MOST_OUTPUT)
        loudness.append(rms(tables[index]) if index in tables else math.inf)
    return zeros if loudness[0] <= loudness[1] else constants


def flat_fields(
    frontend: Frontend,
    model: Any,
    matches: Sequence[Match],
    batch: Any,
    periods: dict[int, Period],
    silence: list[NDArray[Any]] | None = None,
) -> dict[int, FlatField]:
    """The answers to a constant input, by the number of the output; those that can be measured.

    Args:
        frontend: Of the model's kind.
        model: The model.
        matches: Its layers.
        batch: An input, whose means are taken.
        periods: Of the grid, by the number of the output.
        silence: The constant input instead, where there is one.
    """
    probe = runner_of(frontend, model, matches)(batch)
    if probe.run is None:
        return {}
    inputs = probe.inputs if silence is None else silence
    tables = network_tables(probe.run, inputs, periods, _MOST_OUTPUT)
    return {index: flat_field_of(table) for index, table in tables.items()}
