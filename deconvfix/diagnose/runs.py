"""The original and the converted model, run on the same inputs; which of their outputs may have a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.frontends.base import Frontend, Probe
from deconvfix.grid.flat_field import network_tables, with_channels
from deconvfix.grid.periods import Period, measured_period, stacked_periods
from deconvfix.plan import Match

__all__ = [
    "Runs",
    "flat_tables",
    "longest_period",
    "outputs_with_grids",
    "periods_if_stacked",
    "run_both",
]

# Inputs are enlarged for a flat field only until outputs have so many elements, or so many times those of
# the example: a conversion must not take the time and memory of pictures that its owner never makes.
_MOST_OUTPUT = 2**20
_MOST_GROWTH = 4


@dataclass(frozen=True)
class Runs:
    """The original and the converted model on the same inputs.

    Attributes:
        before: Of the original.
        after: Of the converted model.
        shown: The original's outputs that a grid may be in; see `diagnosis.outputs_with_grids`.
    """

    before: Probe
    after: Probe
    shown: Mapping[int, tuple[NDArray[Any], dict[str, Period]]]

    def compared(self, index: int) -> NDArray[Any] | None:
        """The converted model's output, (N, C, *spatial); None if it is of another shape."""
        values, grids = self.shown[index]
        if index >= len(self.after.outputs):
            return None
        found = with_channels(self.after.outputs[index], len(longest_period(grids)))
        return found if found is not None and found.shape == values.shape else None


def run_both(
    frontend: Frontend,
    before: Any,
    after: Any,
    matches: Sequence[Match],
    inputs: Any,
    more: Sequence[Any] = (),
) -> Runs | None:
    """Runs both models; None if one of them does not run.

    Args:
        frontend: Of the models' kind.
        before: The original.
        after: The converted model.
        matches: The original's layers.
        inputs: As `example_inputs` of `deconvfix.convert`.
        more: Further inputs, whose outputs are joined to those.
    """
    old, new = (frontend.probe(model, inputs, matches) for model in (before, after))
    if old.run is None or new.run is None:
        return None
    for batch in more:
        others = [frontend.probe(model, batch, matches) for model in (before, after)]
        joined = [_joined(*pair) for pair in zip((old, new), others, strict=True)]
        if None not in joined:
            old, new = (probe for probe in joined if probe is not None)
    return Runs(old, new, outputs_with_grids(matches, old))


def _joined(probe: Probe, other: Probe) -> Probe | None:
    """The outputs of both, sample by sample; None where they are not those of samples of one size."""
    arrays = zip(probe.outputs, other.outputs, strict=False)
    if other.run is None or any(a.shape[1:] != b.shape[1:] for a, b in arrays):
        return None
    counts = [
        {array.shape[0] if array.ndim else 0 for array in (*each.inputs, *each.outputs)}
        for each in (other, replace(probe, inputs=()))
    ]
    if any(len(found) != 1 for found in counts):
        return None
    outputs = zip(probe.outputs, other.outputs, strict=True)
    return replace(probe, outputs=tuple(np.concatenate(pair) for pair in outputs))


def flat_tables(runs: Runs) -> list[dict[int, NDArray[np.float64]]]:
    """The phases of both models' answers to a constant input, by the number of the output."""
    periods = {index: longest_period(grids) for index, (_, grids) in runs.shown.items()}
    # Relative to what the model makes anyway, as constants are enlarged for both models.
    usual = max((array.size for array in runs.before.outputs), default=0)
    most = max(_MOST_OUTPUT, _MOST_GROWTH * usual)
    found = []
    for probe in (runs.before, runs.after):
        assert probe.run is not None
        found.append(network_tables(probe.run, probe.inputs, periods, most))
    return found


def outputs_with_grids(
    matches: Sequence[Match], probe: Probe
) -> dict[int, tuple[NDArray[Any], dict[str, Period]]]:
    """The outputs that a grid may be in.

    Args:
        matches: The layers.
        probe: Of a run.

    Returns:
        By the number of the output its values, (N, C, *spatial), and the period of each layer's grid.
    """
    layers = [match for match in matches if match.spec is not None]
    stacked = periods_if_stacked(matches)
    sizes: dict[str, tuple[int, ...]] = {}
    for answer in probe.layers:
        # Of a layer that runs several times the first call, whose grid has the longest period.
        sizes.setdefault(answer.name, answer.output_size)
    shown: dict[int, tuple[NDArray[Any], dict[str, Period]]] = {}
    for index, output in enumerate(probe.outputs):
        # An output may have a channel axis or none: the first number of axes that fits counts.
        for ndim in sorted({len(period) for period in stacked.values()}):
            values = with_channels(output, ndim)
            grids: dict[str, Period] = {}
            if values is not None:
                grids = _grids(layers, stacked, sizes, probe.unseen, values.shape[2:])
            if values is not None and any(max(period) > 1 for period in grids.values()):
                shown[index] = (values, grids)
                break
    return shown


def longest_period(grids: Mapping[str, Period]) -> Period:
    """The longest of the grids' periods, per axis."""
    return tuple(max(axis) for axis in zip(*grids.values(), strict=True))


def periods_if_stacked(matches: Sequence[Match]) -> dict[str, Period]:
    """The periods of layers that follow each other."""
    layers = {match.name: match.spec.stride for match in matches if match.spec is not None}
    return dict(zip(layers, stacked_periods(list(layers.values())), strict=True))


def _grids(
    layers: Sequence[Match],
    stacked: Mapping[str, Period],
    sizes: Mapping[str, tuple[int, ...]],
    unseen: Sequence[str],
    output_size: tuple[int, ...],
) -> dict[str, Period]:
    """The periods of the layers' grids in an output: as seen, or as assumed for those not seen."""
    grids = {}
    for match in layers:
        assert match.spec
        if match.spec.ndim != len(output_size):
            continue
        if match.name in sizes and min(sizes[match.name]) > 0:
            grids[match.name] = measured_period(match.spec.stride, sizes[match.name], output_size)
        elif not sizes or match.name in unseen:
            grids[match.name] = stacked[match.name]
    return grids
