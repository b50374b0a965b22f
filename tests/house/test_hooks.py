"""The pass for Olive that docs/hooks.md shows, in Olive itself where it is installed."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.support.onnx_files import net

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/hooks.md").read_text(encoding="utf-8")
PASS = re.search(r"```py\n(.*?)```", TEXT, re.DOTALL)[1]
PACKAGE = re.search(r"```json\n(.*?)```", TEXT, re.DOTALL)[1]

# Olive's telemetry is switched off before it is imported; it stays offline.
OFFLINE = {"OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "CI": "1"}
RUN = """
import sys
from olive.workflows import run
run("run.json", package_config="package.json")
"""


def test_the_pass_is_python_and_its_configuration_names_it():
    compile(PASS, "docs/hooks.md", "exec")
    [(name, entry)] = json.loads(PACKAGE)["passes"].items()
    assert f"class {name}(Pass):" in PASS
    assert entry["module_path"] == f"deconvfix_olive.{name}"
    assert "# deconvfix_olive.py" in PASS


@pytest.mark.skipif(importlib.util.find_spec("olive") is None, reason="olive-ai is not installed")
def test_olive_runs_the_pass(tmp_path):
    onnx.save(net(shape=(1, 3, 7, 8)), tmp_path / "net.onnx")
    (tmp_path / "deconvfix_olive.py").write_text(PASS)
    (tmp_path / "package.json").write_text(PACKAGE)
    passes = {"plain": {"type": "ReplaceTransposedConvs", "target": "openvino"}}
    config = {
        "input_model": {"type": "ONNXModel", "model_path": "net.onnx"},
        "passes": passes,
        "output_dir": "out",
        "cache_dir": "cache",
    }
    (tmp_path / "run.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=tmp_path,
        env=os.environ | OFFLINE | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "out").rglob("*.onnx")
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert "ConvTranspose" not in operators
    assert "Conv" in operators
