"""find -> plan -> apply -> prove: the few lines that everyone calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from deconvfix.core.options import documented
from deconvfix.core.steps import Interpolation, PadMode
from deconvfix.diagnose.diagnosis import diagnose
from deconvfix.diagnose.evidence import Evidence, gather
from deconvfix.diagnose.fidelity import MADE_UP, Fidelity
from deconvfix.diagnose.inspection import Inspection
from deconvfix.diagnose.measure import (
    Ripples,
    fidelity_of,
    planned_ripples,
    ripples_now,
    with_runs,
)
from deconvfix.failures import parity_error, refused, still_runs, unproven
from deconvfix.fit.regression import MEMORY
from deconvfix.fit.tuning import Tuning
from deconvfix.forms.base import FITTED_TO_DATA, Init
from deconvfix.frontends.base import CalibrationData, Frontend, HasInputs, Translates
from deconvfix.frontends.calibrate import fitter_of
from deconvfix.frontends.folded import find_with_folds, foldable_note
from deconvfix.frontends.registry import enter, opened
from deconvfix.frontends.samples import without_heldout
from deconvfix.frontends.shuffled import ShowsShuffles, check_same, shown
from deconvfix.frontends.targets import with_writings
from deconvfix.parity.bounds import ParityReport
from deconvfix.plan import Match, Plan, make_plan
from deconvfix.report.report import ConversionReport, layers_with_ripples, versions
from deconvfix.request import Request, check_sample_rate
from deconvfix.targets.writing import Convolution, Shuffle, Structure

__all__ = [
    "Attempt",
    "Conversion",
    "Verify",
    "attempt",
    "convert",
    "finished",
    "inspect",
    "prove",
    "rewritten",
    "verify",
]

Verify = Callable[[Any, Any, Sequence[Any], Plan | None], ParityReport]


@dataclass(frozen=True)
class Conversion:
    """A converted model with the plan that was carried out and the report about it.

    Attributes:
        model: The converted model, of the kind that was given.
        plan: The decisions; `plan.to_json()` is the recipe.
        report: What was done and proven.
    """

    model: Any
    plan: Plan
    report: ConversionReport


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


def inspect(
    model: Any, example_inputs: Any | None = None, *, sample_rate: float | None = None
) -> Inspection:
    """Lists the transposed convolutions of a model, and says what grid they make.

    Args:
        model: A torch.nn.Module, torch.fx.GraphModule, torch.export.ExportedProgram,
            onnx.ModelProto, onnx_ir.Model, or a path (.onnx, .pt2). It is not changed.
        example_inputs: A tuple of positional inputs, or a pair (args tuple, kwargs dict). With it
            a copy of the module is run, and calls of torch.nn.functional.conv_transpose* are seen;
            in programs and ONNX models every call is seen without. The outputs are searched for a
            grid, and constant inputs are tried.
        sample_rate: Of one-dimensional outputs, in Hz: frequencies are given in Hz too.

    Raises:
        OptionError: If the sample rate is not a positive number.
        ModelError: If the model is of another kind, or does not accept the inputs.
    """
    check_sample_rate(sample_rate)
    frontend, model = enter(model)
    prepared = frontend.prepare(model, example_inputs, inplace=example_inputs is None)
    notes: tuple[str, ...] = ()
    if isinstance(frontend, ShowsShuffles):
        prepared, notes = frontend.with_transposed(prepared, example_inputs)
    findings = frontend.find(prepared, example_inputs)
    notes += foldable_note(frontend, model, example_inputs)
    findings = replace(findings, notes=(*notes, *findings.notes))
    probe = frontend.probe(prepared, example_inputs, findings.matches)
    return diagnose(findings, probe, sample_rate)


@documented(Request)
def convert(
    model: Any,
    *,
    to: str = "subpixel",
    example_inputs: Any | None = None,
    interpolation: Interpolation = "nearest",
    padding_mode: PadMode | None = None,
    init: Init | None = None,
    calibration: Iterable[Any] | str | None = None,
    tuning: Tuning | None = None,
    grow: int = 0,
    reach: int = 4,
    strength: float = 1.0,
    convolution: Convolution | None = None,
    shuffle: Shuffle | None = None,
    structure: Structure | None = None,
    target: str | None = None,
    flat_inputs: Iterable[Any] | str | None = None,
    memory: float = MEMORY,
    seed: int = 0,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] | Callable[[str], bool] = (),
    fold: bool = False,
    strict: bool = False,
    inplace: bool = False,
    plan: Plan | None = None,
    verify: bool = True,
    pictures: bool = False,
    sample_rate: float | None = None,
) -> Conversion:
    """Replaces the transposed convolutions of a model and proves the result.

    Args:
        model: A torch.nn.Module, torch.fx.GraphModule, torch.export.ExportedProgram, onnx.ModelProto,
            onnx_ir.Model, or a path (.onnx gives an onnx.ModelProto back, .pt2 an ExportedProgram).
        plan: Carry out this plan instead of making one (the options that concern the plan are ignored).
        {options}

    Returns:
        The converted model, the plan and the report. `report.parity.ok` is True: otherwise an
        error is raised.

    Raises:
        OptionError: An option has an unknown value, or a pattern matches nothing.
        ModelError: The model or its inputs cannot be used.
        RefusedError: A layer was refused and `strict` is set.
        ParityError: The converted model differs from the original by more than rounding.
    """
    request = Request.of(
        to=to,
        example_inputs=example_inputs,
        interpolation=interpolation,
        padding_mode=padding_mode,
        init=init,
        calibration=calibration,
        tuning=tuning,
        grow=grow,
        reach=reach,
        strength=strength,
        convolution=convolution,
        shuffle=shuffle,
        structure=structure,
        target=target,
        flat_inputs=flat_inputs,
        memory=memory,
        seed=seed,
        include=include,
        exclude=exclude,
        fold=fold,
        strict=strict,
        inplace=inplace,
        plan=plan,
        verify=verify,
        pictures=pictures,
        sample_rate=sample_rate,
    )
    name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__
    model = opened(model)
    frontend, working = enter(model)
    tried = attempt(frontend, working, request)
    report = replace(prove(tried, request, name=name) if verify else tried.report(), input=name)
    converted = finished(tried)
    if isinstance(frontend, Translates):
        converted = frontend.leave(
            converted, model, changed=bool(tried.plan.changed), inplace=inplace
        )
    return Conversion(converted, tried.plan, report)


def verify(before: Any, after: Any, inputs: Any) -> ParityReport:
    """Compares a converted model with the original.

    Args:
        before: The original model.
        after: The converted model, of the same kind.
        inputs: Example inputs as for `convert`, or a list of them (which may be empty for programs
            and ONNX models).

    Returns:
        The report; `ok` says whether the two agree up to rounding.
    """
    frontend, before = enter(before)
    _, after = enter(after)
    examples: Sequence[Any] = inputs if isinstance(inputs, list) else [inputs]
    return frontend.verify(before, after, examples, None)


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
    plan = request.plan or with_writings(
        frontend, working, make_plan(findings.matches, request, request.selects), request
    )
    if request.strict and plan.refused:
        raise refused(plan)
    # The original is kept for what looks at it later. Its ripples are taken from the weights before they
    # change, and whatever stands in the way of a fit is said before anything is changed.
    inits = {layer.settings.init for layer in plan.replaced} & {*FITTED_TO_DATA}
    before = None
    if request.verify or inits or shuffling:
        before = frontend.prepare(working, None, inplace=False)
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
    after, notes = frontend.apply(working, plan), [*found, *findings.notes]
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


def prove(
    tried: Attempt, request: Request, *, name: str = "(model)", verify: Verify | None = None
) -> ConversionReport:
    """Compares a conversion with the original, and measures what it changes on purpose.

    Args:
        tried: The conversion. Where a file was written, `after` is what was read from it: the proof is
            of the file.
        request: What was asked for.
        name: Of the model, for the error.
        verify: Compares the two models; None: as the front end does.

    Raises:
        ParityError: If the converted model differs from the original by more than rounding, or was not run
            although the request is strict.
    """
    frontend, before, after, plan = tried.frontend, tried.before, tried.after, tried.plan
    examples = [] if request.example_inputs is None else [request.example_inputs]
    # First, so that a mistake is never measured as an intended change.
    parity: ParityReport | None = (verify or frontend.verify)(before, after, examples, plan)
    if parity is not None and not parity.comparisons and plan.changed and not examples:
        note = "Nothing could be compared without running the model: give example inputs."
        parity, tried = None, replace(tried, notes=(*tried.notes, note))
    if parity is not None and not parity.ok:
        raise parity_error(parity, name)
    fidelity, evidence = tried.fidelity, None
    if fidelity is not None and tried.inputs:
        both, rate = (frontend, before, after), request.sample_rate
        fidelity, notes = with_runs(fidelity, *both, tried.matches, tried.inputs, sample_rate=rate)
        tried = replace(tried, fidelity=fidelity, notes=(*tried.notes, *notes))
        if request.pictures:
            seen = tried.inputs[0], fidelity.outputs
            evidence = gather(*both, plan, *seen, sample_rate=rate)
    report = tried.report(parity=parity, evidence=evidence)
    if request.strict and plan.changed and not report.proven:
        raise unproven(report.outcome(), name)
    return report
