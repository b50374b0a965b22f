"""Quantised layers with new weights: integers again, with equal phase sums, and what the form means."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import deconvfix
from deconvfix.core.rearrange import rearrange
from deconvfix.core.steps import run as run_steps
from deconvfix.forms import form
from deconvfix.frontends.onnx.find import find_layers
from deconvfix.frontends.onnx.requantised import as_stored
from deconvfix.grid.kernel import ripple_db
from deconvfix.plan import Fitted, Plan, Replaced
from tests.support.fits import settings_drawn
from tests.support.int8 import (
    INT8,
    UINT8,
    converted,
    dequantised,
    quantised_layer,
    wide,
)
from tests.support.onnx_models import (
    proof,
    run,
)
from tests.support.strategies import cases

FORMS = ["equalized", "notch", "resize"]


def by_definition(conversion, x):
    """The layer's steps in float64, with the weights that the file holds."""
    (decision,) = conversion.plan.replaced
    compiled = decision.compiled()
    ((operands),) = dequantised(conversion.model)
    q, scales, _ = operands["weight"]
    bias = None
    if "bias" in operands:
        steps, of_bias, _ = operands["bias"]
        bias = (steps * of_bias).reshape(-1)
    weight = q * scales
    # The file's weight is the rearranged one of the plan, exactly.
    kernel = decision.fitted.kernel
    verbs = compiled.weight
    wanted = rearrange(verbs, kernel, decision.spec.groups) if verbs else kernel
    np.testing.assert_array_equal(weight, wanted)
    return run_steps(compiled.steps, x, weight, bias)


@pytest.mark.parametrize("to", FORMS)
@given(
    cases(),
    settings_drawn,
    st.sampled_from(["all", "outputs", "inputs"]),
    st.sampled_from([(INT8, 0), (INT8, 3), (UINT8, 120)]),
    st.sampled_from([UINT8, INT8]),
)
def test_any_layer_is_what_its_form_means_with_the_integers_of_the_file(
    to, case, settings, layout, weight, activation
):
    """Equality, for all sums of scales that are powers of two are exact in float32."""
    if layout == "inputs" and 1 < case.spec.groups < case.spec.in_channels:
        layout = "outputs"  # others are refused
    dtype, zero = weight
    proto, feed = quantised_layer(
        case, layout=layout, weight=dtype, zero=zero, activation=activation
    )
    options = {"grow": settings.grow}
    if to == "resize":
        options |= {"padding_mode": settings.padding_mode}
    if to == "notch":
        options |= {"reach": settings.reach}
    # ONNX Runtime runs no ConvTranspose with a larger output_padding.
    pairs = zip(case.spec.output_padding, case.spec.stride, strict=True)
    assume(to != "equalized" or all(more < s for more, s in pairs))
    conversion = deconvfix.convert(
        proto, to=to, init="fit", include=("up",), verify=False, **options
    )
    # As for floats: what is refused or kept is so for its geometry or its equal sums.
    if not conversion.plan.replaced:
        return
    (decision,) = conversion.plan.replaced
    if decision.target.is_exact or decision.exact:
        return
    (got,) = run(conversion.model, feed, optimize=False)
    np.testing.assert_array_equal(got, by_definition(conversion, 0.5 * case.x))
    kernel, scales = decision.fitted.kernel, decision.fitted.scales
    spread, whole = decision.target.spread(decision.spec, decision.settings, kernel / scales)
    np.testing.assert_array_equal(kernel / scales, np.rint(kernel / scales))
    if to != "resize":
        assert ripple_db(spread, whole) == -300


# --- scales ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["all", "outputs", "inputs"])
@pytest.mark.parametrize("to", FORMS)
def test_a_scale_grows_where_it_must_and_no_tap_moves_by_a_unit(to, layout):
    case = wide(groups=1 if layout == "inputs" else 2)
    proto, feed = quantised_layer(case, layout=layout)
    [before] = dequantised(proto)
    conversion = converted(proto, to, feed, grow=1)
    [after] = dequantised(conversion.model)
    (decision,) = conversion.plan.replaced
    q, _, dtype = after["weight"]
    assert dtype == np.int8
    assert np.abs(q).max() <= 127
    kernel, scales = decision.fitted.kernel, decision.fitted.scales
    chosen = form(to)
    wanted = chosen.fit(decision.spec, decision.settings, before["weight"][0] * before["weight"][1])
    # Below one unit, and a scale in float32 is half a part in 2^24 off.
    assert (np.abs(kernel - wanted) < scales * (1 + 1e-5)).all()
    old = before["weight"][1]
    old = np.concatenate([old, old]) if len(scales) > max(len(old), 1) else old
    needed = np.abs(wanted) / 127
    axes = tuple(i for i in range(needed.ndim) if scales.shape[i] == 1)
    needed = needed.max(axes, keepdims=True)
    if len(scales) > 1:  # one for a channel and its means
        needed = needed.reshape(-1, 4, *needed.shape[1:]).max(0)
        old, scales = old[:4], scales[:4]
    stays = needed <= old
    assert (scales[stays] == old[stays]).all()
    np.testing.assert_allclose(scales[~stays], needed[~stays], rtol=1e-6)
    if layout == "outputs":
        assert stays.any(), "the channel of small taps keeps its scale"


def quantised_with(case, to):
    proto, feed = quantised_layer(case, layout="outputs")
    return proto, to, feed


@pytest.mark.parametrize("to", FORMS)
def test_seven_bits_stay_seven_bits(to):
    """`reduce_range` is for CPUs whose sums would saturate with more."""
    case = wide(most=64)
    case.weight[0, 0, 0, 0] = 64
    [found] = dequantised(converted(*quantised_with(case, to)).model)
    assert np.abs(found["weight"][0]).max() <= 64


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("to", FORMS)
def test_the_scale_of_the_bias_is_that_of_the_products(to, per_channel):
    """In the bits that runtimes compare, and each bias off by half a unit at most."""
    case = wide()
    proto, feed = quantised_layer(case, layout="outputs" if per_channel else "all")
    [before] = dequantised(proto)
    [after] = dequantised(converted(proto, to, feed).model)
    (q, scales, dtype), (_, of_weight, _) = after["bias"], after["weight"]
    assert dtype == np.int32
    bias = (before["bias"][0] * before["bias"][1]).reshape(-1)
    rows = 3 * 2
    if to == "notch":  # each of the phases has it
        bias = np.repeat(bias, len(q) // rows)
    np.testing.assert_array_less(np.abs(q * scales.reshape(-1) - bias), 0.51 * scales.max())
    products = np.float32(0.5) * of_weight.astype(np.float32)
    products = products.reshape(-1)
    if to == "equalized" and per_channel:
        products = np.tile(products, 2)  # the weight's serve both groups
    np.testing.assert_array_equal(scales.reshape(-1).astype(np.float32), products)


# --- sums -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["equalized", "notch"])
def test_the_report_has_no_ripple_where_plain_rounding_has_one(to):
    """The negative control: the same kernel, each tap rounded on its own."""
    proto, feed = quantised_layer(wide(), layout="outputs")
    conversion = converted(proto, to, feed)
    (layer,) = conversion.report.layers
    assert layer.ripple_db_after == -300
    (decision,) = conversion.plan.replaced
    layer = find_layers(ir.from_proto(proto))[0]
    scales = decision.fitted.scales
    kernel = decision.target.fit(decision.spec, decision.settings, layer.read_weight())
    plain = np.rint(kernel / scales) * scales
    assert ripple_db(*decision.target.spread(decision.spec, decision.settings, plain)) > -60


def test_a_part_of_the_grid_stays_as_in_floats():
    proto, feed = quantised_layer(wide(), layout="outputs")
    conversion = converted(proto, "equalized", feed, strength=0.5)
    (decision,), (layer,) = conversion.plan.replaced, conversion.report.layers
    weight = find_layers(ir.from_proto(proto))[0].read_weight()
    floats = ripple_db(*decision.target.equivalent(decision.spec, decision.settings, weight))
    # The sum of each phase is off by a unit at most, and the sums are some hundred units.
    assert layer.ripple_db_after == pytest.approx(floats, abs=0.1)
    assert layer.ripple_db_after > layer.ripple_db_before - 7


def test_rounding_twice_changes_nothing():
    proto, _ = quantised_layer(wide(), layout="outputs")
    layer = find_layers(ir.from_proto(proto))[0]
    plan = deconvfix.convert(proto, to="equalized", init="fit").plan
    (decision,) = plan.replaced
    assert as_stored(layer, decision) is decision
    kernel = decision.fitted.kernel
    again = as_stored(layer, replace(decision, fitted=Fitted(kernel, None)))
    assert isinstance(again, Replaced)
    np.testing.assert_array_equal(again.fitted.kernel, kernel)


@pytest.mark.parametrize("to", FORMS)
def test_the_proof_sees_one_integer(to):
    proto, feed = quantised_layer(wide(), layout="outputs")
    conversion = converted(proto, to, feed)
    for each in conversion.model.graph.initializer:
        if each.name == "wq":
            q = onnx.numpy_helper.to_array(each).copy()
            q.flat[q.argmin()] += 1
            each.CopyFrom(onnx.numpy_helper.from_array(q, "wq"))
    assert not proof(proto, conversion.model, [feed], conversion.plan).ok


def test_a_recipe_gives_the_same_integers():
    """It holds no weights, so that they are rounded again."""
    proto, feed = quantised_layer(wide(), layout="outputs")
    conversion = converted(proto, "notch", feed)
    recipe = Plan.from_json(conversion.plan.to_json())
    again = deconvfix.convert(proto, plan=recipe, example_inputs=feed)
    assert again.model == conversion.model
