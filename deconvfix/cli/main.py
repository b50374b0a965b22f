"""The command line: parse, one library call, print, exit code.

Exit codes: 0 done; 1 failed, refused under --strict, or parity exceeded; 2 usage; 3 nothing to fix.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from deconvfix import __version__
from deconvfix.cli import text
from deconvfix.cli.check import check
from deconvfix.cli.help import JobGroup
from deconvfix.cli.jobs.fix import fix_file
from deconvfix.cli.jobs.job import (
    can_share,
    convert_file,
    kind_of,
    needs_architecture,
    take_part,
)
from deconvfix.cli.jobs.through_onnx import convert_through_onnx, needs_onnx
from deconvfix.cli.jobs.timed import time_files
from deconvfix.cli.options import (
    FILE,
    BenchOptions,
    ConvertOptions,
    ExportOptions,
    FixOptions,
    InspectOptions,
    SourceOptions,
    VerifyOptions,
    takes,
)
from deconvfix.cli.other_files import check_kind
from deconvfix.cli.processes import ALONE, Share, share, together
from deconvfix.cli.source import Source
from deconvfix.cli.targets import targets
from deconvfix.cli.terminal import NO_MEMORY, fail, only_printable, show, system_error, working
from deconvfix.cli.tolerance import Limits, compare_within
from deconvfix.cli.usage import check_report, check_usage, in_folder, job_of
from deconvfix.errors import DeconvfixError
from deconvfix.files import check_apart, check_output, inputs_kept, sha256, write_text
from deconvfix.fit.tuning import Tuning
from deconvfix.fixing.report import FixReport
from deconvfix.parity.runtime import isolated
from deconvfix.report.report import ConversionReport

__all__ = ["main"]

_TYPED = "deconvfix.typed"


class _Group(JobGroup):
    """Turns the library's errors into one line and exit code 1; remembers what was typed."""

    def main(self, *args: Any, **options: Any) -> Any:
        with only_printable(), inputs_kept():
            return super().main(*args, **options)

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
            own = _share()
            with together(own) if own.world > 1 else contextlib.nullcontext():
                return super().invoke(ctx)
        except DeconvfixError as error:
            fail(ctx, str(error))
        except MemoryError:
            fail(ctx, NO_MEMORY)
        except OSError as error:
            fail(ctx, system_error(error))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        found = super().resolve_command(ctx, args)
        if _share().rank and found[0] != "convert":  # one process is enough for the others
            ctx.exit(0)
        return found


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="deconvfix")
def main() -> None:
    """Replaces the transposed convolutions of trained models, and proves it.

    MODEL is an ONNX file (.onnx), a program of torch.export (.pt2), a checkpoint (.safetensors, .pt,
    .pth, .ckpt) with --arch module:callable, the code that builds the model, or a folder with
    --arch hf:CLASS of transformers or diffusers. Nothing in a file is executed.

    Shell completion, for bash: eval "$(_DECONVFIX_COMPLETE=bash_source deconvfix)"
    """


@main.command(epilog="Example: deconvfix inspect net.onnx")
@click.argument("model", type=FILE)
@takes(SourceOptions, "source")
@takes(InspectOptions, "options")
def inspect(model: Path, source: SourceOptions, options: InspectOptions) -> None:
    """List the transposed convolutions of MODEL and the grids that they make.

    With inputs (--inputs or --input) the model is run, its outputs are searched for the grid, and its
    answer to constant inputs is measured.
    """
    named = _named(model, source)
    with working("Searching"):
        found = kind_of(model).inspect(named, options.sample_rate)
    shown = text.inspection(found, gradients=options.gradients)
    show(found.to_dict() if options.as_json else shown)


@main.command(
    epilog="Example: deconvfix convert net.onnx -o fixed.onnx; from a checkpoint: "
    "deconvfix convert net.pth --arch net:Generator --input x=1x64x8x8 -o net.onnx"
)
@click.argument("model", type=FILE)
@takes(SourceOptions, "source")
@takes(ConvertOptions, "options")
@click.pass_context
def convert(
    ctx: click.Context, /, model: Path, source: SourceOptions, options: ConvertOptions
) -> None:
    """Replace the transposed convolutions of MODEL.

    The suffix of the output chooses what is written: a checkpoint with its recipe (.safetensors,
    .pt, .pth, .ckpt; deconvfix.load reads it), a program (.pt2) or an ONNX file (.onnx). It appears
    only after the result was verified.
    """
    # Usage first, then files, then work: nobody waits for an error that was known from the start.
    named = _named(model, source, options.dynamic)
    check_usage(ctx, model, options, shared=_share().world > 1)
    check_report(ctx, named, options)
    # Under torchrun the first process converts, and the others fit their share of the samples.
    own = _share()
    shared = options.calibration is not None and not options.dry_run and can_share(model)
    if own.rank and not shared:
        return  # the first process converts
    job = job_of(named, options, (own.rank, own.world) if shared else (0, 1))
    job = replace(job, prove=source.timeout if options.prove else None)
    if own.rank:
        with contextlib.redirect_stdout(sys.stderr):
            take_part(job)
        return
    with working("Converting and verifying") as progress:
        tuning = replace(job.request.tuning or Tuning(), progress=progress)
        job = replace(job, request=replace(job.request, tuning=tuning))
        report = convert_through_onnx(job) if needs_onnx(job) else convert_file(job)
    files = [path for path in (*named.files, options.output) if path is not None and path.is_file()]
    report = replace(
        report,
        command=shlex.join(["deconvfix", *ctx.meta[_TYPED]]),
        hashes={str(path): sha256(path) for path in files},
    )
    if options.report_file is not None:
        _write_report(report, options.report_file)
    shown = text.planned(report) if options.dry_run else text.conversion(report)
    show(report.to_dict() if options.as_json else shown)
    ctx.exit(0 if report.ok else 1)


@main.command(
    epilog="Example: deconvfix verify net.pth fixed.onnx --arch net:Generator --input x=1x64x8x8"
)
@click.argument("before", type=FILE)
@click.argument("after", type=FILE)
@takes(SourceOptions, "source")
@takes(VerifyOptions, "options")
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    before: Path,
    after: Path,
    source: SourceOptions,
    options: VerifyOptions,
) -> None:
    """Compare AFTER (a converted or exported file) with BEFORE, the file it was made from.

    Without limits of your own, they must be the same function, up to rounding.
    """
    named = _named(before, source)
    limits = Limits(options.min_snr, options.atol, options.rtol)
    if options.runtime is not None and (limits.given or before.suffix != ".onnx"):
        raise click.UsageError("--runtime compares ONNX files up to rounding.", ctx)
    with working("Verifying"):
        if options.runtime is not None:
            from deconvfix.cli.jobs.onnx import verify_in

            fared = verify_in(options.runtime, named, after, source.timeout)
            shown = fared.to_dict() if options.as_json else text.in_runtime(fared)
            ok = fared.ok
        elif limits.given:
            one, other = kind_of(before).runners(named, after, threads=1)
            distance = compare_within(limits, one.run(), other.run())
            shown, ok = (
                distance.to_dict() if options.as_json else text.tolerance(distance),
                distance.ok,
            )
        else:
            report = kind_of(before).verify(named, after)
            shown, ok = report.to_dict() if options.as_json else text.parity(report), report.ok
    show(shown)
    ctx.exit(0 if ok else 1)


@main.command(epilog="Example: deconvfix bench net.onnx fixed.onnx --threads 4")
@click.argument("before", type=FILE)
@click.argument("after", type=FILE)
@takes(SourceOptions, "source")
@takes(BenchOptions, "options")
@click.pass_context
def bench(
    ctx: click.Context, /, before: Path, after: Path, source: SourceOptions, options: BenchOptions
) -> None:
    """Time BEFORE and AFTER (a converted file, or an ONNX file) in turns, on the same inputs."""
    named = _named(before, source)
    if options.runtime is not None and before.suffix != ".onnx":
        raise click.UsageError("--runtime times ONNX files.", ctx)
    with working("Timing"):
        report = time_files(named, after, options, source.timeout)
    show(report.to_dict() if options.as_json else text.bench(report))


@main.command(
    epilog="Example: deconvfix export net.pth --arch net:Generator --input x=1x64x8x8 "
    "--dynamic x=0,2,3 -o net.onnx"
)
@click.argument("model", type=FILE)
@takes(SourceOptions, "source")
@takes(ExportOptions, "options")
@click.pass_context
def export(
    ctx: click.Context, /, model: Path, source: SourceOptions, options: ExportOptions
) -> None:
    """Export MODEL to ONNX as it is, and compare ONNX Runtime with torch."""
    if options.output is None:
        raise click.UsageError("Give an output file with -o.", ctx)
    named = _named(model, source, options.dynamic)
    with working("Exporting and verifying"):
        report = kind_of(model).export_file(
            named, options.output, opset=options.opset, overwrite=options.force
        )
    show(report.to_dict() if options.as_json else text.export(report))


@main.command(
    epilog="Example: deconvfix fix net.pth --arch net:Autoencoder --data photos/ --input x=1x3x128x128 "
    "-o fixed.pth"
)
@click.argument("model", type=FILE)
@takes(SourceOptions, "source")
@takes(FixOptions, "options")
@click.pass_context
def fix(ctx: click.Context, /, model: Path, source: SourceOptions, options: FixOptions) -> None:
    """Take the visible grid out of MODEL's outputs, if that makes nothing worse.

    Measures the grid in the outputs for real inputs, tries candidates on three quarters of these, and
    writes the one that leaves the least of it on the others. Exit code 1: none was good enough, and
    nothing was written; 3: there is no visible grid.
    """
    if options.output is None or options.data is None:
        missing = "Give an output file with -o." if options.output is None else "Give --data."
        raise click.UsageError(missing, ctx)
    named = _named(model, source)
    if options.report_file is not None:
        check_apart(options.output, options.report_file)
        check_output(options.report_file, overwrite=options.force, inputs=named.files)
    options = replace(options, output=in_folder(named, options.output))
    with working("Fixing"):
        report = fix_file(named, options)
    if options.report_file is not None:
        _write_report(report, options.report_file)
    show(report.to_dict() if options.as_json else text.fixed(report, explain=options.explain))
    ctx.exit(0 if report.fixed else 3 if report.nothing_to_fix else 1)


main.add_command(targets)
main.add_command(check)


def _share() -> Share:
    """Which process this is; alone unless torchrun says otherwise."""
    return share() if "TORCHELASTIC_RUN_ID" in os.environ else ALONE


def _named(path: Path, options: SourceOptions, dynamic: tuple[str, ...] = ()) -> Source:
    """The model that a command names."""
    check_kind(path)
    if options.arch is None and needs_architecture(path):
        raise click.UsageError("Missing option '--arch': a checkpoint holds weights only.")
    if not options.timeout > 0:
        raise click.UsageError("--timeout must be above 0.")
    if options.trust and path.suffix != ".pt2":
        click.echo("Note: --trust is for .pt2 files; nothing in this file is executed.", err=True)
    click.get_current_context().with_resource(isolated(options.timeout))
    return options.source(path, dynamic)


def _write_report(report: ConversionReport | FixReport, path: Path) -> None:
    """Writes it, whole or not at all; the suffix chooses the kind."""
    content = report.to_html() if path.suffix == ".html" else report.to_json()
    write_text(path, content, overwrite=True)
