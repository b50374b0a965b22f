"""A form is a file and a line: a made-up one is added to a copy of the package, and used everywhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.support.onnx_files import net

ROOT = Path(__file__).parents[2]

# The corrected kernel of the equalized form, written as a sub-pixel convolution.
FORM = '''
"""Transposed convolution -> sub-pixel convolution of the kernel with equal phase sums."""

from dataclasses import dataclass, replace
from typing import ClassVar

from deconvfix.errors import Refusal
from deconvfix.forms.base import Form, Merit, Recommendation, Settings
from deconvfix.forms.equalized import EQUALIZED
from deconvfix.forms.subpixel import SUBPIXEL


@dataclass(frozen=True)
class Smooth(Form):
    """The equalized kernel without a transposed convolution."""

    name: ClassVar[str] = "smooth"
    summary: ClassVar[str] = "an equalized kernel as a sub-pixel convolution"

    def settle(self, spec, settings, read_weight):
        settled = EQUALIZED.settle(spec, settings, read_weight)
        return settled if isinstance(settled, Refusal) else replace(settled, form=None)

    def compile(self, spec, settings):
        return SUBPIXEL.compile(spec, settings)

    def fit(self, spec, settings, weight):
        return EQUALIZED.fit(spec, settings, weight)

    def design(self, spec, settings):
        return EQUALIZED.design(spec, settings)

    def spread(self, spec, settings, kernel):
        return spec, kernel

    def recommend(self, candidate):
        if not candidate.has_grid:
            return None
        cost = self.relative_macs(candidate.spec, Settings())
        return Merit.SAME_FUNCTION_SIMPLER, Recommendation(self.name, "It is new.", cost)


SMOOTH = Smooth()
'''

# Converts one small model as each kind; prints what came out.
PROGRAM = """
import json, sys
import torch
from torch import nn
import deconvfix

torch.manual_seed(0)
net = nn.Sequential(nn.ConvTranspose2d(3, 4, 5, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 4, 2))
x = torch.randn(4, 3, 6, 7)
out = {"recommended": [layer.recommendation.form for layer in deconvfix.inspect(net).layers]}
deconvfix.export_onnx(net.eval(), "net.onnx", (x,), verify=False)
program = torch.export.export(net.eval(), (x,))
for init in ("fit", "calibrated"):
    for kind, model in (("module", net.eval()), ("program", program), ("onnx", "net.onnx")):
        inputs = [x.numpy()] if kind == "onnx" else (x,)
        samples = {"calibration": [inputs]} if init == "calibrated" else {}
        got = deconvfix.convert(model, to="smooth", init=init, example_inputs=inputs, **samples)
        out[f"{kind} {init}"] = {
            "ok": got.report.ok and got.report.parity.ok,
            "forms": [layer.form for layer in got.report.layers],
            "ripple": max(layer.ripple_db_after for layer in got.report.layers),
        }
json.dump(out, sys.stdout)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package with one more file in forms/, and one more line (an import and a name)."""
    folder = tmp_path_factory.mktemp("fifth")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "deconvfix", folder / "deconvfix", ignore=ignored)
    forms = folder / "deconvfix" / "forms"
    (forms / "smooth.py").write_text(FORM)
    listed = (forms / "__init__.py").read_text()
    changed = listed.replace(
        "from deconvfix.forms.subpixel import SUBPIXEL",
        "from deconvfix.forms.smooth import SMOOTH\nfrom deconvfix.forms.subpixel import SUBPIXEL",
    ).replace("EQUALIZED, NOTCH)", "EQUALIZED, NOTCH, SMOOTH)")
    assert changed.count("SMOOTH") == 2
    (forms / "__init__.py").write_text(changed)
    return folder


def run(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_fifth_form_converts_every_kind_of_model(package):
    result = run(package, "-c", PROGRAM)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.pop("recommended") == ["smooth", "smooth"]
    assert len(found) == 6
    for outcome in found.values():
        assert outcome["ok"]
        assert outcome["forms"] == ["smooth", "smooth"]
        assert outcome["ripple"] < -100


def test_the_command_line_knows_it(package):
    result = run(package, "-m", "deconvfix", "convert", "--help")
    assert "smooth" in result.stdout
    onnx.save(net(), package / "own.onnx")
    command = ("own.onnx", "-o", "smooth.onnx", "--to", "smooth", "--init", "fit", "--json")
    result = run(package, "-m", "deconvfix", "convert", *command)
    assert result.returncode == 0, result.stderr
    assert {layer["form"] for layer in json.loads(result.stdout)["layers"]} == {"smooth"}


def test_without_the_line_it_is_unknown(package):
    """The control: the copy is what runs, and the line is what counts."""
    result = run(ROOT, "-m", "deconvfix", "convert", "net.onnx", "--to", "smooth")
    assert result.returncode == 2
    assert "smooth" in result.stderr
