"""Makes an environment for each row of the table in docs/versions.md, and runs the tests in it.

    python scripts/matrix.py                    # the names of the rows
    python scripts/matrix.py 3.13-onnx 3.10-onnx-oldest
    python scripts/matrix.py all --folder /tmp/environments

The Python of a row is found as `python3.10`, or below ~/.pyenv/versions. Environments are kept in the folder
and used again. Each line of the table is written as its row ends. The exit code is 1 if a test failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "versions.md"
SHOWN = ("torch", "onnx", "onnx-ir", "onnxruntime", "numpy", "scipy")
COMMON = ("hypothesis>=6.100", "pytest>=8", "pytest-xdist>=3.6", "scikit-image", "tomli")
OLDEST = (
    "click==8.2.0", "jinja2==3.1.0", "numpy==1.26.4", "onnx==1.17.0", "onnx-ir==1.1.0",
    "onnxruntime==1.21.0", "rich==13.7.0", "scipy==1.13.0",
)  # fmt: skip
TORCH = ("build", "expecttest", "hatchling", "pillow", "scikit-learn", "soundfile", "twine")
# Modules of tests that import torch are skipped where it is not installed (tests/conftest.py).
ONNX_TESTS = (
    "tests/core", "tests/fit", "tests/forms", "tests/grid", "tests/parity", "tests/report",
    "tests/frontends/onnx", "tests/test_files.py", "tests/test_extras.py",
)  # fmt: skip
TORCH_TESTS = (
    "tests/fit", "tests/forms", "tests/test_extras.py", "tests/frontends/torch/test_frontend.py",
    "tests/frontends/torch/test_layers.py", "tests/frontends/torch/test_surgery.py",
    "tests/frontends/torch/test_calls.py", "tests/frontends/torch/test_checkpoint.py",
    "tests/frontends/torch/test_steps.py", "tests/frontends/torch/test_calibrate.py",
    "tests/frontends/torch/tuning/test_descent.py", "tests/frontends/torch/test_old_torch.py",
    "tests/frontends/torch/test_export.py",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """An environment: the Python, the extras of deconvfix, further requirements, the tests."""

    python: str
    extras: str
    packages: tuple[str, ...]
    tests: tuple[str, ...]


ROWS = {
    "3.13-onnx": Row("3.13", "report", (), ONNX_TESTS),
    "3.11-onnx": Row("3.11", "report", (), ONNX_TESTS),
    "3.10-onnx-oldest": Row("3.10", "report", (*OLDEST, "matplotlib==3.9.0"), ONNX_TESTS),
    "3.10-torch-2.4": Row(
        "3.10", "report,torch", (*OLDEST, *TORCH, "torch==2.4.0", "matplotlib==3.9.0"), TORCH_TESTS
    ),
    "3.10-torch-2.6": Row("3.10", "report,torch", (*TORCH, "torch==2.6.0"), TORCH_TESTS),
    "3.11-torch-2.9": Row("3.11", "report,torch", (*TORCH, "torch==2.9.0"), TORCH_TESTS),
    "3.12-torch-2.13": Row("3.12", "report,torch", (*TORCH, "torch==2.13.0"), TORCH_TESTS),
}


def interpreter(version: str) -> str:
    """The path of a Python of this version."""
    below = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    found = below[-1] if below else shutil.which(f"python{version}")
    if found is None:
        raise SystemExit(f"python{version} is not installed")
    return str(found)


def prepared(name: str, row: Row, folder: Path) -> Path:
    """The Python of the row's environment, which is made unless it is there."""
    home = folder / name
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        subprocess.run([interpreter(row.python), "-m", "venv", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q"]
        own = f"{ROOT}[{row.extras}]" if row.extras else str(ROOT)
        subprocess.run([*pip, own, *COMMON, *row.packages], check=True)
        # Its models are tested; what runs them is not needed.
        subprocess.run([*pip, "--no-deps", "rapidocr>=3.10"], check=True)
        # Else an old copy of the package would be tested.
        subprocess.run([str(python), "-m", "pip", "uninstall", "-qy", "deconvfix"], check=True)
        (home / "complete").touch()
    return python


def versions(python: Path) -> dict[str, str]:
    """Package -> version, of what the table shows."""
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=freeze"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    found = dict(line.split("==", 1) for line in listed.splitlines() if "==" in line)
    return {name.replace("_", "-"): version for name, version in found.items()}


def run_tests(python: Path, row: Row, report: Path, processes: int) -> tuple[int, int, int]:
    """Tests that passed, failed and were skipped."""
    tests = [test for test in row.tests if (ROOT / test).exists()]
    options = [
        "-q",
        "-n",
        str(processes),
        "--continue-on-collection-errors",
        f"--junitxml={report}",
    ]
    # Old versions of other packages may warn; what warns in the newest ones is an error in CI.
    command = [str(python), "-m", "pytest", *options, "-W", "ignore", *tests]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    suite = ElementTree.parse(report).getroot()[0]
    count = {key: int(suite.get(key, 0)) for key in ("tests", "errors", "failures", "skipped")}
    failed = count["errors"] + count["failures"]
    return count["tests"] - failed - count["skipped"], failed, count["skipped"]


def write(line: str) -> None:
    """Puts a line of the table in the place of the one with the same first cell, or at the end."""
    text = TABLE.read_text(encoding="utf-8")
    first = re.escape(line.split("|")[1])
    other, found = re.subn(rf"^\|{first}\|.*$", lambda _: line, text, flags=re.MULTILINE)
    TABLE.write_text(other if found else f"{text.rstrip()}\n{line}\n", encoding="utf-8")


def main() -> int:
    """See the text at the top."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, "all", []])
    parser.add_argument("--folder", type=Path, default=ROOT / ".matrix")
    parser.add_argument("--processes", type=int, default=2, help="that run the tests of a row")
    arguments = parser.parse_args()
    if not arguments.rows:
        print("\n".join(ROWS))
        return 0
    worst = 0
    for name in ROWS if "all" in arguments.rows else arguments.rows:
        row = ROWS[name]
        python = prepared(name, row, arguments.folder.resolve())
        found = versions(python)
        report = arguments.folder.resolve() / f"{name}.xml"
        passed, failed, skipped = run_tests(python, row, report, arguments.processes)
        shown = " | ".join(found.get(package, "none") for package in SHOWN)
        line = f"| {name} | {row.python} | {shown} | {passed} | {failed} | {skipped} | {date.today()} |"
        print(line)
        write(line)
        worst |= failed > 0
    return worst


if __name__ == "__main__":
    sys.exit(main())
