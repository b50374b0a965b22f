"""The wheel: complete, and usable outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CODE = """
import torch, deconvfix
model = torch.nn.Sequential(torch.nn.ConvTranspose2d(3, 5, 4, 2, 1))
conversion = deconvfix.convert(model, example_inputs=(torch.randn(2, 3, 5, 6),))
assert "<html" in conversion.report.to_html()
print(conversion.report.verdict(), deconvfix.__file__)
"""


WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(("torch", "matplotlib", "onnxscript", "safetensors")))
import numpy, onnx, deconvfix
from onnx import helper, numpy_helper
x, y = (helper.make_tensor_value_info(n, 1, [2, 3, "h", "w"]) for n in "xy")
w = numpy_helper.from_array(numpy.ones((3, 5, 4, 4), "float32"), "w")
node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
graph = helper.make_graph([node], "g", [x], [y], [w])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
conversion = deconvfix.convert(model)
assert "<html" in conversion.report.to_html()
print(conversion.report.verdict(), deconvfix.__file__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's files in a folder of their own, as an installation has them."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_every_file_of_the_package(installed):
    package = ROOT / "deconvfix"
    wanted = {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert wanted <= found
    assert "deconvfix/py.typed" in found
    assert not any(name.startswith(("tests", "fixtures")) for name in found)
    assert any(name.endswith("licenses/LICENSE") for name in found)


@pytest.mark.parametrize("code", [CODE, WITHOUT_TORCH], ids=["a module", "ONNX without torch"])
def test_the_wheel_works_outside_the_checkout(installed, tmp_path, code):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "1 replaced; verified." in result.stdout
    assert str(installed) in result.stdout
