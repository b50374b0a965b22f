"""Help by job: the common options first, and all of them where they are asked for.

What an option means is said where it is declared; which job it belongs to concerns the help alone, and is
said here, once for all commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

__all__ = ["COMMANDS", "JOBS", "JobCommand", "JobGroup"]

# A job, its common options and its others, by the names of the parameters, in the order of the help.
JOBS: tuple[tuple[str, str, str], ...] = (
    ("The model", "arch inputs inputs_file", "arch_kwargs state_key trust timeout"),
    ("What is written", "output dry_run force", "recipe dynamic opset strict"),
    ("What a layer becomes", "to fold", "interpolation padding_mode grow reach strength"),
    (
        "For a runtime or a chip",
        "target runtime prove threads",
        "convolution shuffle structure layer_seconds",
    ),
    ("Which layers", "include exclude", ""),
    ("Data", "calibration data targets", "init samples value_range flat sample_rate seed memory"),
    ("Training", "", "seconds steps resume train_all max_cost"),
    ("The comparison", "before max_grid min_snr atol rtol repeats", ""),
    ("What is told", "as_json report_file junit sarif gradients explain", "curve samples_curve"),
)

# The commands, by what they are for.
COMMANDS = (
    ("Change", ("convert", "fix", "export")),
    ("Look", ("inspect", "targets")),
    ("Prove", ("check", "verify", "bench")),
)

_ALL = "deconvfix.help_all"


def _show_all(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
    """Prints everything, and ends; nothing is parsed after it, as with --help."""
    if not asked or ctx.resilient_parsing:
        return
    ctx.meta[_ALL] = True
    click.echo(ctx.get_help())
    ctx.exit()


def _help_all() -> click.Option:
    return click.Option(
        ["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_all,
        help="Show every option and exit.",
    )


class JobCommand(click.Command):
    """A command whose help shows its common options by job; --help-all shows all of them."""

    def __init__(self, *args: Any, **facts: Any) -> None:
        super().__init__(*args, **facts)
        self.params.append(_help_all())

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one section for each job that the command has options for."""
        options = [found for found in self.get_params(ctx) if isinstance(found, click.Option)]
        left = {str(option.name): option for option in options}
        every, hidden = bool(ctx.meta.get(_ALL)), 0
        for title, common, others in JOBS:
            shown = [left.pop(name) for name in common.split() if name in left]
            more = [left.pop(name) for name in others.split() if name in left]
            hidden += 0 if every else len(more)
            _section(ctx, formatter, title, [*shown, *(more if every else ())])
        _section(ctx, formatter, "Help", list(left.values()))
        if hidden:
            with formatter.indentation():
                formatter.write_paragraph()
                formatter.write_text(f"{hidden} more options: {ctx.command_path} --help-all")


class JobGroup(click.Group):
    """A group whose help lists its commands by what they are for."""

    command_class = JobCommand

    def __init__(self, *args: Any, **facts: Any) -> None:
        super().__init__(*args, **facts)
        self.params.append(_help_all())

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the help, for completion too."""
        known = [name for _, names in COMMANDS for name in names if name in self.commands]
        return [*known, *sorted(set(self.commands) - set(known))]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one section for each purpose; under --help-all, the help of each command follows."""
        left = self.list_commands(ctx)
        for title, names in (*COMMANDS, ("Other commands", tuple(left))):
            found = [name for name in names if name in left]
            left = [name for name in left if name not in found]
            # As much as the longest name leaves of a line.
            rows = [(name, self.commands[name].get_short_help_str(62)) for name in found]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        if ctx.meta.get(_ALL):
            for name in self.list_commands(ctx):
                inner = click.Context(self.commands[name], info_name=name, parent=ctx)
                formatter.write_paragraph()
                self.commands[name].format_help(inner, formatter)


def _section(
    ctx: click.Context,
    formatter: click.HelpFormatter,
    title: str,
    options: Sequence[click.Option],
) -> None:
    records = [option.get_help_record(ctx) for option in options]
    rows = [record for record in records if record is not None]  # hidden options have none
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows)
