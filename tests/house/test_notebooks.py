"""The notebooks of docs/notebooks, executed in a kernel as a reader would."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
# In a process of its own: a kernel brings threads, sockets, and their warnings.
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
resources = {"metadata": {"path": sys.argv[2]}}
NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
print(sum(bool(cell.get("outputs")) for cell in notebook.cells))
"""


def execute(notebook):
    return subprocess.run(
        [sys.executable, "-c", EXECUTE, str(notebook), str(ROOT)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


needs_kernel = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("nbclient", "ipykernel")),
    reason="notebooks are executed with the extra 'docs'",
)


@needs_kernel
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(notebook):
    result = execute(notebook)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 2  # cells that showed something


@needs_kernel
def test_a_cell_that_fails_is_seen(tmp_path):
    content = json.loads(NOTEBOOKS[0].read_text())
    content["cells"][1]["source"] = "assert 1 == 2"
    (tmp_path / "broken.ipynb").write_text(json.dumps(content))
    result = execute(tmp_path / "broken.ipynb")
    assert result.returncode != 0
    assert "AssertionError" in result.stderr


def test_notebooks_are_stored_without_outputs_and_named_in_the_index():
    """What is shown is what the reader's own run gives."""
    index = (ROOT / "docs/README.md").read_text()
    assert len(NOTEBOOKS) == 3
    for notebook in NOTEBOOKS:
        assert f"(notebooks/{notebook.name})" in index
        cells = json.loads(notebook.read_text())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert code
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
