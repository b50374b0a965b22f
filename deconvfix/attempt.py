"""A conversion that is not proven yet: find, plan, apply, fit."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from deconvfix.diagnose.evidence import Evidence
from deconvfix.diagnose.fidelity import MADE_UP, Fidelity
from deconvfix.diagnose.measure import (
    Ripples,
    fidelity_of,
    planned_ripples,
    ripples_now,
)
from deconvfix.failures import refused, still_runs
from deconvfix.fit.tuning import Tuning
from deconvfix.forms import AUTO, DECONV
from deconvfix.forms.base import FITTED_TO_DATA
from deconvfix.frontends.base import CalibrationData, Frontend, HasInputs
from deconvfix.frontends.calibrate import fitter_of
from deconvfix.frontends.folded import find_with_folds
from deconvfix.frontends.registry import kept
from deconvfix.frontends.samples import without_heldout
from deconvfix.frontends.shuffled import ShowsShuffles, check_same, shown
from deconvfix.frontends.targets import check_writes_for_targets, deconvs, with_writings
from deconvfix.parity.bounds import ParityReport
from deconvfix.plan import Match, Plan
from deconvfix.planning import make_plan, with_own_folds
from deconvfix.report.report import ConversionReport, layers_with_ripples, versions
from deconvfix.request import Request

__all__ = ["Attempt", "attempt", "finished", "rewritten"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """A conversion that has been carried out and is not proven yet.

    Attributes:
        frontend: Of the model's kind.
        before: The original; None where neither a proof nor a fit needs it.
        after: The converted model.
        plan: What was carried out.
        matches: The layers that were found.
        ripples: Flat-field ripple of the layers whose function changes, in dB before and after, by name.
        fidelity: What is known of an intended change without a run; None for exact forms.
        inputs: What the two models are compared on where the function changes: calibration batches, held
            out where there are enough, or the example inputs; empty where there are none.
        still_running: Transposed convolutions that run although they were to be replaced; None without
            example inputs.
        notes: Sentences about what could not be seen or fitted.
        shows_shuffles: Whether `before` and `after` have transposed convolutions for convolutions in front of
            pixel shuffles: `finished` gives the model as it was written.
    """

    frontend: Frontend
    before: Any
    after: Any
    plan: Plan
    matches: tuple[Match, ...]
    ripples: Ripples
    fidelity: Fidelity | None
    inputs: tuple[Any, ...]
    still_running: tuple[str, ...] | None
    notes: tuple[str, ...]
    shows_shuffles: bool = False

    def report(
        self,
        *,
        parity: ParityReport | None = None,
        evidence: Evidence | None = None,
    ) -> ConversionReport:
        """What was done, with the proofs that there are; `input` is to be filled in."""
        return ConversionReport(
            input="",
            output=None,
            to=self.plan.to,
            layers=layers_with_ripples(self.plan, self.ripples),
            parity=parity,
            fidelity=self.fidelity,
            still_running=self.still_running,
            evidence=evidence,
            notes=self.notes,
            versions=versions(),
        )


def attempt(frontend: Frontend, model: Any, request: Request) -> Attempt:
    """Converts a model: searches, plans, applies, and fits to data where that is asked for.

    Args:
        frontend: Of the model's kind.
        model: The model, as the front end works on it; changed only if the request says `inplace`.
        request: What was asked for.

    Raises:
        OptionError, ModelError, RefusedError: As `convert`.
    """
    working = frontend.prepare(model, request.example_inputs, inplace=request.inplace)
    shuffling: ShowsShuffles | None = None
    found: tuple[str, ...] = ()
    if request.form.keeps_layer:
        request = request.with_inputs_read()
        seen, inplace = request.first_inputs(), request.inplace
        shuffling, working, found = shown(frontend, working, model, seen, inplace=inplace)
    find = partial(find_with_folds, frontend) if request.fold else frontend.find
    findings = find(working, request.example_inputs)
    plan, measured = _planned(frontend, working, findings.matches, request)
    _check_plan(plan, strict=request.strict)
    # The original is kept for what looks at it later. Its ripples are taken from the weights before they
    # change, and whatever stands in the way of a fit is said before anything is changed.
    inits = {layer.settings.init for layer in plan.replaced} & {*FITTED_TO_DATA}
    before = None
    if request.verify or inits or shuffling:
        before = kept(frontend, working, working if shuffling else model, plan)
    changes = any(not layer.exact for layer in plan.replaced)
    ripples = planned_ripples(findings.matches, plan) if changes else {}
    fitter = fitter_of(frontend, request.calibration, inits) if inits else None
    calibration = request.calibration
    given: list[Any] | None = None
    heldout: list[Any] = []
    if fitter is not None and calibration is not None and not isinstance(calibration, str):
        given = list(calibration)
        count = fitter.count_samples(before, given, request.example_inputs)
        calibration, heldout = without_heldout(given, count)
    inputs = request.example_inputs
    if inputs is None and isinstance(frontend, HasInputs):
        inputs = frontend.own_inputs(working)
    # Exact forms are finished here. Fitted ones have their fit to the weights.
    after, notes = frontend.apply(working, plan), [*found, *findings.notes, *measured]
    samples = None
    if fitter is not None and calibration is not None:
        after, plan, more = fitter.fit_to_data(before, after, plan, _data(request, calibration))
        notes += more
        samples = fitter.count_samples(before, calibration, request.example_inputs)
        if given is None and inputs is None:
            # Other values than those that the layers were fitted to.
            inputs = fitter.drawn_inputs(before, str(calibration), request.seed + 1)
            notes.append(MADE_UP)
    if shuffling:
        # What is proven are the weights as the original's layers hold them, through a norm or rounded.
        after = shuffling.as_in(shuffling.with_shuffled(after), before)
    fidelity = None
    if changes:
        # After the fit to data, as that has changed the weights again.
        ripples = ripples_now(frontend, after, plan, ripples)
        fidelity = fidelity_of(ripples)
    if fidelity is not None and samples is not None:
        fidelity = replace(
            fidelity,
            calibration_samples=samples,
            psnr_seen=given is not None and not heldout,
            psnr_heldout=bool(heldout),
        )
    still_running = None
    if request.example_inputs is not None:
        still_running = tuple(frontend.left(after, plan, request.example_inputs))
        if still_running:
            raise still_runs(still_running)
    return Attempt(
        frontend, before, after, plan, findings.matches, ripples, fidelity,
        _measured_on(given, heldout, inputs), still_running, tuple(notes), shuffling is not None,
    )  # fmt: skip


def _planned(
    frontend: Frontend, model: Any, matches: tuple[Match, ...], request: Request
) -> tuple[Plan, tuple[str, ...]]:
    """The plan, and sentences about what was measured for it."""
    if request.plan is not None:
        return request.plan, ()
    if request.to == DECONV:
        return deconvs(frontend, model, request, request.selects), ()
    plan = make_plan(matches, request, request.selects)
    if request.to != AUTO:
        plan = with_writings(frontend, model, plan, request)
        return with_own_folds(plan) if request.exported else plan, ()
    check_writes_for_targets(frontend, "to", AUTO)
    # Torch models need no package for ONNX files.
    from deconvfix.runtimes.auto import timed_plan

    example, seconds = request.example_inputs, request.layer_seconds
    return timed_plan(model, plan, example, threads=request.threads, seconds=seconds)


def _check_plan(plan: Plan, *, strict: bool) -> None:
    """Tells what will be done, and refuses it where nothing may be refused."""
    counts = (len(plan.decisions), len(plan.replaced), len(plan.refused))
    _LOG.info("%d transposed convolutions found: %d to replace, %d refused", *counts)
    if strict and plan.refused:
        raise refused(plan)


def _measured_on(
    given: list[Any] | None, heldout: list[Any], inputs: Any | None
) -> tuple[Any, ...]:
    """The held-out batches, or else the last one that was given, or the example inputs."""
    batches = tuple(heldout or (given or ())[-1:])
    return (inputs,) if not batches and inputs is not None else batches


def _data(request: Request, calibration: Iterable[Any] | str) -> CalibrationData:
    """What layers are fitted to."""
    return CalibrationData(
        inputs=calibration,
        example_inputs=request.example_inputs,
        tuning=request.tuning or Tuning(),
        choose_padding=request.padding_mode is None,
        flat=request.flat_inputs,
        memory=request.memory,
    )


def finished(tried: Attempt) -> Any:
    """The converted model as it is given out, with the pixel shuffles that the original has.

    Raises:
        ParityError: If it is not the same function as the one that is proven.
    """
    if not tried.shows_shuffles:
        return tried.after
    assert isinstance(tried.frontend, ShowsShuffles)
    copy = tried.frontend.prepare(tried.after, None, inplace=False)
    given = tried.frontend.with_shuffled(copy)
    check_same(tried.frontend, tried.after, given, next(iter(tried.inputs), None))
    return given


def rewritten(tried: Attempt, after: Any) -> Attempt:
    """A conversion as it was written to a file, and read from it again."""
    if tried.shows_shuffles:
        assert isinstance(tried.frontend, ShowsShuffles)
        after = tried.frontend.as_in(after, tried.before)
    if tried.fidelity is None:
        return replace(tried, after=after)
    ripples = ripples_now(tried.frontend, after, tried.plan, tried.ripples)
    written = fidelity_of(ripples)
    fidelity = replace(tried.fidelity, ripple_db_after=written.ripple_db_after)
    return replace(tried, after=after, ripples=ripples, fidelity=fidelity)
