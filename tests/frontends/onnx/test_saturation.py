"""Where ONNX Runtime's optimised integers depart and the function is the same, the sentence says so."""

import pytest

from deconvfix.conversion import parity_error
from deconvfix.errors import ParityError
from deconvfix.frontends.onnx import parity
from deconvfix.parity.bounds import Comparison, ParityReport


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
