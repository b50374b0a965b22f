"""What the command line does with checkpoint files, each job as one function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import deconvfix.checkpoint as checkpoints
from deconvfix import __version__
from deconvfix.checkpoint_source import Source
from deconvfix.conversion import Conversion, convert, inspect
from deconvfix.errors import CheckpointError, OptionError, ParityError
from deconvfix.files import check_output, output_folder
from deconvfix.frontends.torch_compare import equal
from deconvfix.frontends.torch_parity import compare_modules
from deconvfix.inspection import Inspection
from deconvfix.onnx_export import ExportReport, export_onnx
from deconvfix.onnx_verify import verify_onnx
from deconvfix.parity import ParityReport
from deconvfix.plan import Plan
from deconvfix.report import ConversionReport

__all__ = ["convert_file", "export_file", "inspect_file", "verify_files"]

_EXPORT_RUNS = "the export to ONNX runs the model"


def inspect_file(source: Source) -> Inspection:
    """Lists the transposed convolutions of a checkpoint's model."""
    model, notes = source.model()
    found = inspect(model, source.example_inputs(model))
    return Inspection(found.layers, (*notes, *found.notes))


def convert_file(
    source: Source,
    output: Path | None,
    *,
    recipe: Path | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    opset: int | None = None,
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
        options: As for `deconvfix.convert`.
    """
    if dry_run:
        return _plan_file(source, recipe, overwrite, options)
    assert output is not None
    if output.suffix not in (*checkpoints.SUFFIXES, ".onnx"):
        raise OptionError(
            str(output),
            f"the suffix is {output.suffix!r}",
            f"one of {', '.join((*checkpoints.SUFFIXES, '.onnx'))} is needed",
            "Choose the output's kind by its suffix",
        )
    inputs = (*source.files, *filter(None, (recipe,)))
    check_output(output, overwrite=overwrite, inputs=inputs)
    plan = None if recipe is None else Plan.from_json(_read_text(recipe))
    onnx = output.suffix == ".onnx"
    model, notes = source.model(wide=not onnx)
    example = source.required_inputs(model, _EXPORT_RUNS) if onnx else source.example_inputs(model)
    conversion = convert(model, example_inputs=example, plan=plan, **options)
    whole_plan = conversion.plan.after(source.checkpoint.recipe)
    report = _told_of(source, conversion, notes, output)
    if onnx:
        exported = export_onnx(
            conversion.model,
            output,
            example,
            dynamic_shapes=source.dynamic_shapes(),
            opset=opset,
            overwrite=overwrite,
            metadata={
                "deconvfix.version": __version__,
                "deconvfix.recipe": whole_plan.to_json(),
            },
        )
        return replace(report, export=exported.parity)
    with output_folder(output, overwrite=overwrite) as folder:
        written = folder / output.name
        before, after = model.state_dict(), conversion.model.state_dict()
        dtypes = checkpoints.stored_dtypes(source.checkpoint, before, after, conversion.plan)
        checkpoints.write(written, conversion.model, whole_plan, source.checkpoint, dtypes)
        _check_reload(written, conversion.model, source, dtypes)
    return report


def export_file(
    source: Source, output: Path, *, opset: int | None = None, overwrite: bool = False
) -> ExportReport:
    """Exports a checkpoint's model (converted or not) to ONNX."""
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


def verify_files(before: Source, after: Path) -> ParityReport:
    """Holds a converted checkpoint, or an ONNX file, against the original checkpoint."""
    model, _ = before.model()
    if after.suffix == ".onnx":
        example = before.required_inputs(model, "an ONNX file is verified by running it")
        return verify_onnx(model, after, example)
    inputs = before.example_inputs(model)
    converted, _ = replace(before, path=after, state_key=None).model()
    return compare_modules(model, converted, [] if inputs is None else [inputs], None)


def _plan_file(
    source: Source, recipe: Path | None, overwrite: bool, options: dict[str, Any]
) -> ConversionReport:
    """A dry run: plans, and writes the plan if a file for it is named."""
    if recipe is not None:
        check_output(recipe, overwrite=overwrite, inputs=source.files)
    model, notes = source.model()
    example = source.example_inputs(model)
    conversion = convert(model, example_inputs=example, verify=False, **options)
    if recipe is not None:
        with output_folder(recipe, overwrite=overwrite) as folder:
            text = conversion.plan.after(source.checkpoint.recipe).to_json()
            (folder / recipe.name).write_text(text, encoding="utf-8")
    return _told_of(source, conversion, notes, None)


def _told_of(
    source: Source, conversion: Conversion, notes: tuple[str, ...], output: Path | None
) -> ConversionReport:
    """The report, told of the files."""
    report = conversion.report
    return replace(
        report,
        input=str(source.path),
        output=None if output is None else str(output),
        notes=(*notes, *report.notes),
    )


def _check_reload(
    path: Path, model: nn.Module, source: Source, dtypes: dict[str, torch.dtype]
) -> None:
    """What was written must come back, bit for bit as far as its dtype goes."""
    architecture = source.architecture()
    if any(each.dtype == torch.float64 for each in model.state_dict().values()):
        architecture = architecture.double()
    again = checkpoints.load(path, architecture).state_dict()
    for name, value in model.state_dict().items():
        stored = value.to(dtypes.get(name, value.dtype)).to(again[name].dtype)
        if not equal(stored.cpu(), again[name].cpu()):
            raise ParityError(
                name,
                "the written checkpoint gives another value",
                "what was written must come back",
                "Nothing was written; report this as a bug",
            )


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            str(path),
            f"it cannot be read ({error})",
            "a recipe is needed",
            "Write one with --dry-run --recipe FILE",
        ) from error
