"""The command line: help, and how it is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import deconvfix
from deconvfix.cli.main import main
from tests.support.command import run

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_with_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: deconvfix {command}" in result.stdout


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_option_has_help(command):
    options = [each for each in main.commands[command].params if each.param_type_name == "option"]
    bare = {each.name for each in options if not each.help}
    assert bare == set()


def test_help_lists_the_commands():
    assert set(main.commands) >= {"inspect", "convert", "verify", "export"}
    assert all(command in run("-h").stdout for command in main.commands)


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_module_is_the_command():
    done = python("-m", "deconvfix", "--version")
    assert (done.returncode, done.stdout) == (0, f"deconvfix, version {deconvfix.__version__}\n")


def test_launcher_is_the_command():
    done = python("cli.py", "--help")
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["Usage:", "deconvfix"])


def test_help_needs_no_torch():
    """Help comes at once: what is slow to import is imported when it is needed."""
    code = (
        "import sys; from deconvfix.cli.main import main; main(['--help'], standalone_mode=False);"
        "sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    )
    assert python("-c", code).returncode == 0
