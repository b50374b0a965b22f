"""The command `deconvfix check`: a gate for continuous integration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from deconvfix.cli.help import JobCommand
from deconvfix.cli.jobs.gate import gated
from deconvfix.cli.jobs.job import needs_architecture
from deconvfix.cli.options import FILE, ReportOptions, SourceOptions, takes
from deconvfix.cli.other_files import check_kind
from deconvfix.cli.terminal import show, working
from deconvfix.cli.text import escape
from deconvfix.core.options import option, same_as
from deconvfix.files import check_apart, check_output, write_text
from deconvfix.parity.runtime import isolated
from deconvfix.report.gate import RULES, GateReport
from deconvfix.request import Request
from deconvfix.targets.profile import profile_named

__all__ = ["CheckOptions", "check"]


@dataclass(frozen=True)
class CheckOptions(ReportOptions):
    """The options of `deconvfix check`."""

    target: str | None = option(
        None,
        "Also check every operator of an ONNX file against this profile (`deconvfix targets` lists them).",
        metavar="NAME|FILE.toml",
    )
    before: Path | None = option(
        None, "Also check that MODEL is the same function as this file, which it was made from."
    )
    max_grid: float | None = option(
        None,
        "Also check that the visible grid in the outputs for --inputs is at most so many steps of 255; "
        "0.3 is what people see.",
        metavar="STEPS",
    )
    exclude: tuple[str, ...] = same_as(Request, "exclude")
    junit: Path | None = option(None, "Write the result as JUnit XML.", metavar="FILE.xml")
    sarif: Path | None = option(None, "Write the result as SARIF 2.1.0.", metavar="FILE.sarif")


@click.command(
    cls=JobCommand, epilog="Example: deconvfix check net.onnx --target coreml --junit gate.xml"
)
@click.argument("models", nargs=-1, required=True, type=FILE, metavar="MODEL...")
@takes(SourceOptions, "source")
@takes(CheckOptions, "options")
@click.pass_context
def check(
    ctx: click.Context, /, models: tuple[Path, ...], source: SourceOptions, options: CheckOptions
) -> None:
    """Fail if a transposed convolution is left in a MODEL: a gate for CI.

    Exit code 0: every file keeps every rule; 1: one does not, or cannot be read. Nothing is changed.
    """
    if options.before is not None and len(models) > 1:
        raise click.UsageError("--before is for one MODEL.", ctx)
    if source.arch is None and any(map(needs_architecture, models)):
        raise click.UsageError("Missing option '--arch': a checkpoint holds weights only.", ctx)
    if not source.timeout > 0:
        raise click.UsageError("--timeout must be above 0.", ctx)
    named = [source.source(path) for path in models]
    written = [path for path in (options.junit, options.sarif) if path is not None]
    read = tuple(file for one in named for file in one.files)
    for path in written:
        check_output(path, overwrite=True, inputs=read)
    if len(written) == 2:
        check_apart(*written)
    profile = None if options.target is None else profile_named(options.target)
    ctx.with_resource(isolated(source.timeout))
    with working("Checking"):
        for path in (*models, *filter(None, (options.before,))):
            check_kind(path)
        files = [
            gated(
                one,
                exclude=options.exclude,
                profile=profile,
                before=options.before,
                max_grid=options.max_grid,
            )
            for one in named
        ]
    report = GateReport(tuple(files), options.target)
    if options.junit is not None:
        write_text(options.junit, report.to_junit(), overwrite=True)
    if options.sarif is not None:
        write_text(options.sarif, report.to_sarif(), overwrite=True)
    show(report.to_dict() if options.as_json else _lines(report))
    ctx.exit(0 if report.ok else 1)


def _lines(report: GateReport) -> Iterator[Any]:
    """A line for each rule, then what breaks it."""
    for file in report.files:
        yield f"[bold]{escape(file.path)}[/bold]"
        for rule in file.rules:
            color, word = ("green", "kept") if rule.ok else ("red", "BROKEN")
            note = f" ({escape(rule.note)})" if rule.note else ""
            yield f"  [{color}]{word}[/{color}]  {RULES[rule.name]}{note}."
            for found in rule.findings:
                yield f"    {escape(found.message)}"
    broken = sum(not file.ok for file in report.files)
    what = f"{len(report.files)} file{'s' if len(report.files) != 1 else ''} checked"
    yield f"[bold]{what}: {f'{broken} broke a rule' if broken else 'all rules are kept'}.[/bold]"
