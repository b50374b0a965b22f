"""What the command line does with checkpoint files, each job as one function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import deconvfix.frontends.torch.checkpoint as checkpoints
from deconvfix.cli.bench import Runner
from deconvfix.cli.jobs.architecture import BoundFiles, CheckpointSource
from deconvfix.cli.jobs.job import (
    check_files,
    read_recipe,
    reloaded_error,
    told_in_onnx,
    told_of,
    write_recipe,
)
from deconvfix.cli.jobs.torch_bench import file_runner, module_runner
from deconvfix.cli.samples import CalibrationFiles
from deconvfix.cli.source import Source
from deconvfix.conversion import convert, inspect
from deconvfix.curves.samples import samples_curve as measure_curve
from deconvfix.curves.strength import strength_curve
from deconvfix.diagnose.inspection import Inspection
from deconvfix.files import check_output, output_folder
from deconvfix.frontends.torch.compare import equal
from deconvfix.frontends.torch.export import ExportReport, export_onnx
from deconvfix.frontends.torch.inputs import Inputs
from deconvfix.frontends.torch.parity import compare_modules
from deconvfix.frontends.torch.runtime_parity import verify_onnx
from deconvfix.parity.bounds import ParityReport
from deconvfix.report.curves import StrengthCurve
from deconvfix.report.report import ConversionReport

__all__ = ["convert_file", "export_file", "inspect_file", "runners", "take_part", "verify_files"]

_EXPORT_RUNS = "the export to ONNX runs the model"


def inspect_file(source: Source, *, sample_rate: float | None = None) -> Inspection:
    """Lists the transposed convolutions of a checkpoint's model."""
    checkpoint = CheckpointSource.of(source)
    model, notes = checkpoint.model()
    found = inspect(model, checkpoint.example_inputs(model), sample_rate=sample_rate)
    return replace(found, notes=(*notes, *found.notes))


def convert_file(
    source: Source,
    output: Path | None,
    *,
    recipe: Path | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    opset: int | None = None,
    pictures: bool = False,
    samples_curve: bool = False,
    curve: bool = False,
    **options: Any,
) -> ConversionReport:
    """Converts a checkpoint into a checkpoint or an ONNX file.

    Args:
        source: The checkpoint.
        output: .safetensors, .pt, .pth, .ckpt or .onnx; None only for a dry run.
        recipe: A recipe to carry out; with `dry_run` the file to write it to.
        dry_run: Plan only.
        overwrite: Whether existing files may be replaced.
        opset: Of an ONNX output.
        pictures: Gather what an HTML report draws.
        samples_curve: Report how the distance falls with the number of calibration samples.
        curve: Measure what other strengths would do.
        options: As for `deconvfix.convert`.
    """
    source = CheckpointSource.of(source)
    suffixes = (*checkpoints.SUFFIXES, ".onnx")
    check_files(source, output, recipe, suffixes, dry_run=dry_run, overwrite=overwrite)
    if dry_run:
        model, notes = source.model()
        example = source.example_inputs(model)
        options = _bound(options, model)
        conversion = convert(model, example_inputs=example, verify=False, **options)
        write_recipe(conversion.plan.after(source.checkpoint.recipe), recipe, overwrite)
        return told_of(source, conversion, notes, None)
    assert output is not None
    plan = read_recipe(recipe)
    onnx = output.suffix == ".onnx"
    model, notes = source.model(wide=not onnx)
    example = source.required_inputs(model, _EXPORT_RUNS) if onnx else source.example_inputs(model)
    options = _bound(options, model)
    # First: these are what may lack samples, and a distillation takes long.
    by_samples = (
        measure_curve(model, example_inputs=example, plan=plan, **options)
        if samples_curve
        else None
    )
    by_strength = _curve(model, example, options) if curve else None
    conversion = convert(model, example_inputs=example, plan=plan, pictures=pictures, **options)
    whole_plan = conversion.plan.after(source.checkpoint.recipe)
    report = told_of(source, conversion, notes, output)
    report = replace(report, samples_curve=by_samples, curve=by_strength)
    if onnx:
        exported = export_onnx(
            conversion.model,
            output,
            example,
            dynamic_shapes=source.dynamic_shapes(),
            opset=opset,
            overwrite=overwrite,
            metadata=told_in_onnx(whole_plan),
        )
        return replace(report, export=exported.parity)
    with output_folder(output, overwrite=overwrite) as folder:
        written = folder / output.name
        before, after = model.state_dict(), conversion.model.state_dict()
        dtypes = checkpoints.stored_dtypes(source.checkpoint, before, after, conversion.plan)
        checkpoints.write(written, conversion.model, whole_plan, source.checkpoint, dtypes)
        _check_reload(written, conversion.model, source, dtypes)
    return report


def take_part(source: Source, output: Path, *, recipe: Path | None = None, **options: Any) -> None:
    """Fits with the other processes of torch.distributed, the first of which verifies and writes.

    Args:
        source: As for `convert_file`, like what follows.
        output: Likewise; nothing is written.
        recipe: Likewise.
        options: Likewise; the calibration samples are this process's own.
    """
    source = CheckpointSource.of(source)
    model, _ = source.model(wide=output.suffix != ".onnx")
    convert(
        model,
        example_inputs=source.example_inputs(model),
        plan=read_recipe(recipe),
        verify=False,
        **_bound(options, model),
    )


def export_file(
    source: Source, output: Path, *, opset: int | None = None, overwrite: bool = False
) -> ExportReport:
    """Exports a checkpoint's model (converted or not) to ONNX."""
    source = CheckpointSource.of(source)
    check_output(output, overwrite=overwrite, inputs=source.files)
    model, _ = source.model()
    return export_onnx(
        model,
        output,
        source.required_inputs(model, _EXPORT_RUNS),
        dynamic_shapes=source.dynamic_shapes(),
        opset=opset,
        overwrite=overwrite,
    )


def verify_files(source: Source, after: Path) -> ParityReport:
    """Holds a converted checkpoint, or an ONNX file, against the original checkpoint."""
    before = CheckpointSource.of(source)
    model, _ = before.model()
    if after.suffix == ".onnx":
        example = before.required_inputs(model, "an ONNX file is verified by running it")
        return verify_onnx(model, after, example)
    inputs = before.example_inputs(model)
    converted = _converted(before, after)
    return compare_modules(model, converted, [] if inputs is None else [inputs], None)


def runners(source: Source, after: Path, threads: int) -> tuple[Runner, Runner]:
    """A checkpoint's model, and a converted one or an ONNX file, ready to run on the same inputs."""
    before = CheckpointSource.of(source)
    model, _ = before.model()
    inputs = before.required_inputs(model, "the files are timed by running them")
    original = module_runner(model.eval(), inputs, threads)
    if after.suffix == ".onnx":
        return original, file_runner(after, inputs, threads)
    return original, module_runner(_converted(before, after).eval(), inputs, threads)


def _converted(before: CheckpointSource, path: Path) -> nn.Module:
    """The model in a checkpoint that was made of another one."""
    model, _ = replace(before, path=path, state_key=None).model()
    return model


def _curve(model: nn.Module, example: Inputs | None, options: dict[str, Any]) -> StrengthCurve:
    """With the fit of the conversion."""
    named = ("to", "calibration", "grow", "reach", "memory", "seed", "include", "exclude")
    return strength_curve(
        model,
        example_inputs=example,
        init=options["init"] or "fit",
        **{name: options[name] for name in named},
    )


def _bound(options: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The options with calibration files read, once."""
    return {
        name: list(BoundFiles(value, model)) if isinstance(value, CalibrationFiles) else value
        for name, value in options.items()
    }


def _check_reload(
    path: Path, model: nn.Module, source: CheckpointSource, dtypes: dict[str, torch.dtype]
) -> None:
    """What was written must come back, bit for bit as far as its dtype goes."""
    architecture = source.architecture()
    if any(each.dtype == torch.float64 for each in model.state_dict().values()):
        architecture = architecture.double()
    again = checkpoints.load(path, architecture).state_dict()
    for name, value in model.state_dict().items():
        stored = value.to(dtypes.get(name, value.dtype)).to(again[name].dtype)
        if not equal(stored.cpu(), again[name].cpu()):
            raise reloaded_error(name)
