"""The package is typed for code that is not ours: checked from outside, as it is installed."""

import importlib.util
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RIGHT = """
import deconvfix


def told(path: str) -> str:
    conversion = deconvfix.convert(path, to="subpixel", exclude=("up1", "up2"))
    report: deconvfix.ConversionReport = conversion.report
    layers: int = len(report.layers)
    return report.summary() + str(layers) + conversion.plan.to_json()
"""
WRONG = """
import deconvfix


def told(path: str) -> int:
    conversion = deconvfix.convert(path, grow="no number")
    return conversion.report.summary()
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """An environment with the wheel, and beside it what it depends on."""
    folder = tmp_path_factory.mktemp("outside")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    venv.create(folder / "venv", with_pip=False)
    [site] = (folder / "venv").glob("lib/python*/site-packages")
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (folder / "right.py").write_text(RIGHT)
    (folder / "wrong.py").write_text(WRONG)
    return folder


def checked(checker, outside, name):
    """Exit status, and the lines that speak of the file."""
    python = outside / "venv/bin/python"
    commands = {
        "mypy": ["-m", "mypy", "--strict", "--python-executable", python, "--cache-dir", "cache"],
        "pyright": ["-m", "pyright", "--pythonpath", python],
    }
    done = subprocess.run(
        [sys.executable, *map(str, commands[checker]), name],
        cwd=outside,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if name in line and "error" in line]
    return done.returncode, errors, done.stdout + done.stderr


CHECKERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(name) is None, reason=f"{name} is not installed"
        ),
    )
    for name in ("mypy", "pyright")
]


@pytest.mark.parametrize("checker", CHECKERS)
def test_code_that_uses_the_package_is_checked_with_its_types(outside, checker):
    status, errors, output = checked(checker, outside, "right.py")
    assert (status, errors) == (0, []), output
    status, errors, output = checked(checker, outside, "wrong.py")
    assert status == 1
    assert len(errors) == 2, output  # the argument, and what is returned
