"""find -> plan -> apply -> prove: the few lines that everyone calls."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deconvfix.attempt import Attempt, attempt, finished
from deconvfix.core.options import documented
from deconvfix.core.steps import Interpolation, PadMode
from deconvfix.diagnose.diagnosis import diagnose
from deconvfix.diagnose.evidence import gather
from deconvfix.diagnose.inspection import Inspection
from deconvfix.diagnose.measure import (
    with_runs,
)
from deconvfix.failures import parity_error, unproven
from deconvfix.fit.regression import MEMORY
from deconvfix.fit.tuning import Tuning
from deconvfix.forms.base import Init
from deconvfix.frontends.base import Translates
from deconvfix.frontends.folded import foldable_note
from deconvfix.frontends.registry import enter, opened
from deconvfix.frontends.shuffled import ShowsShuffles
from deconvfix.parity.bounds import ParityReport
from deconvfix.plan import Plan
from deconvfix.report.report import ConversionReport
from deconvfix.request import Request, check_sample_rate
from deconvfix.targets.writing import Convolution, Shuffle, Structure

__all__ = [
    "Conversion",
    "Verify",
    "convert",
    "inspect",
    "prove",
    "verify",
]

_LOG = logging.getLogger(__name__)

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
    fold: bool | None = None,
    threads: int = 1,
    layer_seconds: float = 20.0,
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
    given = dict(locals())
    # Each argument is declared by `Request`, under its name.
    return _carried_out(given.pop("model"), Request.of(**given))


def _carried_out(model: Any, request: Request) -> Conversion:
    name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__
    model = opened(model)
    frontend, working = enter(model)
    tried = attempt(frontend, working, request)
    report = replace(
        prove(tried, request, name=name) if request.verify else tried.report(), input=name
    )
    converted = finished(tried)
    if isinstance(frontend, Translates):
        converted = frontend.leave(
            converted, model, changed=bool(tried.plan.changed), inplace=request.inplace
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
    _LOG.info("%s", replace(report, input=name).summary(most=0))
    if request.strict and plan.changed and not report.proven:
        raise unproven(report.outcome(), name)
    return report
