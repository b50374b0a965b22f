"""What the command line does with ONNX files. Nothing here imports torch."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import onnx_ir as ir

from deconvfix.cli.bench import Runner, session_runner
from deconvfix.cli.jobs.job import check_files, fits_no_samples, read_recipe, told_of, write_recipe
from deconvfix.cli.samples import CalibrationFiles
from deconvfix.cli.source import Source
from deconvfix.conversion import convert, inspect, parity_error
from deconvfix.diagnose.evidence import gather
from deconvfix.diagnose.inspection import Inspection
from deconvfix.diagnose.measure import with_runs
from deconvfix.errors import ExportError, OptionError
from deconvfix.files import output_folder
from deconvfix.frontends.onnx import file as onnx_file
from deconvfix.frontends.onnx.file import OnnxFile
from deconvfix.frontends.onnx.frontend import FRONTEND
from deconvfix.frontends.onnx.inputs import as_feed, shapes_of
from deconvfix.frontends.onnx.parity import compare_models, first_that_runs
from deconvfix.frontends.onnx.samples import calibration_feeds, rebatched
from deconvfix.parity.bounds import ParityReport
from deconvfix.parity.runtime import open_session
from deconvfix.plan import Plan
from deconvfix.report.report import ConversionReport

__all__ = ["convert_file", "export_file", "inspect_file", "runners", "verify_files"]


def inspect_file(source: Source, *, sample_rate: float | None = None) -> Inspection:
    """Lists the transposed convolutions of an ONNX file."""
    file = onnx_file.read(source.path)
    examples = _examples(source, file)
    return inspect(file.model, examples[0] if examples else None, sample_rate=sample_rate)


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
    **options: Any,
) -> ConversionReport:
    """Converts an ONNX file into an ONNX file; what is proven is the file that was written.

    Args:
        source: The file, and inputs for it.
        output: .onnx; None only for a dry run.
        recipe: A recipe to carry out; with `dry_run` the file to write it to.
        dry_run: Plan only.
        overwrite: Whether existing files may be replaced.
        opset: Not for ONNX files: theirs stays.
        pictures: Gather what an HTML report draws.
        samples_curve: Not for files whose layers cannot be fitted to samples.
        options: As for `deconvfix.convert`.
    """
    if opset is not None:
        raise OptionError(
            "opset",
            f"the value is {opset}",
            "an ONNX file keeps its own",
            "Leave out --opset, or convert the file first (onnx.version_converter)",
        )
    if samples_curve:
        raise fits_no_samples(source.path)
    check_files(source, output, recipe, (".onnx",), dry_run=dry_run, overwrite=overwrite)
    if dry_run:
        file = onnx_file.read(source.path)
        options = _bound(options, source, file)
        conversion = convert(file.model, verify=False, **options)
        write_recipe(conversion.plan, recipe, overwrite)
        return told_of(source, conversion, (), None)
    assert output is not None
    file = onnx_file.read(source.path)
    examples = _examples(source, file)
    options = _bound(options, source, file)
    conversion = convert(file.model, plan=read_recipe(recipe), verify=False, **options)
    report = told_of(source, conversion, (), output)
    with output_folder(output, overwrite=overwrite) as folder:
        written = folder / output.name
        if conversion.plan.replaced or file.external:
            onnx_file.write(written, file, conversion.model)
        else:
            shutil.copyfile(source.path, written)
        _check(source.path, written)
        after = onnx_file.read(written).model
        paths = (source.path, written)
        parity = compare_models(file.model, after, examples, conversion.plan, paths)
        report = replace(report, parity=parity)
        if not parity.ok:
            raise parity_error(parity, str(source.path))
        shown = _shown(report, file, options) or examples
        if shown:
            report = _measured(
                *(report, file.model, after, conversion.plan),
                *(shown[0], pictures, options.get("sample_rate")),
            )
    return report


def _shown(
    report: ConversionReport, file: OnnxFile, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Real inputs where there are some: made-up ones say nothing to the eye."""
    given: Any = options.get("calibration")
    if isinstance(given, list):
        return given[-1:]
    fitted = report.fidelity is not None and report.fidelity.calibration_samples is not None
    if not fitted or options["example_inputs"] is not None:
        return []
    # Other values than those that were fitted to.
    seed = int(options.get("seed", 0)) + 1
    return calibration_feeds(file.model, given, None, seed)[:1]


def _bound(options: dict[str, Any], source: Source, file: OnnxFile) -> dict[str, Any]:
    """The options with calibration files read, once, and the shapes that a distribution is drawn in."""
    calibration = options.get("calibration")
    if isinstance(calibration, str):
        examples = _examples(source, file)
        return {**options, "example_inputs": examples[0] if examples else None}
    if not isinstance(calibration, CalibrationFiles):
        return options
    inputs = shapes_of(file.model)
    files = calibration
    if not files.names:
        files = replace(files, names=tuple(each.name for each in inputs))
    if files.shape is None and len(inputs) == 1:
        files = replace(files, shape=_sample_shape(inputs[0].shape))
    return {**options, "calibration": list(rebatched(file.model, files))}


def _sample_shape(shape: tuple[int | str, ...] | None) -> tuple[int, ...] | None:
    """What a picture or a sound is cut to, where the file says it."""
    if not shape:
        return None
    sizes = tuple(n for n in shape[1:] if isinstance(n, int))
    return (1, *sizes) if len(sizes) == len(shape) - 1 else None


def _measured(
    report: ConversionReport,
    before: ir.Model,
    after: ir.Model,
    plan: Plan,
    example: dict[str, Any],
    pictures: bool,
    sample_rate: float | None,
) -> ConversionReport:
    """The report with what running both files tells of an intended change."""
    if report.fidelity is None:
        return report
    matches = FRONTEND.find(before, None).matches
    fidelity, notes = with_runs(
        report.fidelity, FRONTEND, before, after, matches, example, sample_rate=sample_rate
    )
    drawn = None
    if pictures:
        models = (FRONTEND, before, after, plan)
        drawn = gather(*models, example, fidelity.outputs, sample_rate=sample_rate)
    return replace(report, fidelity=fidelity, evidence=drawn, notes=(*report.notes, *notes))


def verify_files(source: Source, after: Path) -> ParityReport:
    """Holds an ONNX file against the one that it comes from."""
    _check_kind(after)
    before = onnx_file.read(source.path)
    converted = onnx_file.read(after).model
    examples = _examples(source, before)
    return compare_models(before.model, converted, examples, None, (source.path, after))


def runners(source: Source, after: Path, threads: int) -> tuple[Runner, Runner]:
    """An ONNX file and another one, ready to run on the same inputs."""
    _check_kind(after)
    before, _ = onnx_file.read(source.path), onnx_file.read(after)
    sessions = [open_session(str(path), threads=threads) for path in (source.path, after)]
    notes: list[str] = []
    feeds = [as_feed(before.model, each) for each in _examples(source, before)]
    feed = feeds[0] if feeds else first_that_runs(before.model, sessions[0], notes)
    if feed is None:
        raise OptionError(
            "inputs",
            "; ".join(notes),
            "the files are timed by running them",
            "Give inputs (--inputs FILE.npz or --input NAME=SHAPE)",
        )
    one, other = (session_runner(session, feed) for session in sessions)
    return one, other


def export_file(
    source: Source, output: Path, *, opset: int | None = None, overwrite: bool = False
) -> NoReturn:
    """An ONNX file needs no export.

    Raises:
        OptionError: Always.
    """
    raise OptionError(
        str(source.path),
        "it is an ONNX file already",
        "a checkpoint or a .pt2 file is exported",
        "Use `deconvfix convert` to replace its transposed convolutions",
    )


def _check_kind(after: Path) -> None:
    if after.suffix != ".onnx":
        raise OptionError(
            str(after),
            f"the suffix is {after.suffix!r}",
            "an ONNX file is compared with an ONNX file",
            "Name two files of one kind, or the checkpoint that an ONNX file comes from",
        )


def _examples(source: Source, file: OnnxFile) -> list[dict[str, Any]]:
    """The inputs that were named, in the dtypes of the file's own inputs."""
    dtypes = {each.name: each.dtype for each in file.model.graph.inputs}
    feed = source.stored()
    for number, each in enumerate(source.described()):
        declared = dtypes.get(each.name)
        values = each.values(number)
        own = declared.numpy() if declared is not None else np.dtype(np.float32)
        feed[each.name] = values.astype(own if each.dtype == "float32" else _dtype(each.dtype))
    return [feed] if feed else []


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError as error:
        raise OptionError(
            "input",
            f"NumPy has no dtype {name!r}",
            "NAME=1x3x64x64 or NAME=1x77:int64 is needed",
            "Correct the dtype, or leave it out",
        ) from error


def _check(before: Path, after: Path) -> None:
    """The converted file must pass the checks that the original passes."""
    for full in (False, True):
        try:
            onnx.checker.check_model(str(before), full_check=full)
        except Exception:
            return  # ONNX Runtime runs files that onnx.checker rejects
        try:
            onnx.checker.check_model(str(after), full_check=full)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(
                "onnx.checker",
                f"it rejects the converted file ({error})",
                "a file that passes before must pass afterwards",
                "Nothing was written; report this as a bug with the layer's geometry",
            ) from error
