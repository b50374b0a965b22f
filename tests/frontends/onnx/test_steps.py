"""Fitted forms as ONNX operators, for every dimension and opset."""

import contextlib

import numpy as np
import pytest

import deconvfix
from deconvfix.core import steps
from deconvfix.core.rearrange import rearrange
from deconvfix.forms import form
from tests.support.onnx_layers import FEED, W, X, Y, plain, refusal
from tests.support.onnx_models import (
    ATTRIBUTES,
    C_OUT,
    W_SHAPE,
    X_SHAPE,
    all_layers_compared,
    check,
    deconv,
    integers,
    is_valid,
    model,
    node,
    operators,
    proof,
    run,
    value,
)

GEOMETRIES = {
    1: ((2, 4, 7), (4, 3, 5), {"strides": [2], "pads": [1, 2]}),
    2: ((2, 4, 5, 4), (4, 3, 4, 5), {"strides": [2, 3], "pads": [1, 0, 2, 1]}),
    3: ((1, 4, 4, 5, 4), (4, 3, 3, 2, 4), {"strides": [2, 1, 3], "pads": [1, 0, 0, 0, 1, 1]}),
}


def fitted(ndim, opset, *, known=True, sizes=None, **options):
    """Converts a layer into a fitted form, and compares with the steps of the form in NumPy."""
    x_shape, w_shape, attributes = GEOMETRIES[ndim]
    x_shape = (*x_shape[:2], *sizes) if sizes else x_shape
    rng = np.random.default_rng(1)
    stored = {"w": rng.standard_normal(w_shape).astype(np.float32), "b": integers((C_OUT,), 2)}
    layer = node("ConvTranspose", "x w b", "y", name="up", group=2, **attributes)
    proto = model(
        [layer],
        [value("x", list(x_shape) if known else len(x_shape))],
        [value("y", len(x_shape))],
        stored,
        opset=opset,
    )
    x = rng.standard_normal(x_shape).astype(np.float32)
    conversion = deconvfix.convert(proto, strict=True, example_inputs={"x": x}, **options)
    assert is_valid(conversion.model)
    (decision,) = conversion.plan.decisions
    target = form(decision.form)
    compiled = target.compile(decision.spec, decision.settings)
    weight = target.fit(decision.spec, decision.settings, stored["w"].astype(np.float64))
    assert all_layers_compared(conversion)
    if decision.form != "equalized":
        weight = rearrange(compiled.weight, weight, 2)
    bias = rearrange(compiled.bias, stored["b"])
    want = steps.run(compiled.steps, x.astype(np.float64), weight, bias)
    for optimize in (True, False):
        got = run(conversion.model, {"x": x}, optimize=optimize)[0]
        # rounding of up to 20 terms of size 10 in float32
        np.testing.assert_allclose(got, want, rtol=0, atol=20 * 10 * np.finfo(np.float32).eps)
    return conversion


@pytest.mark.parametrize("padding_mode", ["reflect", "replicate", "zeros"])
@pytest.mark.parametrize(
    ("interpolation", "opset"),
    [("nearest", 7), ("nearest", 9), ("nearest", 10), ("nearest", 11), ("linear", 11), ("linear", 22)],
)  # fmt: skip
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_resize(ndim, interpolation, opset, padding_mode):
    fitted(
        ndim,
        opset,
        known=opset != 11,
        to="resize",
        init="fit",
        interpolation=interpolation,
        padding_mode=padding_mode,
    )


@pytest.mark.parametrize("opset", [7, 11, 22])
def test_reflections_wider_than_the_map(opset):
    """ONNX Runtime's Pad stops with an error there; where the size is known, Gather does it."""
    conversion = fitted(1, opset, sizes=(1,), to="resize", init="fit", padding_mode="reflect")
    assert "Gather" in operators(conversion.model)


@pytest.mark.parametrize("grow", [0, 1, 2])
@pytest.mark.parametrize("opset", [1, 6, 7, 11, 22])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_equalized(ndim, opset, grow):
    """The node of a kernel that grows has another kernel_shape, and other pads."""
    conversion = fitted(ndim, opset, to="equalized", init="fit", grow=grow)
    assert operators(conversion.model) == ["ConvTranspose"]


# auto_pad, output_shape and output_padding would mean other sizes for a kernel that has grown.
PADDED = {
    "kernel shape": {"kernel_shape": [4, 5], "pads": [1, 0, 2, 1]},
    "no pads": {},
    "dilations": {"dilations": [1, 2], "pads": [1, 2, 0, 3]},
    "valid": {"auto_pad": "VALID"},
    "same, upper": {"auto_pad": "SAME_UPPER"},
    "same, lower": {"auto_pad": "SAME_LOWER", "kernel_shape": [4, 5]},
    "output padding": {"output_padding": [1, 2], "pads": [2, 1, 1, 3]},
    "output shape": {"output_shape": [11, 13]},
    "output shape, upper": {"output_shape": [9, 11], "auto_pad": "SAME_UPPER"},
    "output shape beyond": {"output_shape": [13, 16]},
    "output shape beyond, with pads": {"output_shape": [13, 15], "pads": [1, 1, 1, 1]},
}


@pytest.mark.parametrize("grow", [0, 1])
@pytest.mark.parametrize("attributes", PADDED.values(), ids=PADDED)
def test_equalized_with_every_way_to_pad(monkeypatch, attributes, grow):
    x_shape, w_shape, _ = GEOMETRIES[2]
    monkeypatch.setitem(GEOMETRIES, 2, (x_shape, w_shape, {"strides": [2, 3], **attributes}))
    fitted(2, 11, to="equalized", init="fit", grow=grow)


def old_geometry(proto):
    """What the original node says, with the grown kernel."""
    del proto.graph.node[0].attribute[:]
    proto.graph.node[0].attribute.extend(deconv().attribute)


def old_pads(proto):
    pads = next(each for each in proto.graph.node[0].attribute if each.name == "pads")
    pads.ints[:] = ATTRIBUTES["pads"]


def shifted_pads(proto):
    """The same size, one pixel further."""
    pads = next(each for each in proto.graph.node[0].attribute if each.name == "pads")
    pads.ints[0] -= 1
    pads.ints[2] += 1


@pytest.mark.parametrize("tamper", [old_geometry, old_pads, shifted_pads])
@pytest.mark.parametrize("sizes", [X_SHAPE, ["N", 4, "H", "W"]], ids=["fixed", "open"])
def test_the_proof_sees_the_geometry_of_a_grown_node(tamper, sizes):
    """Also where ONNX Runtime does not even run the node."""
    proto = model([deconv()], [value("x", sizes)], [Y], W)
    conversion = deconvfix.convert(proto, to="equalized", init="fit", grow=1, example_inputs=FEED)
    assert proof(proto, conversion.model, [FEED], conversion.plan).ok
    tamper(conversion.model)
    report = proof(proto, conversion.model, [FEED], conversion.plan)
    assert not report.ok
    assert report.first_departure == "up"


def test_a_model_that_never_ran_is_not_blamed_on_the_correction():
    """ONNX Runtime refuses an output_padding of a stride: said in a note, as for any other form."""
    proto = plain(output_padding=[5, 0])
    with contextlib.suppress(Exception):  # of ONNX Runtime, which has a class for each of its codes
        run(proto, FEED)
        pytest.skip("this version of ONNX Runtime runs it, and leaves outputs unwritten")
    conversion = deconvfix.convert(proto, to="equalized", init="fit", grow=1)
    assert conversion.report.parity is None
    assert any("Nothing could be compared" in each for each in conversion.report.notes)


@pytest.mark.parametrize("known", [True, False], ids=["sizes known", "sizes open"])
@pytest.mark.parametrize("opset", [7, 10, 11, 22])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_notch(ndim, opset, known):
    conversion = fitted(ndim, opset, known=known, to="notch", init="fit", reach=2)
    assert operators(conversion.model).count("AveragePool") == 2
    assert "ConvTranspose" not in operators(conversion.model)


@pytest.mark.parametrize(("interpolation", "opset"), [("nearest", 6), ("linear", 10)])
def test_opsets_without_the_upsampling_are_refused(interpolation, opset):
    reason = refusal(plain(opset=opset), to="resize", init="fit", interpolation=interpolation)
    assert f"the file has opset {opset}" in reason


def test_opsets_without_local_means_are_refused():
    """ONNX Runtime would not run the file; a layer without a grid needs no means."""
    assert "the file has opset 6" in refusal(plain(opset=6, strides=[2, 2]), to="notch", init="fit")
    even = {"w": np.ones(W_SHAPE, np.float32), "b": W["b"]}
    attributes = {"kernel_shape": [3, 2], "strides": [3, 2], "pads": None, "output_padding": None}
    proto = model([deconv(**attributes)], [X], [Y], even, opset=6)
    check(proto, FEED, to="notch")
