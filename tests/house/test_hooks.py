"""What docs/hooks.md shows for Olive and optimum-onnx, in these themselves where they are installed."""

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
OPTIMUM, PASS = re.findall(r"```py\n(.*?)```", TEXT, re.DOTALL)
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


# A depth estimator of transformers, small and with random weights: its neck has two transposed convolutions.
DEPTH = """
import torch
from transformers import DPTConfig, DPTForDepthEstimation

torch.manual_seed(0)
config = DPTConfig(
    hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=32,
    patch_size=8, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8],
    fusion_hidden_size=8, readout_type="ignore",
)
before = DPTForDepthEstimation(config).eval()
before.save_pretrained("dpt")
"""
THE_SAME = """
assert conversion.report.ok and len(conversion.plan.replaced) == 2
pixels = torch.randn(1, 3, 32, 32)
with torch.no_grad():
    expected = before(pixels).predicted_depth
depth = torch.as_tensor(model(pixel_values=pixels)["predicted_depth"])
assert 0 < expected.std() and (depth - expected).abs().max() < 1e-3 * expected.std()
"""


def _has_optimum():
    try:
        return importlib.util.find_spec("optimum.exporters.onnx") is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.skipif(not _has_optimum(), reason="optimum-onnx is not installed")
def test_optimum_exports_what_is_converted_and_loads_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DEPTH + OPTIMUM + THE_SAME],
        cwd=tmp_path,
        env=os.environ | OFFLINE | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    operators = {n.op_type for n in onnx.load(tmp_path / "dpt_onnx/converted.onnx").graph.node}
    assert "ConvTranspose" not in operators
    exported = {n.op_type for n in onnx.load(tmp_path / "dpt_onnx/model.onnx").graph.node}
    assert "ConvTranspose" in exported
