"""The tests' own house: rooms as in the package, and no torch where numbers are enough."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
# Folders without a room of the package: helpers, rules of the project, published architectures, damage.
OWN = {"support", "house", "zoo", "fuzz"}
PURE = ("tests/core", "tests/forms", "tests/fit", "tests/grid")


def rooms(folder):
    """All folders of Python files below a folder, as paths relative to it."""
    files = folder.rglob("*.py")
    return {str(file.parent.relative_to(folder)) for file in files if file.parent != folder}


def test_folders_are_rooms_of_the_package():
    assert rooms(TESTS) - OWN <= rooms(ROOT / "deconvfix")
    assert rooms(TESTS) >= OWN


def test_every_folder_is_a_package():
    """So that files in two folders may have the same name."""
    assert [name for name in rooms(TESTS) if not (TESTS / name / "__init__.py").is_file()] == []


def imports_torch(*paths):
    """Whether a process that collects these tests has torch in memory."""
    code = (
        "import sys, pytest\n"
        "status = pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', *sys.argv[1:]])\n"
        "print('torch' in sys.modules)\n"
        "sys.exit(status)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return {"True": True, "False": False}[result.stdout.split()[-1]]


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [(PURE, False), (("tests/frontends/torch/test_calls.py",), True)],
    ids=["pure", "control"],
)
def test_tests_of_numbers_do_not_import_torch(paths, wanted):
    assert imports_torch(*paths) is wanted
