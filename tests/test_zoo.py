"""Published architectures with random weights: converted, proven, exported, run in ONNX Runtime.

pip install -c constraints.txt -e '.[test,zoo]'
pytest -m zoo
"""

import pytest

import deconvfix
from tests.zoo.models import ZOO

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.filterwarnings("ignore"),  # the packages warn about themselves
]

LEAST = 110


def test_the_zoo_is_there():
    assert len({entry.name for entry in ZOO}) == len(ZOO) >= LEAST


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_architecture_is_converted_exactly(entry):
    """All layers replaced, none executed afterwards (convert raises otherwise), parity proven."""
    pytest.importorskip(entry.package)
    model, args, kwargs = entry.build()
    conversion = deconvfix.convert(model, example_inputs=(args, kwargs), strict=True)
    assert {layer.decision for layer in conversion.report.layers} == {"replaced"}
    assert conversion.report.still_running == ()
    assert conversion.report.parity.ok
    # Layers and outputs were compared, not nothing.
    compared = {each.what.split(" ")[0] for each in conversion.report.parity.comparisons}
    assert "output" in compared
    assert len(compared) > 1


@pytest.mark.parametrize(
    "entry", [entry for entry in ZOO if entry.exports], ids=lambda entry: entry.name
)
def test_converted_architecture_exports_like_the_original(entry, tmp_path):
    pytest.importorskip(entry.package)
    model, args, kwargs = entry.build()
    converted = deconvfix.convert(model, example_inputs=(args, kwargs), verify=False).model
    report = deconvfix.export_onnx(converted, tmp_path / "model.onnx", (args, kwargs))
    assert report.operators.get("ConvTranspose", 0) == 0
    assert report.parity.ok
