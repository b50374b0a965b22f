"""The command `deconvfix targets`: what the profiles say, and what was measured."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich.table import Table

from deconvfix.cli.help import JobCommand
from deconvfix.cli.options import ReportOptions, takes
from deconvfix.cli.terminal import show
from deconvfix.cli.text import escape
from deconvfix.targets.profile import Profile, profile_named, profiles

__all__ = ["targets"]

FORMAT = "deconvfix.targets/1"


@click.command(cls=JobCommand, epilog="Example: deconvfix targets ncnn")
@click.argument("names", nargs=-1, metavar="[NAME|FILE.toml]...")
@takes(ReportOptions, "options")
def targets(names: tuple[str, ...], options: ReportOptions) -> None:
    """List the targets that `convert --target` knows; with names, every line of their profiles."""
    found = [profile_named(name) for name in names or profiles()]
    if options.as_json:
        show({"format": FORMAT, "targets": [_as_dict(profile) for profile in found]})
    elif names:
        show(escape(_lines(profile)) for profile in found)
    else:
        table = Table("Target", "What it is", "Measured")
        for profile in found:
            table.add_row(*map(escape, (profile.name, profile.title, profile.measured)))
        show([table])


def _lines(profile: Profile) -> str:
    lines = [f"{profile.name}: {profile.title}", f"  measured: {profile.measured}"]
    return "\n".join([*lines, *(f"  {profile.line(key)}" for key in profile.sources)])


def _as_dict(profile: Profile) -> dict[str, object]:
    prefer = {
        str(ndim): [str(writing) for writing in writings]
        for ndim, writings in profile.prefer.items()
    }
    return asdict(profile) | {"prefer": prefer}
