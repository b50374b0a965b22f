"""What the command line does with model files: one module of jobs for each kind of file.

Each has the functions inspect_file, convert_file, verify_files, runners and export_file, and where several
processes can share a conversion, take_part.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from deconvfix import __version__
from deconvfix.cli.source import Source
from deconvfix.conversion import Conversion
from deconvfix.errors import CheckpointError, OptionError, ParityError
from deconvfix.files import check_output, output_folder
from deconvfix.plan import Plan
from deconvfix.report.report import ConversionReport

__all__ = [
    "can_share",
    "check_files",
    "fits_no_samples",
    "needs_architecture",
    "of_file",
    "read_recipe",
    "reloaded_error",
    "told_in_onnx",
    "told_of",
    "write_recipe",
]

# Suffix -> module. Every other file is taken for a checkpoint, which needs code to build its model.
_JOBS = {".onnx": "deconvfix.cli.jobs.onnx", ".pt2": "deconvfix.cli.jobs.program"}
_CHECKPOINT_JOBS = "deconvfix.cli.jobs.checkpoint"


def of_file(path: Path) -> Any:
    """The module with the jobs for a file; nothing else is imported."""
    return importlib.import_module(_JOBS.get(path.suffix, _CHECKPOINT_JOBS))


def needs_architecture(path: Path) -> bool:
    """Whether a file holds weights only, without the model."""
    return path.suffix not in _JOBS


def can_share(path: Path) -> bool:
    """Whether several processes can fit a file's layers together: those of ONNX are fitted without torch."""
    return path.suffix != ".onnx"


def check_files(
    source: Source,
    output: Path | None,
    recipe: Path | None,
    suffixes: tuple[str, ...],
    *,
    dry_run: bool,
    overwrite: bool,
) -> None:
    """Checks the files that a conversion writes, before any work is done for them.

    Args:
        source: What is read.
        output: What is written, but by a dry run.
        recipe: What is read too, and written by a dry run.
        suffixes: Those of the files that `source` can be converted into.
        dry_run: Plan only.
        overwrite: Whether existing files may be replaced.

    Raises:
        OptionError: If one cannot be written, or its suffix is another.
    """
    if dry_run:
        if recipe is not None:
            check_output(recipe, overwrite=overwrite, inputs=source.files)
        return
    assert output is not None
    if output.suffix not in suffixes:
        raise OptionError(
            str(output),
            f"the suffix is {output.suffix!r}",
            f"a file of this kind is converted into {' or '.join(suffixes)}",
            "Choose the output's kind by its suffix",
        )
    inputs = (*source.files, *filter(None, (recipe,)))
    check_output(output, overwrite=overwrite, inputs=inputs)


def told_in_onnx(plan: Plan) -> dict[str, str]:
    """Metadata of an exported ONNX file: what was done to the model."""
    return {"deconvfix.version": __version__, "deconvfix.recipe": plan.to_json()}


def told_of(
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


def fits_no_samples(path: Path) -> OptionError:
    """The error for what is measured on modules alone."""
    return OptionError(
        "samples-curve",
        f"{path} holds no torch module",
        "a checkpoint and the code of its model are needed",
        "Leave it out, or measure it on the checkpoint that the file comes from",
    )


def reloaded_error(where: str) -> ParityError:
    """The error for a written file that does not give back what was written."""
    return ParityError(
        where,
        "the written file gives another value",
        "what was written must come back",
        "Nothing was written; report this as a bug",
    )


def read_recipe(path: Path | None) -> Plan | None:
    """The plan in a file, if one is named.

    Raises:
        CheckpointError: If it cannot be read.
    """
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            str(path),
            f"it cannot be read ({error})",
            "a recipe is needed",
            "Write one with --dry-run --recipe FILE",
        ) from error
    return Plan.from_json(text)


def write_recipe(plan: Plan, path: Path | None, overwrite: bool) -> None:
    """Writes a plan, if a file for it is named."""
    if path is not None:
        with output_folder(path, overwrite=overwrite) as folder:
            (folder / path.name).write_text(plan.to_json(), encoding="utf-8")
