"""From a search and a run to an Inspection: which grids there are, and what they do to the outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.decibels import INVISIBLE_DB, LOWEST_DB
from deconvfix.diagnose.advice import recommend
from deconvfix.diagnose.inspection import Inspection, Layer, OutputDiagnosis
from deconvfix.diagnose.measure import outputs_with_grids, periods_if_stacked
from deconvfix.frontends.base import Findings, Probe
from deconvfix.grid.flat_field import NOT_PERIODIC, flat_field_of, network_answers
from deconvfix.grid.kernel import frequency_ripples_db, ripple_db, sum_rule_holds, uneven_overlap
from deconvfix.grid.periods import (
    GridFrequency,
    Period,
    frequencies_of,
    layers_with,
    longest_period,
)
from deconvfix.grid.spectra import radial_spectrum, spectral_peaks
from deconvfix.grid.tones import locked_tones
from deconvfix.grid.variance import PhaseVariance, phase_variance
from deconvfix.grid.visible import VISIBLE, visible_grid
from deconvfix.plan import Match

__all__ = [
    "describe",
    "diagnose",
]

Answers = dict[str, NDArray[np.float64]]


def diagnose(findings: Findings, probe: Probe, sample_rate: float | None) -> Inspection:
    """Puts together what is known of a model.

    Args:
        findings: Its layers.
        probe: What a run told; an empty one if there was none.
        sample_rate: Of one-dimensional outputs, in Hz.
    """
    matches = findings.matches
    notes = [*findings.notes, *probe.notes]
    strides = [match.spec.stride for match in matches if match.spec is not None]
    stacked = periods_if_stacked(matches)
    if sample_rate is not None and not any(len(stride) == 1 for stride in strides):
        notes.append("No layer is one-dimensional, so the sample rate was not used.")
    # From the order of the layers first, then from the sizes that were seen, which are right.
    periods, outputs = dict(stacked), []
    shown = outputs_with_grids(matches, probe)
    for _, grids in reversed(shown.values()):
        periods.update(grids)  # the first output counts
    # One run on constants serves all outputs.
    longest = {index: longest_period(grids) for index, (_, grids) in shown.items()}
    flat = {} if probe.run is None else network_answers(probe.run, probe.inputs, longest)
    for index, (values, grids) in shown.items():
        # One value that is not finite makes every spectrum and every mean useless.
        usable = bool(np.isfinite(values).all())
        sound = len(longest[index]) == 1
        one_dimensional = sample_rate if sound else None
        outputs.append(
            OutputDiagnosis(
                index=index,
                shape=tuple(probe.outputs[index].shape),
                period=longest[index],
                flat_field=flat.get(index),
                phase_variances=tuple(_variances(values, grids)) if usable else (),
                peaks=spectral_peaks(values, longest[index], grids, one_dimensional)
                if usable
                else (),
                radial_spectrum=radial_spectrum(values) if usable else None,
                visible=visible_grid(values, longest[index]) if usable and not sound else None,
                heard=locked_tones(values, longest[index], sample_rate=sample_rate)
                if usable and sound
                else None,
            )
        )
        notes += _limits(outputs[-1], usable)
    # The layers last, with the periods that the outputs gave.
    found = describe(
        matches,
        notes,
        periods=periods,
        answers=_answers(probe),
        outputs=outputs,
        advice=probe.advice,
        sample_rate=sample_rate,
    )
    return replace(found, notes=(*found.notes, *_nothing_to_lose(found), *_seen(found)))


def _seen(found: Inspection) -> Iterator[str]:
    """A sentence on what to do about a grid that is seen."""
    heard = [output for output in found.outputs if output.heard and output.heard.is_heard]
    if heard:
        yield (
            f"Output {heard[0].index} has tones that are heard on these inputs. If they are real ones, "
            "`deconvfix fix` takes them out and makes nothing worse, or says why it cannot."
        )
    seen = [output for output in found.outputs if output.visible and output.visible.mean > VISIBLE]
    if seen:
        yield (
            f"Output {seen[0].index} has a grid that is seen on these inputs. If they are real ones, "
            "`deconvfix fix` takes it out and makes nothing worse, or says why it cannot; a form without a "
            "grid that is fitted to the weights alone may draw a stronger one in pictures."
        )


def _nothing_to_lose(found: Inspection) -> Iterator[str]:
    """Sentences about outputs whose layers make grids that do not arrive."""
    strong = [layer.ripple_db for layer in found.layers if layer.ripple_db is not None]
    if not strong or max(strong) <= INVISIBLE_DB:
        return
    for output in found.outputs:
        flat = output.flat_field
        if flat is not None and flat.ripple_db <= INVISIBLE_DB:
            yield (
                f"Output {output.index}: a constant input gives no visible grid, although single layers make "
                "one: later layers cancel it. A form without a grid gains nothing there, and fits to single "
                "layers can change the output a lot."
            )


def _variances(values: NDArray[Any], grids: Mapping[str, Period]) -> Iterator[PhaseVariance]:
    """One analysis for each period of a grid, the longest first."""
    distinct = {period for period in grids.values() if max(period) > 1}
    for period in sorted(distinct, reverse=True):
        # Grids of this period, and of its multiples, have this frequency.
        once = tuple(Fraction(1, n) for n in period)
        found = phase_variance(values, period, layers_with(once, grids))
        if found is not None:
            yield found


def _answers(probe: Probe) -> Answers:
    """The answers of each layer, all its calls together."""
    tables: dict[str, list[NDArray[np.float64]]] = {}
    for answer in probe.layers:
        # (N, C_out, *stride) for each call, joined along N below.
        tables.setdefault(answer.name, []).append(answer.phases)
    return {name: np.concatenate(found) for name, found in tables.items()}


def _limits(output: OutputDiagnosis, usable: bool) -> list[str]:
    """Sentences about what could not be measured."""
    where = f"Output {output.index}"
    if not usable:
        return [f"{where} contains NaN or infinite values and was not analysed."]
    found = []
    if output.flat_field is None:
        found.append(f"{where}: no flat field, because {NOT_PERIODIC}.")
    if not output.phase_variances or output.phase_variances[0].period != output.period:
        found.append(
            f"{where} has fewer than four periods of {'x'.join(map(str, output.period))}: give larger "
            "example inputs for an analysis of variance and spectral peaks."
        )
    elif not output.peaks:
        found.append(
            f"{where} has fewer than four periods of {'x'.join(map(str, output.period))} along an "
            "axis: give larger example inputs for spectral peaks."
        )
    return found


def describe(
    matches: Sequence[Match],
    notes: Sequence[str] = (),
    *,
    periods: Mapping[str, Period] | None = None,
    answers: Mapping[str, NDArray[np.float64]] | None = None,
    outputs: Sequence[OutputDiagnosis] = (),
    advice: Sequence[str] = (),
    sample_rate: float | None = None,
) -> Inspection:
    """Describes what was found.

    Args:
        matches: The layers.
        notes: About what could not be seen.
        periods: Of their grids, in output pixels.
        answers: The phases of their answers to a constant, (N, C_out, *stride), where they were run.
        outputs: What was found in the outputs.
        advice: About other layers.
        sample_rate: Of one-dimensional outputs, in Hz.
    """
    known = dict(periods or {})
    tables = answers or {}
    ripples = [output.flat_field.ripple_db for output in outputs if output.flat_field is not None]
    # Every output was measured, and none shows what single layers do.
    visible = not outputs or len(ripples) < len(outputs) or max(ripples) > INVISIBLE_DB
    layers = (
        _layer(match, known, tables.get(match.name), sample_rate, visible) for match in matches
    )
    return Inspection(tuple(layers), tuple(notes), tuple(outputs), tuple(advice), sample_rate)


def _layer(
    match: Match,
    periods: Mapping[str, Period],
    answer: NDArray[np.float64] | None,
    sample_rate: float | None,
    visible: bool,
) -> Layer:
    spec = match.spec
    # By the weights, where they can be read; by a run, where there was one (`answer`).
    ripple = rule = worst = where = None
    ripples: dict[tuple[int, int], float] = {}
    if spec is not None and match.obstacle is None and match.read_weight is not None:
        weight = match.read_weight()
        ripple = ripple_db(spec, weight)
        rule = sum_rule_holds(spec, weight, match.dtype)
        table = frequency_ripples_db(spec, weight)
        for axis, s in enumerate(spec.stride):
            # Tones along one axis: the frequency is zero on the others.
            for multiple in range(1, s):
                at = tuple(multiple if a == axis else 0 for a in range(spec.ndim))
                ripples[axis, multiple] = float(table[at])
        if table.size > 1:
            index = np.unravel_index(int(table.argmax()), table.shape)
            worst = float(table.max())
        if worst is not None and worst > LOWEST_DB:
            where = tuple(float(u / s) for u, s in zip(index, spec.stride, strict=True))
    # Where in the output this grid is: later layers stretch its period.
    tones: tuple[GridFrequency, ...] = ()
    if spec is not None and match.name in periods:
        tones = frequencies_of(match.name, spec.stride, ripples, periods, sample_rate)
    return Layer(
        name=match.name,
        op=match.op,
        ndim=None if spec is None else spec.ndim,
        in_channels=None if spec is None else spec.in_channels,
        out_channels=None if spec is None else spec.out_channels,
        kernel_size=None if spec is None else spec.kernel_size,
        stride=None if spec is None else spec.stride,
        padding=None if spec is None else spec.padding,
        output_padding=None if spec is None else spec.output_padding,
        dilation=None if spec is None else spec.dilation,
        groups=None if spec is None else spec.groups,
        bias=None if spec is None else spec.bias,
        dtype=match.dtype,
        calls=match.calls,
        input_sizes=match.input_sizes,
        macs_per_position=None if spec is None else spec.macs_per_position(),
        uneven_overlap=None if spec is None else uneven_overlap(spec),
        ripple_db=ripple,
        refusal=None if match.obstacle is None else match.obstacle.sentence(match.name),
        sum_rule=rule,
        worst_ripple_db=worst,
        worst_frequency=where,
        frequencies=tones,
        period=periods.get(match.name),
        recommendation=recommend(match, visible=visible),
        flat_field=None if answer is None else flat_field_of(answer),
    )
