"""Help by job: what is common comes first, and nothing is lost."""

import re

import click
import pytest

from deconvfix.cli.help import COMMANDS, JOBS, JobCommand
from deconvfix.cli.main import main
from tests.support.command import run

NAMES = [name for _, common, others in JOBS for name in f"{common} {others}".split()]


def options_of(command):
    return {p.name: p for p in command.params if isinstance(p, click.Option)}


def flags_in(text):
    """The flags that a help lists, at the beginnings of lines; those of its example are typed there."""
    text = text.partition("Example:")[0]
    return set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_option_belongs_to_one_job(name):
    command = main.commands[name]
    assert isinstance(command, JobCommand)
    assert set(options_of(command)) - {"help_all"} <= set(NAMES)


def test_no_job_names_an_option_twice_or_one_that_is_not():
    known = {option for command in main.commands.values() for option in options_of(command)}
    assert len(NAMES) == len(set(NAMES))
    assert set(NAMES) <= known


def test_every_command_has_a_purpose():
    assert {name for _, names in COMMANDS for name in names} == set(main.commands)


@pytest.mark.parametrize("name", sorted(main.commands))
def test_help_all_shows_every_option_and_help_those_that_are_common(name):
    every = {option.opts[-1] for option in options_of(main.commands[name]).values()} | {"--help"}
    every = {f"--{flag.lstrip('-')}" for flag in every}
    common = {option for _, shown, _ in JOBS for option in shown.split()} | {"help_all"}
    flags = {
        f"--{option.opts[-1].lstrip('-')}"
        for key, option in options_of(main.commands[name]).items()
        if key in common
    }
    assert flags_in(run(name, "--help-all").stdout) == every
    assert flags_in(run(name, "--help").stdout) == flags | {"--help"}


def test_the_help_of_convert_is_read_at_a_glance():
    short, long = run("convert", "-h").stdout, run("convert", "--help-all").stdout
    assert len(short.splitlines()) < 80 < len(long.splitlines())
    titles = re.findall(r"^(\w[^\n]*):$", short, re.MULTILINE)
    assert titles == [
        *("The model", "What is written", "What a layer becomes", "For a runtime or a chip"),
        *("Which layers", "Data", "What is told", "Help"),
    ]
    hidden = len(flags_in(long)) - len(flags_in(short))
    assert f"{hidden} more options: main convert --help-all" in short


def test_all_help_of_the_group_is_that_of_every_command():
    text = run("--help-all").stdout
    for name in main.commands:
        assert f"Usage: main {name}" in text
    assert "--convolution" in text
    assert "--convolution" not in run("--help").stdout


def test_an_option_without_a_job_is_still_shown():
    command = JobCommand("own", params=[click.Option(["--own"], help="Nobody sorted it.")])
    assert "--own" in command.get_help(click.Context(command))
