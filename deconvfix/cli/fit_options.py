"""The command line's options about new weights: where they come from, and how far they go."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from deconvfix.cli.jobs import job as jobs
from deconvfix.cli.source_options import FILE, Command
from deconvfix.fit.solve import MEMORY
from deconvfix.forms import form
from deconvfix.forms.base import Init

__all__ = ["check_curve", "check_processes", "fit_options"]


def fit_options(command: Command) -> Command:
    """How weights are found that are not the trained ones."""
    for option in reversed(
        (
            click.option(
                "--init",
                type=click.Choice(get_args(Init)),
                help="Where weights come from. Default: exact where possible, a fit elsewhere.",
            ),
            click.option(
                "--seed", default=0, show_default=True, help="For --init random and tuned."
            ),
            click.option(
                "--calibration",
                metavar="PATH|normal|uniform",
                help="For --init calibrated and tuned: a .npz or .npy file of inputs, a folder of "
                "pictures or sounds, or a distribution to draw from.",
            ),
            click.option(
                "--samples", default=64, show_default=True, help="Calibration inputs that are read."
            ),
            click.option(
                "--value-range",
                type=(float, float),
                default=(0.0, 1.0),
                show_default=True,
                metavar="LOW HIGH",
                help="What black and white become in calibration pictures.",
            ),
            click.option(
                "--grow",
                default=0,
                show_default=True,
                help="Taps more on either side of the kernels of resize, equalized and notch.",
            ),
            click.option(
                "--reach",
                default=4,
                show_default=True,
                help="For notch: pixels on either side over which the local mean is taken.",
            ),
            click.option(
                "--strength",
                default=1.0,
                show_default=True,
                metavar="0..1",
                help="For equalized and notch: how much of the grid goes. The less, the closer the "
                "rest of the output stays to the original.",
            ),
            click.option(
                "--flat",
                metavar="zeros|PATH",
                help="For equalized with --calibration: constant inputs (silence: zeros, or files as "
                "for --calibration) on which alone the grid has to go.",
            ),
            click.option(
                "--memory",
                default=MEMORY,
                show_default=True,
                metavar="GIB",
                help="For --calibration: most memory for the regression of a layer.",
            ),
            click.option(
                "--curve",
                is_flag=True,
                help="For equalized and notch, with --calibration: report how close the output stays, and "
                "how much ripple, at several strengths. Takes a fit for each.",
            ),
            click.option(
                "--seconds", default=60.0, show_default=True, help="Budget of --init tuned."
            ),
            click.option(
                "--steps", type=int, help="The same in steps, for the same result every time."
            ),
            click.option(
                "--resume",
                type=FILE,
                metavar="FILE",
                help="For --init tuned: a .safetensors file to go on from, and to write progress to.",
            ),
            click.option(
                "--train-all",
                is_flag=True,
                help="Let --init tuned move all weights, not the converted only.",
            ),
        )
    ):
        command = option(command)
    return command


def check_curve(
    context: click.Context, model: Path, to: str, calibration: str | None, planned: bool
) -> None:
    """Refuses --curve where there is nothing to measure, before any work is done.

    Args:
        context: Of the command.
        model: The file that is converted.
        to: The form.
        calibration: What --calibration says.
        planned: Whether a plan is written or carried out.

    Raises:
        click.UsageError: If there is none.
    """
    for wrong, text in (
        (planned, "--curve runs the model at several strengths: leave out --dry-run and --recipe."),
        (
            not form(to).has_strength,
            "--curve is for --to equalized and notch: the other forms have no strength.",
        ),
        (calibration is None, "--curve compares outputs on inputs: give some with --calibration."),
        (
            not jobs.needs_architecture(model),
            "--curve fits the layers of a module: give a checkpoint and --arch.",
        ),
    ):
        if wrong:
            raise click.UsageError(text, context)


def check_processes(context: click.Context, world: int, curves: bool) -> None:
    """Refuses curves where each process has a part of the samples only.

    Raises:
        click.UsageError: If there are several processes, and a curve is asked for.
    """
    if world > 1 and curves:
        raise click.UsageError(
            "--curve and --samples-curve are measured by one process: leave out torchrun.", context
        )
