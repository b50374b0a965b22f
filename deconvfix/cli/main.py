"""The command line: parse, one library call, print, exit code.

Exit codes: 0 done; 1 failed, refused under --strict, or parity exceeded; 2 usage.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from deconvfix import __version__
from deconvfix.cli import text
from deconvfix.cli.bench import bench as bench_runners
from deconvfix.cli.fit_options import check_curve, check_processes, fit_options
from deconvfix.cli.jobs import job as jobs
from deconvfix.cli.processes import share, together
from deconvfix.cli.report_options import check_report, draws, evidence_options, write_report
from deconvfix.cli.samples import calibration_files
from deconvfix.cli.source_options import FILE, NAMES, named_source, source_options
from deconvfix.core.steps import Interpolation, PadMode
from deconvfix.errors import DeconvfixError
from deconvfix.files import sha256
from deconvfix.fit.tuning import Progress, Tuning
from deconvfix.forms import FORMS

__all__ = ["main"]

_TYPED = "deconvfix.typed"
_ERRORS = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


class _Group(click.Group):
    """Turns the library's errors into one line and exit code 1; remembers what was typed."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        typed = list(args)
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[_TYPED] = typed
        return context

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with together(share()):
                return super().invoke(ctx)
        except DeconvfixError as error:
            _ERRORS.print(f"Error: {error}", style="red", markup=False)
            ctx.exit(1)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        found = super().resolve_command(ctx, args)
        if share().rank and found[0] != "convert":  # one process is enough for the others
            ctx.exit(0)
        return found


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deconvfix")
def main() -> None:
    """Replaces the transposed convolutions of trained models, and proves it.

    MODEL is an ONNX file (.onnx), a program of torch.export (.pt2), or a checkpoint (.safetensors, .pt,
    .pth, .ckpt) with --arch module:callable, the code that builds the model. Nothing in a file is
    executed.

    Shell completion, for bash: eval "$(_DECONVFIX_COMPLETE=bash_source deconvfix)"
    """


_dynamic = click.option(
    "--dynamic",
    multiple=True,
    metavar="NAME=AXES",
    help="Axes of an input that may change in the ONNX file, e.g. x=0,2,3. Repeatable.",
)
_opset = click.option("--opset", type=int, help="ONNX opset, 18 or newer.")
_force = click.option("--force", is_flag=True, help="Replace existing files.")
_as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else."
)
_output = click.option("-o", "--output", type=FILE, help="The file to write.")


@main.command(epilog="Example: deconvfix inspect net.onnx")
@click.argument("model", type=FILE)
@source_options
@click.option(
    "--sample-rate",
    type=float,
    metavar="HZ",
    help="Of the sound that the model makes: frequencies are given in Hz.",
)
@_as_json
def inspect(model: Path, as_json: bool, sample_rate: float | None, **source: Any) -> None:
    """List the transposed convolutions of MODEL and the grids that they make.

    With inputs (--inputs or --input) the model is run, its outputs are searched for the grid, and its
    answer to constant inputs is measured.
    """
    with _working("Searching"):
        found = jobs.of_file(model).inspect_file(
            named_source(model, **source), sample_rate=sample_rate
        )
    _show(found.to_dict() if as_json else text.inspection(found))


@main.command(
    epilog="Example: deconvfix convert net.onnx -o fixed.onnx; from a checkpoint: "
    "deconvfix convert net.pth --arch net:Generator --input x=1x64x8x8 -o net.onnx"
)
@click.argument("model", type=FILE)
@_output
@source_options
@click.option(
    "--to",
    default="subpixel",
    show_default=True,
    type=click.Choice([each.name for each in FORMS]),
    help="subpixel is the same function; resize, equalized and notch have no checkerboard.",
)
@click.option(
    "--interpolation",
    default="nearest",
    show_default=True,
    type=click.Choice(get_args(Interpolation)),
    help="For resize.",
)
@click.option(
    "--padding-mode",
    type=click.Choice(get_args(PadMode)),
    help="For resize. Default: zeros where the kernel divides exactly, reflect elsewhere.",
)
@fit_options
@click.option("--include", multiple=True, metavar="GLOB", help="Convert these layers only.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Keep these layers.")
@click.option("--strict", is_flag=True, help="Fail if a layer is refused.")
@click.option("--dry-run", is_flag=True, help="Plan only; write nothing but the --recipe.")
@click.option(
    "--recipe",
    type=FILE,
    help="Carry out this plan; with --dry-run: the file to write the plan to.",
)
@evidence_options
@_dynamic
@_opset
@_force
@_as_json
@click.pass_context
def convert(
    ctx: click.Context,
    /,
    model: Path,
    output: Path | None,
    dry_run: bool,
    recipe: Path | None,
    report_file: Path | None,
    force: bool,
    as_json: bool,
    opset: int | None,
    calibration: str | None,
    flat: str | None,
    samples: int,
    value_range: tuple[float, float],
    curve: bool,
    seconds: float,
    steps: int | None,
    resume: Path | None,
    train_all: bool,
    sample_rate: float | None,
    samples_curve: bool,
    **fit: Any,
) -> None:
    """Replace the transposed convolutions of MODEL.

    The suffix of the output chooses what is written: a checkpoint with its recipe (.safetensors,
    .pt, .pth, .ckpt; deconvfix.load reads it), a program (.pt2) or an ONNX file (.onnx). It appears
    only after the result was verified.
    """
    if output is None and not dry_run:
        raise click.UsageError("Give an output file with -o, or use --dry-run.", ctx)
    if dry_run and samples_curve:
        raise click.UsageError("A --dry-run fits nothing: leave out --samples-curve.", ctx)
    named = named_source(model, **{name: fit.pop(name) for name in NAMES})
    if report_file is not None:
        others = [each for each in (output, recipe) if each is not None]
        inputs = (model, *filter(None, (named.inputs_file,)))
        check_report(ctx, report_file, others, inputs, force)
    own = share()
    shared = calibration is not None and not dry_run and jobs.can_share(model)
    if own.rank and not shared:
        return  # the first process converts
    check_processes(ctx, own.world, curve or samples_curve)
    read: dict[str, Any] = {"samples": samples, "value_range": value_range}
    if calibration is not None:
        turns = (own.rank, own.world) if shared else (0, 1)
        fit["calibration"] = calibration_files(named, calibration, **read, share=turns)
    if flat is not None:
        fit["flat_inputs"] = flat if flat == "zeros" else calibration_files(named, flat, **read)
    budget = Tuning(
        seconds=seconds, steps=steps, seed=fit["seed"], train_all=train_all, resume=resume
    )
    if own.rank:
        with contextlib.redirect_stdout(sys.stderr):
            jobs.of_file(model).take_part(named, output, recipe=recipe, tuning=budget, **fit)
        return
    if curve:
        check_curve(ctx, model, fit["to"], calibration, dry_run or recipe is not None)
        fit["curve"] = True
    with _working("Converting and verifying") as progress:
        report = jobs.of_file(model).convert_file(
            named,
            output,
            recipe=recipe,
            dry_run=dry_run,
            overwrite=force,
            opset=opset,
            pictures=draws(report_file),
            samples_curve=samples_curve,
            sample_rate=sample_rate,
            tuning=replace(budget, progress=progress),
            **fit,
        )
    files = [each for each in (*named.files, output) if each is not None and each.is_file()]
    report = replace(
        report,
        command=shlex.join(["deconvfix", *ctx.meta[_TYPED]]),
        hashes={str(each): sha256(each) for each in files},
    )
    if report_file is not None:
        write_report(report, report_file)
    _show(report.to_dict() if as_json else text.conversion(report))
    ctx.exit(0 if report.ok else 1)


@main.command(
    epilog="Example: deconvfix verify net.pth fixed.onnx --arch net:Generator --input x=1x64x8x8"
)
@click.argument("before", type=FILE)
@click.argument("after", type=FILE)
@source_options
@_as_json
@click.pass_context
def verify(ctx: click.Context, /, before: Path, after: Path, as_json: bool, **source: Any) -> None:
    """Hold AFTER (a converted file, or an ONNX file) against BEFORE, the file that it comes from."""
    with _working("Verifying"):
        report = jobs.of_file(before).verify_files(named_source(before, **source), after)
    _show(report.to_dict() if as_json else text.parity(report))
    ctx.exit(0 if report.ok else 1)


@main.command(epilog="Example: deconvfix bench net.onnx fixed.onnx --threads 4")
@click.argument("before", type=FILE)
@click.argument("after", type=FILE)
@source_options
@click.option("--repeats", default=20, show_default=True, help="Runs of each.")
@click.option(
    "--threads",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="That each may use.",
)
@_as_json
def bench(
    before: Path, after: Path, repeats: int, threads: int, as_json: bool, **source: Any
) -> None:
    """Time BEFORE and AFTER (a converted file, or an ONNX file) in turns, on the same inputs."""
    with _working("Timing"):
        pair = jobs.of_file(before).runners(named_source(before, **source), after, threads)
        report = bench_runners(*pair, repeats=repeats, threads=threads)
    _show(report.to_dict() if as_json else text.bench(report))


@main.command(
    epilog="Example: deconvfix export net.pth --arch net:Generator --input x=1x64x8x8 "
    "--dynamic x=0,2,3 -o net.onnx"
)
@click.argument("model", type=FILE)
@_output
@source_options
@_dynamic
@_opset
@_force
@_as_json
@click.pass_context
def export(
    ctx: click.Context,
    /,
    model: Path,
    output: Path | None,
    opset: int | None,
    force: bool,
    as_json: bool,
    **source: Any,
) -> None:
    """Export MODEL to ONNX as it is, and hold ONNX Runtime against torch."""
    if output is None:
        raise click.UsageError("Give an output file with -o.", ctx)
    with _working("Exporting and verifying"):
        report = jobs.of_file(model).export_file(
            named_source(model, **source), output, opset=opset, overwrite=force
        )
    _show(report.to_dict() if as_json else text.export(report))


@contextlib.contextmanager
def _working(what: str) -> Iterator[Callable[[Progress], None] | None]:
    """A bar on stderr, where that is a terminal; what the model's code prints goes there too.

    Yields:
        What a distillation calls to move the bar; None where there is no bar.
    """
    console = Console(stderr=True, emoji=False)
    if not console.is_terminal:
        with contextlib.redirect_stdout(sys.stderr):
            yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"{what} ...", total=None)

        def show(progress: Progress) -> None:
            words = f"Tuning, held-out error {progress.loss:.3g} (best {progress.best:.3g})"
            bar.update(task, total=1.0, completed=progress.fraction, description=words)

        with contextlib.redirect_stdout(sys.stderr):
            yield show


def _show(value: Any) -> None:
    """JSON alone, or what `_cli_text` made for people."""
    if isinstance(value, dict):
        click.echo(json.dumps(text.finite(value), indent=2, allow_nan=False))
        return
    console = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 80)
    for part in value:
        console.print(part)
