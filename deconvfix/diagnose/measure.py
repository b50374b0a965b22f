"""What a fitted conversion does to a model, measured: the grid before and after, and the distance.

The ripple of layers comes from the weights that they have; that of the network, and the tones in its
outputs, from running the original and the converted model on the same inputs, and on constant ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.decibels import LOWEST_DB, decibels, decibels_in_words
from deconvfix.diagnose.fidelity import Fidelity, OutputChange, Tone
from deconvfix.frontends.base import Frontend, Probe, ReadsConverted
from deconvfix.grid.flat_field import (
    NOT_PERIODIC,
    FlatField,
    flat_field_of,
    network_tables,
    with_channels,
)
from deconvfix.grid.kernel import ripple_db
from deconvfix.grid.periods import Period, longest_period, measured_period, stacked_periods
from deconvfix.grid.spectra import spectral_peaks
from deconvfix.grid.tones import locked_tones, rms
from deconvfix.grid.visible import visible_grid
from deconvfix.parity.bounds import psnr
from deconvfix.plan import Match, Plan

__all__ = [
    "Ripples",
    "Runs",
    "fidelity_of",
    "flat_tables",
    "outputs_with_grids",
    "periods_if_stacked",
    "planned_ripples",
    "ripples_now",
    "run_both",
    "with_runs",
]

# Inputs are enlarged for a flat field only until outputs have so many elements, or so many times those of
# the example: a conversion must not take the time and memory of pictures that its owner never makes.
_MOST_OUTPUT = 2**20
_MOST_GROWTH = 4
# Outputs that agree less than this are other ones to the eye. A grid that is so faint is hard to see.
_FAR_DB = 25.0
_FAINT_DB = -30.0

Ripples = dict[str, tuple[float, float]]


# --- layers -------------------------------------------------------------------------------------


def planned_ripples(matches: Sequence[Match], plan: Plan) -> Ripples:
    """The ripples of the layers that change, before, and after a fit to their weights.

    Args:
        matches: The layers; their weights must be those of the original still.
        plan: What is converted.

    Returns:
        dB before and after, by the layer's name; layers whose weights cannot be read are missing.
    """
    found: Ripples = {}
    readers = {match.name: match for match in matches}
    for decision in plan.replaced:
        match = readers.get(decision.name)
        if decision.exact or match is None or match.read_weight is None:
            continue
        # A recipe of another geometry says nothing about this layer.
        if match.spec is None or match.spec != decision.spec:
            continue
        weight = match.read_weight()
        new = decision.target.equivalent(match.spec, decision.settings, weight)
        found[decision.name] = (ripple_db(match.spec, weight), ripple_db(*new))
    return found


def ripples_now(frontend: Frontend, model: Any, plan: Plan, planned: Ripples) -> Ripples:
    """The same, after by the weights that the converted layers have: whatever fitted them.

    Layers that a front end writes as operators have the kernels that were decided, as the proof says.
    """
    fitted = [layer for layer in plan.replaced if layer.name in planned]
    after = {name: pair[1] for name, pair in planned.items()}
    for layer in fitted:
        # Kernels that travel in the plan are those that the graph holds.
        if layer.fitted is not None:
            spread = layer.target.spread(layer.spec, layer.settings, layer.fitted.kernel)
            after[layer.name] = ripple_db(*spread)
    # Corrected layers are still found as transposed convolutions, with their new weights.
    corrected = {layer.name for layer in fitted if layer.target.keeps_layer}
    if corrected:
        for match in frontend.find(model, None).matches:
            readable = match.spec is not None and match.read_weight is not None
            if match.name in corrected and readable:
                assert match.spec
                assert match.read_weight
                after[match.name] = ripple_db(match.spec, match.read_weight())
    # Exchanged ones are not, so the front end reads what their modules hold.
    exchanged = [layer.name for layer in fitted if layer.name not in corrected]
    if exchanged and isinstance(frontend, ReadsConverted):
        for name, converted in frontend.converted_weights(model, exchanged).items():
            after[name] = ripple_db(*converted)
    return {name: (pair[0], after[name]) for name, pair in planned.items()}


# --- networks -----------------------------------------------------------------------------------


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
    if other.run is None or any(old.shape[1:] != new.shape[1:] for old, new in arrays):
        return None
    # The first axis must be that of the samples.
    if len({len(array) if array.ndim else 0 for array in (*other.inputs, *other.outputs)}) != 1:
        return None
    outputs = zip(probe.outputs, other.outputs, strict=True)
    return replace(probe, outputs=tuple(np.concatenate(pair) for pair in outputs))


def fidelity_of(ripples: Ripples) -> Fidelity:
    """What is known of an intended change without a run."""
    before = max((pair[0] for pair in ripples.values()), default=LOWEST_DB)
    after = max((pair[1] for pair in ripples.values()), default=LOWEST_DB)
    return Fidelity(None, before, after)


def with_runs(
    fidelity: Fidelity,
    frontend: Frontend,
    before: Any,
    after: Any,
    matches: Sequence[Match],
    batches: Sequence[Any],
    *,
    sample_rate: float | None = None,
) -> tuple[Fidelity, tuple[str, ...]]:
    """Adds what running both models tells: distance, grid on constant inputs, tones in the outputs.

    Args:
        fidelity: What is known without a run.
        frontend: Of the models' kind.
        before: The original.
        after: The converted model.
        matches: The original's layers.
        batches: Inputs, each as `example_inputs` of `deconvfix.convert`; their samples count together.
        sample_rate: Of one-dimensional outputs, in Hz.

    Returns:
        It, and notes on what could not be measured.
    """
    fidelity = replace(fidelity, psnr_db=frontend.psnr_db(before, after, batches[0]))
    runs = run_both(frontend, before, after, matches, batches[0], batches[1:])
    if runs is None:
        return fidelity, (
            "The grid of the whole model was not measured, because the model does not run.",
        )
    # The first axis is that of the samples, where there is one.
    batch = next((len(array) for array in runs.before.inputs if array.ndim), None)
    if len(batches) > 1 and batch is not None:
        batch = len(runs.before.outputs[0])
        fidelity = replace(fidelity, psnr_db=psnr(runs.before.outputs, runs.after.outputs))
    outputs = _changes(runs, sample_rate)
    flat = [output for output in outputs if output.flat_before and output.flat_after]
    notes = tuple(
        f"Output {output.index}: the grid on a constant input was not measured, because {NOT_PERIODIC}."
        for output in outputs
        if output not in flat
    )
    found = replace(
        fidelity,
        network_ripple_db_before=_largest([output.flat_before for output in flat]),
        network_ripple_db_after=_largest([output.flat_after for output in flat]),
        psnr_samples=batch,
        outputs=outputs,
    )
    return found, (*_far(found), *notes)


def _far(fidelity: Fidelity) -> tuple[str, ...]:
    """A note for outputs that no longer match: why, and what to do."""
    psnr, ripple = fidelity.psnr_db, fidelity.network_ripple_db_before
    if psnr is None or psnr >= _FAR_DB:
        return ()
    reason = ""
    if ripple is not None and ripple < _FAINT_DB and fidelity.ripple_db_before > ripple:
        reason = (
            " The layers after the converted ones rely on their grids and cancel them: in the original, "
            f"{decibels_in_words(ripple)} of ripple is left."
        )
    return (
        f"The outputs no longer match the original's (PSNR {psnr:.1f} dB).{reason} Fits to single layers "
        "do not see what follows. Distillation does (init 'tuned', for modules), and improves with time and "
        "samples; or keep these layers as they are.",
    )


def _largest(answers: Sequence[FlatField | None]) -> float | None:
    return max((answer.ripple_db for answer in answers if answer is not None), default=None)


def _changes(runs: Runs, sample_rate: float | None) -> tuple[OutputChange, ...]:
    """The grid in each output that may have one."""
    periods = {index: longest_period(grids) for index, (_, grids) in runs.shown.items()}
    answers = [
        {index: flat_field_of(table) for index, table in tables.items()}
        for tables in flat_tables(runs)
    ]
    return tuple(
        OutputChange(
            index=index,
            period=periods[index],
            flat_before=answers[0].get(index),
            flat_after=answers[1].get(index),
            tones=_tones(values, runs.compared(index), grids, sample_rate),
            shift=_shift(values, runs.compared(index)),
            span=float(values.max()) - float(values.min()),
            **(_heard if len(periods[index]) == 1 else _seen)(
                values, runs.compared(index), periods[index], sample_rate
            ),
        )
        for index, (values, grids) in runs.shown.items()
    )


def _seen(
    before: NDArray[Any], after: NDArray[Any] | None, period: Period, sample_rate: float | None
) -> dict[str, Any]:
    """The visible grid of both outputs, where and in the steps in which the original's is."""
    return {
        "visible_before": visible_grid(before, period),
        "visible_after": None if after is None else visible_grid(after, period, like=before),
    }


def _heard(
    before: NDArray[Any], after: NDArray[Any] | None, period: Period, sample_rate: float | None
) -> dict[str, Any]:
    """The tones of both sounds, and how well they match, relative to the original's programme."""
    old = before.astype(np.float64)
    programme = rms(old) if np.isfinite(old).all() else 0.0
    snr = None
    if after is not None and programme and np.isfinite(after).all():
        snr = decibels(programme / error) if (error := rms(after - old)) else -LOWEST_DB
    heard_before, heard_after = (
        None if sound is None else locked_tones(sound, period, like=before, sample_rate=sample_rate)
        for sound in (before, after)
    )
    found = {"heard_before": heard_before, "heard_after": heard_after}
    return {**found, "programme": programme, "snr_db": snr}


def _shift(before: NDArray[Any], after: NDArray[Any] | None) -> tuple[float, ...]:
    """How far the mean of each channel moved: what is seen as another colour."""
    if after is None or not (np.isfinite(before).all() and np.isfinite(after).all()):
        return ()
    # (N, C, *spatial) -> (C,)
    difference = after.astype(np.float64) - before.astype(np.float64)
    moved = difference.mean(tuple(axis for axis in range(before.ndim) if axis != 1))
    return tuple(float(value) for value in moved)


def _tones(
    before: NDArray[Any],
    after: NDArray[Any] | None,
    grids: Mapping[str, Period],
    sample_rate: float | None,
) -> tuple[Tone, ...]:
    """The peaks of both spectra, side by side."""
    if after is None or not (np.isfinite(before).all() and np.isfinite(after).all()):
        return ()
    period = longest_period(grids)
    rate = sample_rate if len(period) == 1 else None
    old, new = (
        {peak.frequency: peak for peak in spectral_peaks(values, period, grids, rate)}
        for values in (before, after)
    )
    return tuple(
        Tone(
            frequency=frequency,
            hz=peak.hz,
            layers=peak.layers,
            ratio_db_before=old[frequency].ratio_db if frequency in old else None,
            ratio_db_after=new[frequency].ratio_db if frequency in new else None,
        )
        # Peaks of either: what only one of the two has counts as well.
        for frequency, peak in (new | old).items()
    )


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
