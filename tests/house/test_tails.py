"""The benchmark of tails in short: what is compared computes the same, and the tail stands where it says."""

import numpy as np
import pytest

import deconvfix
from benchmarks import tails
from benchmarks.layers import feed_of, model_of, square
from tests.support.onnx_models import operators, run

LAYER = square("small", (6, 4), 4, 2, 5, padding=1)


@pytest.mark.parametrize("name", tails.TAILS)
def test_the_three_files_of_a_row_agree(name):
    alone, feed = model_of(LAYER), feed_of(LAYER)
    original = tails.with_tail(alone, name, 4)
    before = deconvfix.convert(original, example_inputs=feed).model
    behind = tails.with_tail(deconvfix.convert(alone).model, name, 4)
    kinds = [operator for operator, *_ in tails.TAILS[name]]
    for proto, where in ((before, 1), (behind, 3)):
        found = [kind for kind in operators(proto) if kind != "Constant"]
        assert found[where : where + len(kinds)] == kinds
    want, *others = (run(tails.followed(each), feed)[0] for each in (original, before, behind))
    assert want.shape == (1, 4, 1, 1)
    for got in others:
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_row_is_measured():
    row = tails.row(LAYER, "Relu", "onnxruntime", 2)
    assert row.startswith("| small, Relu |")
    assert row.count("|") == 5
