"""What deconvfix does without torch and without matplotlib: in processes that cannot import them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deconvfix.errors import DeconvfixError, MissingPackageError
from deconvfix.extras import needs
from tests.support.onnx_layers import X, Y
from tests.support.onnx_models import deconv, integers, model

ROOT = Path(__file__).parents[1]
INSTALL = "pip install 'deconvfix[torch]'"

# In front of all other finders, so that what is installed is not found.
BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnxscript", "safetensors", "matplotlib", "functorch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""
COMMAND = "from deconvfix.__main__ import main; main(sys.argv[1:])"
API = """
import numpy as np, onnx, onnx_ir as ir, deconvfix
proto = onnx.load("net.onnx")
x = {"x": np.ones((1, 4, 6, 5), np.float32)}
for model in (proto, ir.from_proto(proto), "net.onnx"):
    found = deconvfix.inspect(model, x)
    assert len(found.layers) == 1, found
    conversion = deconvfix.convert(model, example_inputs=x)
    assert conversion.report.parity.ok
    assert deconvfix.verify(model, conversion.model, x).ok
fitted = deconvfix.convert(
    proto, to="equalized", calibration=[{"x": np.random.default_rng(i).normal(size=(1, 4, 24, 25))
    .astype("float32")} for i in range(8)], pictures=True)
page = fitted.report.to_html()
assert "deconvfix[report]" in page and "<img" not in page
for name in ("load", "export_onnx", "strength_curve"):
    try:
        getattr(deconvfix, name)
    except deconvfix.MissingPackageError as error:
        print(error)
    else:
        raise AssertionError(name)
assert not {"torch", "matplotlib"} & set(sys.modules)
"""


@pytest.fixture
def folder(tmp_path):
    import onnx

    # Every phase has taps, so that the layer can be corrected.
    layer = deconv(kernel_shape=[4, 6], strides=[2, 3], pads=[1, 1, 1, 2], output_padding=None)
    stored = {"w": integers((4, 3, 4, 6)), "b": integers((6,))}
    onnx.save(model([layer], [X], [Y], stored), tmp_path / "net.onnx")
    (tmp_path / "net.pt2").touch()
    (tmp_path / "net.safetensors").touch()
    return tmp_path


def run(folder, code, *arguments):
    """A Python process without the packages of the extras."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_block_blocks(folder):
    result = run(folder, "import torch")
    assert result.returncode == 1
    assert "No module named 'torch'" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "net.onnx", "--json"),
        ("convert", "net.onnx", "-o", "out.onnx", "--report", "out.html"),
        ("verify", "net.onnx", "net.onnx"),
        ("bench", "net.onnx", "net.onnx", "--repeats", "3"),
        ("--help",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_on_onnx_files_need_no_torch(folder, arguments):
    result = run(folder, COMMAND, *arguments)
    assert result.returncode == 0, result.stderr


def test_fix_runs_on_onnx_files(folder):
    """The layer is random, so that it may have nothing to fix, or a fix that is not good enough."""
    code = "import numpy as np; np.savez('data.npz', x=np.ones((9, 4, 24, 24), 'float32'))\n"
    result = run(
        folder, code + COMMAND, *["fix", "net.onnx", "--data", "data.npz", "-o", "out.onnx"]
    )
    assert result.returncode in (0, 1, 3), result.stderr
    assert "not installed" not in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "net.pt2"),
        ("inspect", "net.safetensors", "--arch", "a:b"),
        ("convert", "net.pt2", "-o", "out.pt2"),
        ("convert", "net.safetensors", "--arch", "a:b", "-o", "out.onnx"),
        ("verify", "net.pt2", "net.pt2"),
        ("bench", "net.pt2", "net.pt2"),
        ("export", "net.pt2", "-o", "out.onnx"),
    ],
    ids=" ".join,
)
def test_commands_that_need_torch_say_so_in_one_line(folder, arguments):
    result = run(folder, COMMAND, *arguments)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {arguments[1]}: the package torch is not installed; ")
    assert INSTALL in line
    assert not list(folder.glob("out.*"))


def test_the_functions_work_on_onnx_models(folder):
    result = run(folder, API)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(INSTALL) == 3


def test_the_graph_pass_says_what_it_needs(folder):
    result = run(folder, "import deconvfix.fx")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        "deconvfix.errors.MissingPackageError: deconvfix.fx: the package torch is not installed; "
    )


def test_a_missing_package_is_an_error_of_both_kinds():
    with pytest.raises(MissingPackageError) as caught, needs("torch", "here"):
        raise ModuleNotFoundError(name="safetensors")
    assert isinstance(caught.value, DeconvfixError)
    assert isinstance(caught.value, ImportError)
    assert str(caught.value) == (
        "here: the package safetensors is not installed; this part of deconvfix needs it. "
        f"Install it with: {INSTALL}."
    )


@pytest.mark.parametrize("error", [ModuleNotFoundError(name="torch._C"), ImportError("libcudart")])
def test_a_broken_installation_is_not_called_a_missing_one(error):
    with pytest.raises(type(error)) as caught, needs("torch", "here"):
        raise error
    assert caught.value is error
