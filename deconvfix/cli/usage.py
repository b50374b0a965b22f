"""From what was typed to what is asked for: options that contradict each other, and the job."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from deconvfix.cli.jobs.job import Job, needs_architecture
from deconvfix.cli.options import ConvertOptions, taken_from
from deconvfix.cli.samples import CalibrationFiles, calibration_files
from deconvfix.cli.source import Source
from deconvfix.extras import needs
from deconvfix.files import check_apart, check_output
from deconvfix.fit.tuning import Tuning
from deconvfix.forms import FORMS, form
from deconvfix.frontends.samples import DISTRIBUTIONS
from deconvfix.request import Request

__all__ = ["check_report", "check_usage", "in_folder", "job_of"]


def check_usage(ctx: click.Context, model: Path, options: ConvertOptions, *, shared: bool) -> None:
    """Refuses options that contradict each other, before any work is done.

    Args:
        ctx: For the error.
        model: The file.
        options: What was typed.
        shared: Whether this is one of several processes.
    """
    curves = options.curve or options.samples_curve
    curve = options.curve
    planned = options.dry_run or options.recipe is not None
    wrong = (
        (
            options.output is None and not options.dry_run,
            "Give an output file with -o, or use --dry-run.",
        ),
        (
            options.dry_run and options.samples_curve,
            "A --dry-run fits nothing: omit --samples-curve.",
        ),
        (
            curves and shared,
            "--curve and --samples-curve are measured by one process: omit torchrun.",
        ),
        (
            curve and planned,
            "--curve runs the model at several strengths: omit --dry-run and --recipe.",
        ),
        (
            curve and not form(options.to).has_strength,
            f"--curve is for --to {_names_with_strength()}: the other forms have no strength.",
        ),
        (
            curve and options.calibration is None,
            "--curve compares outputs on inputs: give some with --calibration.",
        ),
        (
            curve and not needs_architecture(model),
            "--curve fits the layers of a module: give a checkpoint and --arch.",
        ),
    )
    for is_wrong, message in wrong:
        if is_wrong:
            raise click.UsageError(message, ctx)


def _names_with_strength() -> str:
    return " and ".join(form.name for form in FORMS if form.has_strength)


def check_report(ctx: click.Context, source: Source, options: ConvertOptions) -> None:
    """Refuses a report file that cannot be written, or that is another file too."""
    path = options.report_file
    resume = None if options.resume is None else Path(options.resume)
    check_apart(options.output, path, options.recipe, resume)
    if path is None:
        return
    if path.suffix not in (".json", ".html"):
        raise click.UsageError("The report's suffix must be .json or .html.", ctx)
    check_output(path, overwrite=options.force, inputs=source.files)


def job_of(source: Source, options: ConvertOptions, turns: tuple[int, int]) -> Job:
    """The conversion that is asked for.

    Args:
        source: The model.
        options: What was typed.
        turns: Number of this process, and of all, which take turns with the calibration samples.
    """
    calibration: CalibrationFiles | str | None = options.calibration
    flat: CalibrationFiles | str | None = options.flat
    if options.calibration is not None and options.calibration not in DISTRIBUTIONS:
        calibration = calibration_files(
            source,
            options.calibration,
            samples=options.samples,
            value_range=options.value_range,
            share=turns,
        )
    if options.flat is not None and options.flat != "zeros":
        flat = calibration_files(
            source, options.flat, samples=options.samples, value_range=options.value_range
        )
    request = taken_from(
        Request,
        options,
        calibration=calibration,
        flat_inputs=flat,
        tuning=taken_from(Tuning, options),
        pictures=options.report_file is not None and options.report_file.suffix == ".html",
    )
    return Job(
        source,
        in_folder(source, options.output),
        request,
        recipe=options.recipe,
        dry_run=options.dry_run,
        overwrite=options.force,
        opset=options.opset,
        samples_curve=options.samples_curve,
        curve=options.curve,
        others=tuple(filter(None, (options.report_file,))),
    )


def in_folder(source: Source, output: Path | None) -> Path | None:
    """The file with the weights, where a folder is converted into a folder, which is made now."""
    if output is None or not source.path.is_dir():
        return output
    with needs("torch", str(source.path)):
        from deconvfix.frontends.torch.checkpoint import SUFFIXES
        from deconvfix.frontends.torch.pretrained import weight_files

    if output.suffix in (*SUFFIXES, ".onnx", ".pt2"):
        return output  # a file; "net-1.5" is a folder
    first = weight_files(source.path)[0].name
    diffusers = first.startswith("diffusion_pytorch_model")
    output.mkdir(exist_ok=True)
    # Without what was to be written in it, it vanishes.
    click.get_current_context().call_on_close(lambda: _remove_empty(output))
    return output / ("diffusion_pytorch_model.safetensors" if diffusers else "model.safetensors")


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
