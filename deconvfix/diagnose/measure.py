"""What a fitted conversion does to a model, measured: the grid before and after, and the distance.

The ripple of layers comes from the weights that they have; that of the network, and the tones in its
outputs, from running the original and the converted model on the same inputs, and on constant ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.decibels import LOWEST_DB, decibels, decibels_in_words
from deconvfix.diagnose.fidelity import Fidelity, OutputChange, Tone
from deconvfix.diagnose.runs import Runs, flat_tables, longest_period, run_both
from deconvfix.frontends.base import Frontend, ReadsConverted
from deconvfix.grid.flat_field import (
    NOT_PERIODIC,
    FlatField,
    flat_field_of,
)
from deconvfix.grid.kernel import ripple_db
from deconvfix.grid.periods import Period
from deconvfix.grid.spectra import spectral_peaks
from deconvfix.grid.tones import locked_tones, rms
from deconvfix.grid.visible import visible_grid
from deconvfix.parity.bounds import psnr
from deconvfix.plan import Match, Plan

__all__ = [
    "Ripples",
    "fidelity_of",
    "planned_ripples",
    "ripples_now",
    "with_runs",
]

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
    return {
        "heard_before": locked_tones(before, period, sample_rate=sample_rate),
        "heard_after": None
        if after is None
        else locked_tones(after, period, like=before, sample_rate=sample_rate),
        "programme": programme,
        "snr_db": snr,
    }


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
