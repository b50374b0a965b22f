"""Calibration inputs of ONNX models: drawn, cut, and refused in words."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

import deconvfix
from deconvfix.errors import DeconvfixError, ModelError
from deconvfix.frontends.onnx import frontend as onnx_model
from deconvfix.frontends.onnx.samples import OnnxSamples, rebatched
from deconvfix.frontends.samples import calibration_inputs
from tests.support.onnx_fits import W, as_onnx, batches, integer_net, up
from tests.support.onnx_models import (
    model,
    value,
)

FIXED = (2, 4, 6, 5)


def test_inputs_are_drawn_in_the_shapes_of_the_file_or_the_example():
    proto = as_onnx(integer_net(), sizes=FIXED)
    kernels = [
        deconvfix.convert(proto, to="equalized", init="calibrated", calibration=name, seed=0)
        .plan["up1"]
        .fitted.kernel
        for name in ("normal", "uniform", "normal")
    ]
    assert np.array_equal(kernels[0], kernels[2])
    assert not np.array_equal(kernels[0], kernels[1])
    for sizes, example, shape in (
        (FIXED, None, FIXED),
        (("N", 4, 6, 5), None, (8, 4, 6, 5)),
        (("N", 4, "H", "W"), np.zeros((3, 4, 5, 6), np.float32), (3, 4, 5, 6)),
    ):
        parsed = ir.from_proto(as_onnx(integer_net(), sizes=sizes))
        feeds, _ = calibration_inputs(OnnxSamples(parsed, example), "normal")
        assert {each["x"].shape for each in feeds} == {shape}
        assert sum(len(each["x"]) for each in feeds) >= 256 > sum(len(e["x"]) for e in feeds[1:])
        assert onnx_model.FRONTEND.count_samples(parsed, "normal", example) == sum(
            len(each["x"]) for each in feeds
        )
        assert abs(np.mean([each["x"] for each in feeds])) < 0.05
        uniform, _ = calibration_inputs(OnnxSamples(parsed, example), "uniform")
        assert min(each["x"].min() for each in uniform) >= 0


def test_batches_are_cut_to_the_files_own_size():
    parsed = ir.from_proto(as_onnx(integer_net(), sizes=FIXED))
    given = [{"x": np.arange(5 * 120.0).reshape(5, 4, 6, 5)}] * 2
    found = list(rebatched(parsed, given))
    assert [each["x"].shape for each in found] == [FIXED] * 5
    assert {each["x"].dtype for each in found} == {np.dtype(np.float32)}
    whole = np.concatenate([each["x"] for each in given])
    np.testing.assert_array_equal(np.concatenate([each["x"] for each in found]), whole)
    other = {"x": np.zeros((1, 4, 6, 7))}
    assert len(list(rebatched(parsed, [other, *given, other]))) == 5
    opened = ir.from_proto(as_onnx(integer_net()))
    assert [each["x"].shape for each in rebatched(opened, given)] == [(5, 4, 6, 5)] * 2


GOOD = batches(FIXED, 2)

WRONG = {
    "none": ({}, "calibration: there are no calibration inputs; init 'calibrated' and 'tuned' fit"),
    "empty": ({"calibration": []}, "calibration: it is empty; init 'calibrated' and 'tuned' fit"),
    "unknown": ({"calibration": "gamma"}, "calibration: the value is 'gamma'; one of 'normal'"),
    "open sizes": (
        {"calibration": "normal"},
        "calibration: it is 'normal', and the sizes of the input 'x' are open; example inputs give",
    ),
    "names": (
        {"calibration": [{"z": GOOD[0]}]},
        "inputs: missing: 'x'; the model's inputs are 'x'",
    ),
    "shape": (
        {"calibration": [GOOD[0], GOOD[0][:, :3]]},
        "calibration input 2: it fails on inputs of shapes {'x': (2, 3, 6, 5)}",
    ),
    "not finite": (
        {"calibration": [*GOOD, np.full(FIXED, np.nan, np.float32)]},
        "up1: its inputs or outputs are not finite on some calibration inputs; finite values",
    ),
    "tuned": (
        {"init": "tuned", "calibration": GOOD},
        "init: it is 'tuned', and the model is a program or an ONNX model; a distillation trains a "
        "torch.nn.Module. Use init 'calibrated', or convert the module before it is exported",
    ),
}


@pytest.mark.parametrize(("options", "text"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(options, text):
    with pytest.raises(DeconvfixError) as caught:
        deconvfix.convert(as_onnx(integer_net()), to="resize", **{"init": "calibrated", **options})
    assert str(caught.value).startswith(text)
    assert all((caught.value.where, caught.value.found, caught.value.needed, caught.value.todo))


def test_a_model_that_does_not_run_cannot_be_calibrated():
    """ONNX Runtime has no float64 transposed convolution."""
    stored = {name: array.astype(np.float64) for name, array in W.items()}
    kind = TensorProto.DOUBLE
    nodes = [up("x w b", "y", "up")]
    proto = model(nodes, [value("x", ["N", 4, "L"], kind)], [value("y", 3, kind)], stored)
    inputs = [x.astype(np.float64) for x in batches((4, 4, 6))]
    with pytest.raises(ModelError, match="model: ONNX Runtime does not load it") as caught:
        deconvfix.convert(proto, to="equalized", init="calibrated", calibration=inputs)
    assert caught.value.todo == "Use init 'fit', which looks at the weights alone"
