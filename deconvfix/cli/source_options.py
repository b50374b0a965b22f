"""The options by which the command line names a model and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from deconvfix.cli.jobs import job as jobs
from deconvfix.cli.source import Source, parse_arch_kwargs

__all__ = ["FILE", "NAMES", "Command", "named_source", "source_options"]

Command = TypeVar("Command", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)
# The options that name a model and its inputs.
NAMES = ("arch", "arch_kwargs", "state_key", "inputs", "trust", "inputs_file", "dynamic")


def source_options(command: Command) -> Command:
    """What every command needs to build a model and inputs for it."""
    for option in reversed(
        (
            click.option(
                "--arch",
                metavar="MODULE:CALLABLE",
                help="The code that builds the model; needed for checkpoints.",
            ),
            click.option(
                "--arch-kwargs",
                default="{}",
                metavar="JSON",
                help="Keyword arguments for it, as a JSON object.",
            ),
            click.option(
                "--state-key",
                metavar="KEY",
                help="Where the weights are in a nested checkpoint, e.g. params_ema.",
            ),
            click.option(
                "--input",
                "inputs",
                multiple=True,
                metavar="NAME=SHAPE[:DTYPE]",
                help="An input of the model, e.g. x=1x3x64x64 or ids=1x77:int64. Repeatable.",
            ),
            click.option(
                "--trust", is_flag=True, help="Let a .pt2 file of your own run code as it loads."
            ),
            click.option(
                "--inputs",
                "inputs_file",
                type=FILE,
                metavar="FILE.npz",
                help="Inputs of the model, one array for each.",
            ),
        )
    ):
        command = option(command)
    return command


def named_source(path: Path, *, arch: str | None, arch_kwargs: str, **named: Any) -> Source:
    """The model that a command names.

    Raises:
        click.UsageError: If it is a checkpoint, and no code is named that builds the model.
    """
    if arch is None and jobs.needs_architecture(path):
        raise click.UsageError("Missing option '--arch': a checkpoint holds weights only.")
    return Source(path, arch, parse_arch_kwargs(arch_kwargs), **named)
