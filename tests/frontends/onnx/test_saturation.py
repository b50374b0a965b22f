"""Where ONNX Runtime's optimised integers depart and the function is the same, the sentence says so."""

import onnx_ir as ir
import pytest

from deconvfix.errors import ParityError
from deconvfix.failures import parity_error
from deconvfix.frontends.onnx import parity
from deconvfix.parity.bounds import Comparison, ParityReport
from deconvfix.parity.outputs import OutputParity
from tests.support.onnx_layers import plain


def found(words, ok):
    return Comparison("y", words, 1.0, 0.0 if ok else 99.0, ok)


@pytest.mark.parametrize(
    ("comparisons", "wanted"),
    [
        ([found("the inputs, as it stands", True), found("the inputs, optimised", False)], True),
        ([found("the inputs, as it stands", False), found("the inputs, optimised", False)], False),
        ([found("the inputs, optimised", True)], False),
        ([], False),
    ],
)
def test_only_the_optimised_run_departs(comparisons, wanted):
    assert parity._departs_only_optimised(comparisons) is wanted


def test_saturation_is_measured_and_its_remedy_is_the_advice(monkeypatch):
    """A departure is blamed on the CPU only where its integers do saturate."""
    departed = [found("the inputs, as it stands", True), found("the inputs, optimised", False)]
    outputs = OutputParity(tuple(departed), ("It differs.",))
    monkeypatch.setattr(parity, "_compare_outputs", lambda *args: outputs)
    monkeypatch.setattr(parity, "_is_quantised", lambda model: True)
    graph = ir.from_proto(plain())
    for saturates in (True, False):
        monkeypatch.setattr(parity, "integers_saturate", lambda answer=saturates: answer)
        error = str(parity_error(parity.compare_models(graph, graph, [], None), "net.onnx"))
        assert ("whose integer kernels saturate" in error) is saturates
        assert ("reduce_range=True" in error) is saturates
        assert ("report this as a bug" in error) is not saturates


def test_what_saturates_is_asked_of_the_runtime():
    """Sums that fit into 16 bits are right on every CPU."""
    assert parity.sum_of_products(255, 31) == 4 * 255 * 31
    assert parity.sum_of_products(3, -5) == -60


@pytest.mark.parametrize(
    ("layer", "words"), [("up1", "Exclude the layer named here"), (None, "No single layer departs")]
)
def test_no_layer_is_to_be_excluded_that_has_no_name(layer, words):
    error = parity_error(
        ParityReport(False, 1, 99, "float32", (), layer, ("It differs.",)), "net.onnx"
    )
    assert isinstance(error, ParityError)
    assert words in str(error)
    assert str(error).startswith(layer or "net.onnx")
