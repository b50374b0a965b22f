"""The command line's options about evidence, and the report file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deconvfix.cli.source_options import FILE, Command
from deconvfix.files import check_output, output_folder

if TYPE_CHECKING:
    from deconvfix.report.report import ConversionReport

__all__ = ["check_report", "draws", "evidence_options", "write_report"]


def evidence_options(command: Command) -> Command:
    """What is measured and told of an intended change."""
    for option in reversed(
        (
            click.option(
                "--report",
                "report_file",
                type=FILE,
                metavar="FILE",
                help="Write the report there, as .json or .html.",
            ),
            click.option(
                "--sample-rate",
                type=float,
                metavar="HZ",
                help="Of the sound that the model makes: the report gives tones in Hz.",
            ),
            click.option(
                "--samples-curve",
                is_flag=True,
                help="With --calibration: also fit to a quarter and to half of the samples, and report "
                "how close each fit comes on held-out ones.",
            ),
        )
    ):
        command = option(command)
    return command


def check_report(
    context: click.Context, path: Path, others: list[Path], inputs: tuple[Path, ...], force: bool
) -> None:
    """Refuses a report file before any work is done for it.

    Args:
        context: Of the command.
        path: The report.
        others: Further outputs.
        inputs: Files that are read.
        force: Whether it may be replaced.

    Raises:
        click.UsageError: If its suffix is unknown, or it is another output too.
        OptionError: If it cannot be written, or exists.
    """
    if path.suffix not in (".json", ".html"):
        raise click.UsageError("The report's suffix must be .json or .html.", context)
    if any(each.absolute() == path.absolute() for each in others):
        raise click.UsageError("The report needs a file of its own.", context)
    check_output(path, overwrite=force, inputs=inputs)


def draws(path: Path | None) -> bool:
    """Whether a report has pictures."""
    return path is not None and path.suffix == ".html"


def write_report(report: ConversionReport, path: Path) -> None:
    """Writes it, whole or not at all; the suffix chooses the kind."""
    content = report.to_html() if draws(path) else report.to_json()
    with output_folder(path, overwrite=True) as folder:
        (folder / path.name).write_text(content, encoding="utf-8")
