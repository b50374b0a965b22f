"""A layer by its definition: the rounding of upsampling is explained, and nothing else is."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import deconvfix
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Resize, run
from deconvfix.forms import form
from deconvfix.forms.base import Settings
from deconvfix.parity.bounds import LIMIT, rounding_unit
from deconvfix.parity.definition import by_definition, rounds_positions
from tests.support.onnx_models import proof

EPS = float(np.finfo(np.float32).eps)


def upsampler(weight, stride, sizes):
    """A file with one layer of 2 input and 3 output channels, on maps of fixed sizes."""
    ndim = len(sizes)
    pads = [(weight.shape[2] - stride) // 2] * (2 * ndim)
    node = helper.make_node(
        "ConvTranspose", ["x", "w", "b"], ["y"], name="up", strides=[stride] * ndim, pads=pads
    )
    bias = np.array([0.5, -1, 2], np.float32)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, *sizes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# Maps that are long enough for positions to round by more than the sums do.
LONG = {
    "1d-k9s3": (noise(2, 3, 9), 3, (300,)),
    "2d-k5s5": (noise(2, 3, 5, 5), 5, (7, 300)),
    "2d-k7s5": (noise(2, 3, 7, 7), 5, (300, 7)),
}


@pytest.fixture(params=LONG.values(), ids=list(LONG))
def resized(request):
    model = upsampler(*request.param)
    return model, deconvfix.convert(model, to="resize", init="fit", interpolation="linear")


def test_linear_upsampling_of_a_long_map_is_no_departure(resized):
    """ONNX Runtime computes positions in float32: far from the border they are off by many eps."""
    report = resized[1].report.parity
    assert report.ok
    assert report.max_error_ratio < LIMIT / 5


def changed(conversion, change):
    model = onnx.ModelProto()
    model.CopyFrom(conversion.model)
    change(model.graph)
    return model


def one_tap(graph):
    (kernel,) = (stored for stored in graph.initializer if len(stored.dims) > 2)
    values = numpy_helper.to_array(kernel).copy()
    values[(0,) * values.ndim] += 1e-4 * np.abs(values).max()
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))


def other_positions(graph):
    (resize,) = (node for node in graph.node if node.op_type == "Resize")
    (mode,) = (a for a in resize.attribute if a.name == "coordinate_transformation_mode")
    mode.s = b"asymmetric"


@pytest.mark.parametrize("mistake", [one_tap, other_positions])
def test_a_mistake_in_a_long_map_is_still_seen(resized, mistake):
    model, conversion = resized
    report = proof(model, changed(conversion, mistake), [], conversion.plan)
    assert not report.ok
    assert report.first_departure == "up"


@pytest.mark.parametrize("stride", [2, 3, 5])
def test_a_kernel_that_divides_by_linear_upsampling_is_compared_by_layer(stride):
    """The original has no positions: noise on its numbers says nothing about their rounding."""
    size = 2 * stride if stride == 2 else 2 * stride - 1
    taps = 1 - np.abs(np.arange(size) - (size - 1) / 2) / stride
    weight = (noise(2, 3, 1) * taps).astype(np.float32)
    model = upsampler(weight, stride, (300,))
    conversion = deconvfix.convert(model, to="resize", interpolation="linear", padding_mode="zeros")
    report = conversion.report.parity
    assert conversion.plan["up"].exact
    assert report.ok
    # Halves and quarters are exact: there the model is compared end to end as well.
    assert any(comparison.what == "y" for comparison in report.comparisons) == (stride == 2)
    assert any("layer by layer: up got" in note for note in report.notes) == (stride != 2)
    wrong = proof(model, changed(conversion, one_tap), [], conversion.plan)
    assert wrong.first_departure == "up"


def definition_of(x, stride=3, kernel=9, interpolation="linear"):
    spec = ConvTransposeSpec.create(2, 3, (kernel,), stride=stride, padding=(kernel - stride) // 2)
    target = form("resize")
    settings = Settings(interpolation=interpolation, padding_mode="reflect", init="fit")
    compiled = target.compile(spec, settings)
    weight, bias = noise(*_shape_of(compiled)), np.array([0.5, -1, 2], np.float32)
    definition = by_definition(compiled, x, weight, bias, EPS)
    wide = run(compiled.steps, *(a.astype(np.float64) for a in (x, weight, bias)))
    size = run(compiled.steps, *(np.abs(a).astype(np.float64) for a in (x, weight, bias)))
    np.testing.assert_array_equal(definition.value, wide)
    return definition.rounding / size


def _shape_of(compiled):
    conv = compiled.steps[-1]
    return (conv.out_channels, conv.in_channels, *conv.kernel_size)


def test_positions_do_not_matter_on_a_constant():
    ratio = definition_of(np.full((1, 2, 40), 0.5))
    np.testing.assert_allclose(ratio, ratio.flat[0])


def test_positions_round_the_more_the_farther_they_are():
    ratio = definition_of(np.tile([1.0, -1.0], (1, 2, 200)))
    assert ratio[..., 900:1100].mean() > 5 * ratio[..., 50:150].mean()


@pytest.mark.parametrize(
    ("stride", "interpolation"), [(2, "linear"), (4, "linear"), (3, "nearest")]
)
def test_binary_fractions_and_repeated_pixels_have_no_rounded_positions(stride, interpolation):
    x = np.tile([1.0, -1.0], (1, 2, 200))
    ratio = definition_of(x, stride, stride + 6, interpolation)
    np.testing.assert_allclose(ratio, ratio.flat[0])
    assert not rounds_positions([Resize((stride,), interpolation)])


def test_repeated_pixels_round_alike():
    """14 terms of one kind err by 14 roundings, of which the limit holds 10."""
    ratio = definition_of(noise(1, 2, 40), interpolation="nearest")
    np.testing.assert_allclose(ratio, EPS * 14 / LIMIT)
    assert rounding_unit(EPS, 14) < EPS * 14 / LIMIT


def test_rounded_positions_explain_what_float32_does():
    """Against upsampling with positions in float32, as runtimes compute them."""
    x = noise(1, 2, 500).astype(np.float64)
    factor, length = 3, x.shape[-1]
    u = np.arange(length * factor, dtype=np.float32)
    position = (u + np.float32(0.5)) / np.float32(factor) - np.float32(0.5)
    position = np.clip(position, 0, length - 1).astype(np.float64)
    lower = np.minimum(position.astype(np.int64), length - 2)
    fraction = position - lower
    rounded = x[..., lower] * (1 - fraction) + x[..., lower + 1] * fraction
    exact = run((Resize((factor,), "linear"),), x, np.empty(0))
    compiled = form("resize").compile(
        ConvTransposeSpec.create(2, 2, (factor,), stride=factor, groups=2, bias=False),
        Settings(interpolation="linear", padding_mode="reflect", init="fit"),
    )
    unit = by_definition(compiled, x, np.ones((2, 1, 1)), None, EPS).rounding
    departure = np.abs(rounded - exact) / unit
    assert 0.1 < departure.max() < 1
