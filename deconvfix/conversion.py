"""find -> plan -> apply -> verify: the few lines that everyone calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from deconvfix import __version__
from deconvfix.core.steps import Interpolation, PadMode
from deconvfix.diagnose.diagnosis import check_sample_rate, diagnose
from deconvfix.diagnose.evidence import gather
from deconvfix.diagnose.inspection import Inspection
from deconvfix.diagnose.measure import fidelity_of, planned_ripples, ripples_now, with_runs
from deconvfix.errors import ParityError, RefusedError
from deconvfix.fit.solve import MEMORY
from deconvfix.fit.tuning import Tuning
from deconvfix.forms.base import FITTED_TO_DATA, Init
from deconvfix.frontends.base import CalibrationData, Frontend, HasInputs
from deconvfix.frontends.calibrate import check_flat
from deconvfix.frontends.registry import fitter_of, frontend_of, opened
from deconvfix.parity.bounds import ParityReport
from deconvfix.plan import Options, Plan, make_plan
from deconvfix.report.report import ConversionReport, layers_with_ripples

__all__ = [
    "Conversion",
    "allow_no_refusal",
    "check_proofs",
    "convert",
    "inspect",
    "parity_error",
    "proof",
    "verify",
    "versions",
]


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
        OptionError: If the sample rate is no positive number.
        ModelError: If the model is of another kind, or does not accept the inputs.
    """
    check_sample_rate(sample_rate)
    model = opened(model)
    frontend = frontend_of(model)
    # Only the shapes of lazy layers change a model, and only example inputs give them.
    prepared = frontend.prepare(model, example_inputs, inplace=example_inputs is None)
    findings = frontend.find(prepared, example_inputs)
    probe = frontend.probe(prepared, example_inputs, findings.matches)
    return diagnose(findings, probe, sample_rate)


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
    flat_inputs: Iterable[Any] | str | None = None,
    memory: float = MEMORY,
    seed: int = 0,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] | Callable[[str], bool] = (),
    strict: bool = False,
    inplace: bool = False,
    plan: Plan | None = None,
    verify: bool = True,
    pictures: bool = False,
    sample_rate: float | None = None,
) -> Conversion:
    """Replaces the transposed convolutions of a model and proves the result.

    Args:
        model: A torch.nn.Module, torch.fx.GraphModule, torch.export.ExportedProgram,
            onnx.ModelProto, onnx_ir.Model, or a path (.onnx gives an onnx.ModelProto back, .pt2 an
            ExportedProgram). It is not changed unless `inplace`.
        to: "subpixel" (the same function), or one of three forms free of checkerboard artifacts:
            "resize" (upsampling and convolution), "equalized" (the same layer with corrected weights),
            "notch" (the sub-pixel form without the grid of local means: closest to the original).
        example_inputs: A tuple of positional inputs, or a pair (args tuple, kwargs dict). With it
            functional calls are found by running a copy, and the model is compared end to end.
            Programs have inputs of their own, and for ONNX models they can be made up.
        interpolation: For "resize": "nearest" or "linear".
        padding_mode: For "resize": "reflect", "replicate" or "zeros". None: "zeros" for layers
            whose kernel divides (they stay the same function); for the others the closest on
            the calibration inputs, and "reflect" without them.
        init: "exact" (refuse layers whose function would change), "fit" (least squares on the
            weights), "calibrated" (regression on what the original computes on inputs), "tuned"
            (calibrated, then distilled from the original; modules only) or "random". None: exact where
            possible, a fit elsewhere.
        calibration: For "calibrated" and "tuned": an iterable of inputs, each as `example_inputs` (a
            bare tensor is a tuple of one; for ONNX models arrays, by name or in order), or "normal" or
            "uniform" to draw inputs of the shapes of `example_inputs`, of a program's own inputs, or of an
            ONNX model's where they are fixed. The more of what the model will see they show, the better.
        tuning: For "tuned": budget, seed and loss.
        grow: Taps by which the kernels of "resize" and "equalized" grow on either side, on the axes
            with a stride: closer to the original at a higher cost. An equalized layer then has another
            kernel_size and padding.
        reach: For "notch": the local mean is taken over so many pixels of the layer's input on either
            side. More is closer to the original, less leaves less of a grid beside edges.
        strength: For "equalized" and "notch": how much of the grid goes, from 0 (nothing changes) to 1
            (all of it). Phase sums of an equalized layer differ by 1 - strength of what they did; the
            less goes, the closer the rest stays to the original. What a strength does to a whole network
            is for `deconvfix.strength_curve` to say.
        flat_inputs: For "equalized" fitted to data: constant inputs, such as silence, on which alone
            the grid has to go; an iterable as `calibration`, or "zeros". Vocoders need it: on other
            constants the same frequencies are real tones.
        memory: For "calibrated": most memory for the regression of a layer, in GiB. One that takes more
            keeps its fit to the weights, and a note says so.
        include: Glob patterns on layer names; only matching layers are converted.
        exclude: Glob patterns on layer names to keep, or a predicate.
        strict: Raise if a layer is refused.
        inplace: Change the model itself.
        plan: Carry out this plan instead of making one (the other options are ignored).
        verify: Compare the converted layers, and the model, with the original. For fitted forms the grid
            of both models is measured too: on a constant input, and in the outputs.
        pictures: With `verify`: gather what `report.to_html()` draws of a fitted form (flat fields,
            outputs, spectra, kernels).
        sample_rate: Of one-dimensional outputs, in Hz: tones are given in Hz too.

    Returns:
        The converted model, the plan and the report. `report.parity.ok` is True: otherwise an
        error is raised.

    Raises:
        OptionError: An option has an unknown value, or a pattern matches nothing.
        ModelError: The model or its inputs cannot be used.
        RefusedError: A layer was refused and `strict` is set.
        ParityError: The converted model departs from the original.
    """
    check_sample_rate(sample_rate)
    named = os.fspath(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__
    model = opened(model)
    frontend = frontend_of(model)
    options = Options(
        to=to,
        interpolation=interpolation,
        padding_mode=padding_mode,
        init=init,
        seed=seed,
        grow=grow,
        reach=reach,
        strength=strength,
        include=_patterns(include),
        exclude=() if callable(exclude) else _patterns(exclude),
    )
    if flat_inputs is not None:
        check_flat(options, tuning)
    working = frontend.prepare(model, example_inputs, inplace=inplace)
    findings = frontend.find(working, example_inputs)
    if plan is None:
        selects = (lambda name: not exclude(name)) if callable(exclude) else None
        plan = make_plan(findings.matches, options, selects)
    if strict:
        allow_no_refusal(plan)
    to_data = {each.settings.init for each in plan.replaced if each.settings} & {*FITTED_TO_DATA}
    reference = frontend.prepare(working, None, inplace=False) if verify or to_data else None
    ripples = planned_ripples(findings.matches, plan)
    notes = list(findings.notes)
    fitter = fitter_of(frontend, calibration, to_data) if to_data else None
    real_inputs = example_inputs
    if real_inputs is None and isinstance(frontend, HasInputs):
        real_inputs = frontend.own_inputs(working)
    if fitter is not None and calibration is not None and not isinstance(calibration, str):
        calibration = list(calibration)
        real_inputs = calibration[-1] if calibration else example_inputs
    converted = frontend.apply(working, plan)
    if fitter is not None and calibration is not None:
        choices = (tuning or Tuning(), padding_mode is None, flat_inputs, memory)
        data = CalibrationData(calibration, example_inputs, *choices)
        converted, plan, more = fitter.fit_to_data(reference, converted, plan, data)
        notes += more
    ripples = ripples_now(frontend, converted, plan, ripples)
    fidelity = fidelity_of(ripples, plan)
    if fitter is not None and fidelity is not None and calibration is not None:
        samples = fitter.count_samples(reference, calibration, example_inputs)
        seen = not isinstance(calibration, str)
        fidelity = replace(fidelity, calibration_samples=samples, psnr_seen=seen)
    still_running = None
    if example_inputs is not None:
        still_running = tuple(frontend.left(converted, plan, example_inputs))
    parity = evidence = None
    if verify:
        parity, more = proof(frontend, reference, converted, plan, example_inputs)
        notes += more
        if fidelity is not None and real_inputs is not None:
            fidelity, more = with_runs(
                fidelity,
                *(frontend, reference, converted, findings.matches, real_inputs),
                sample_rate=sample_rate,
            )
            notes += more
            if pictures:
                evidence = gather(
                    *(frontend, reference, converted, plan, real_inputs, fidelity.outputs),
                    sample_rate=sample_rate,
                )
    report = ConversionReport(
        input=named,
        output=None,
        to=plan.to,
        layers=layers_with_ripples(plan, ripples),
        parity=parity,
        fidelity=fidelity,
        still_running=still_running,
        evidence=evidence,
        notes=tuple(notes),
        versions=versions(),
    )
    check_proofs(report)
    return Conversion(converted, plan, report)


def verify(before: Any, after: Any, inputs: Any) -> ParityReport:
    """Holds a converted model against the original.

    Args:
        before: The original model.
        after: The converted model, of the same kind.
        inputs: Example inputs as for `convert`, or a list of them (which may be empty for programs
            and ONNX models).

    Returns:
        The report; `ok` says whether the two agree up to rounding.
    """
    before, after = opened(before), opened(after)
    examples: Sequence[Any] = inputs if isinstance(inputs, list) else [inputs]
    return frontend_of(before).verify(before, after, examples, None)


def versions() -> dict[str, str]:
    """Versions of the packages that take part, as far as they are installed."""
    found = {"deconvfix": __version__}
    for name in ("torch", "onnx", "onnx-ir", "onnxruntime", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _patterns(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def allow_no_refusal(plan: Plan) -> None:
    """For `strict`.

    Raises:
        RefusedError: If a layer was refused.
    """
    if not plan.refused:
        return
    first, *others = plan.refused
    raise RefusedError(
        first.name or "(model)",
        first.reason.removeprefix(f"{first.name}: ").rstrip("."),
        f"`strict` allows no refusal ({len(others)} more)" if others else "`strict` allows none",
        "Exclude the layer, or leave out `strict`",
    )


def proof(
    frontend: Frontend, before: Any, after: Any, plan: Plan, example_inputs: Any | None
) -> tuple[ParityReport | None, tuple[str, ...]]:
    """The comparison with the original, and a note; None if nothing could be compared."""
    inputs = [] if example_inputs is None else [example_inputs]
    parity = frontend.verify(before, after, inputs, plan)
    if not parity.comparisons and plan.replaced and example_inputs is None:
        return None, ("Nothing could be compared without a run: give example inputs.",)
    return parity, ()


def check_proofs(report: ConversionReport) -> None:
    """Looks at what was compared.

    Raises:
        ParityError: If the converted model departs, or a layer was missed.
    """
    if report.parity is not None and not report.parity.ok:
        raise parity_error(report.parity, report.input)
    if report.still_running:
        raise ParityError(
            report.still_running[0] or report.input,
            "a transposed convolution still runs there after the conversion "
            f"({len(report.still_running)} in all)",
            "every layer that is replaced must be gone",
            "Exclude it to keep it, and report this as a bug with the code that calls it",
        )


def parity_error(parity: ParityReport, where: str) -> ParityError:
    """The error for a proof that failed; `where` names the model if no layer departs."""
    return ParityError(
        parity.first_departure or where,
        " ".join(parity.problems).rstrip("."),
        "the converted model must agree with the original up to rounding",
        "Exclude the layer that is named, and report this as a bug with the layer's geometry",
    )
