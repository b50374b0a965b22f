"""ConvTranspose with any weight: stored, shared, computed, sparse, of any dtype."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import deconvfix
from deconvfix.errors import RefusedError
from tests.support.forms import options_of
from tests.support.onnx_layers import (
    FEED,
    INTS,
    W,
    X,
    Y,
    Z,
    branch,
    choice,
    doubled,
    plain,
    refusal,
    sparse,
)
from tests.support.onnx_models import (
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
    proof,
    run,
    tensor,
    value,
)

TRANSPOSED = np.ascontiguousarray(W["w"].swapaxes(0, 1))

STORED = {
    "tied, one geometry": ([deconv(), deconv("x w", "z", "up2")], W, True),
    "tied, two geometries": ([deconv(), deconv("x w", "z", "up2", strides=[3, 4])], W, True),
    "read by another node": ([deconv(), node("Neg", "w", "z")], W, True),
    "Identity": ([node("Identity", "w", "v"), node("Identity", "b", "c"), deconv("x v c")], W, False),
    "Transpose and Reshape": (
        [
            node("Transpose", "t", "w", perm=[1, 0, 2, 3]),
            node("Reshape", "c s", "b"),
            deconv(),
        ],
        {"t": TRANSPOSED, "c": W["b"].reshape(2, 3), "s": np.array([C_OUT])},
        False,
    ),
    "Cast": (
        [node("Cast", "h", "w", to=1), node("Cast", "i", "b", to=1), deconv()],
        {"h": W["w"].astype(np.float16), "i": W["b"].astype(np.int32)},
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "stored", "two"), STORED.values(), ids=STORED)
def test_weights_from_constants(nodes, stored, two):
    proto = model(nodes, [X], [Y, Z] if two else [Y], stored)
    assert all_layers_compared(check(proto, FEED))


def test_tied_weights_stay_tied():
    proto = model([deconv(), deconv("x w", "z", "up2")], [X], [Y, Z], W)
    converted = check(proto, FEED).model
    assert len([each for each in converted.graph.initializer if len(each.dims) == 4]) == 1


@pytest.mark.parametrize("to", ["subpixel", "equalized", "resize"])
def test_tied_weights_that_are_inputs_too(to):
    """Before IR version 4 each initializer is an input, which no caller gives: it may get another name."""
    nodes = [deconv(), deconv(output="z", name="again")]
    inputs = [value("x", X_SHAPE), value("w", W_SHAPE), value("b", [C_OUT])]
    proto = model(nodes, inputs, [Y, Z], W, ir_version=3, opset=11)
    conversion = deconvfix.convert(proto, **options_of(to), example_inputs=FEED)
    assert conversion.report.parity.ok
    conversion.model.graph.input[0].name = "other"
    for each in conversion.model.graph.node:
        each.input[:] = ["other" if name == "x" else name for name in each.input]
    assert not proof(proto, conversion.model, [FEED], conversion.plan).ok


def test_a_weight_of_its_own_keeps_its_name_and_place():
    proto = plain()
    proto.graph.initializer.insert(0, tensor("before", np.ones(3, np.float32)))
    proto.graph.initializer.append(tensor("after", np.ones(3, np.float32)))
    converted = check(proto, FEED).model
    assert [each.name for each in converted.graph.initializer] == ["before", "w", "b", "after"]


@pytest.mark.parametrize("which", ["w", "b"])
def test_weights_computed_from_an_input(which):
    nodes = [node("Mul", f"gain stored_{which}", which), deconv()]
    stored = {(f"stored_{k}" if k == which else k): v for k, v in W.items()}
    proto = model(nodes, [X, value("gain", [])], [Y], stored)
    check(proto, FEED | {"gain": np.array(2, np.float32)})


@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_initializers_that_callers_may_override(ir_version):
    """Since IR version 4 an initializer that is an input too is a default, and may not be frozen."""
    opset = 8 if ir_version == 3 else 17
    inputs = [X, value("w", W_SHAPE), value("b", [C_OUT])]
    proto = model([deconv()], inputs, [Y], W, opset=opset, ir_version=ir_version)
    converted = check(proto, FEED).model
    if ir_version > 3:
        feed = FEED | {"w": integers(W_SHAPE, 31), "b": integers((C_OUT,), 32)}
        np.testing.assert_array_equal(run(converted, feed)[0], run(proto, feed)[0])


@pytest.mark.parametrize(
    ("dtype", "runs"),
    [(TensorProto.FLOAT16, True), (TensorProto.BFLOAT16, False), (TensorProto.DOUBLE, False)],
    ids=["float16", "bfloat16", "float64"],
)
def test_dtypes(dtype, runs):
    """What ONNX Runtime does not run is held against the layer, with the same nodes in float32."""
    numpy_dtype = helper.tensor_dtype_to_np_dtype(dtype)
    if dtype == TensorProto.BFLOAT16 and numpy_dtype == np.float32:
        pytest.skip("this version of onnx has no bfloat16 for NumPy")
    stored = {key: array.astype(numpy_dtype) for key, array in W.items()}
    proto = model(
        [deconv()],
        [value("x", X_SHAPE, dtype)],
        [value("y", 4, dtype)],
        stored,
        opset=22,
        ir_version=10,
    )
    conversion = deconvfix.convert(proto)
    assert is_valid(conversion.model)
    assert conversion.report.parity.ok
    assert len(conversion.report.parity.comparisons) >= 3
    new = {
        each.name: onnx.numpy_helper.to_array(each) for each in conversion.model.graph.initializer
    }
    assert new["w"].dtype == numpy_dtype
    assert sorted(new["w"].reshape(-1)[new["w"].reshape(-1) != 0]) == sorted(
        stored["w"].reshape(-1)[stored["w"].reshape(-1) != 0]
    )
    if runs:
        check(proto, {"x": FEED["x"].astype(numpy_dtype)})


def test_a_sparse_weight():
    proto = model([deconv()], [X], [Y], {"b": W["b"]})
    proto.graph.sparse_initializer.append(sparse("w", W["w"]))
    assert not check(proto, FEED).model.graph.sparse_initializer


def test_sparse_initializers_elsewhere_stay():
    proto = model([deconv("x w b", "h"), node("Mul", "h s", "y")], [X], [Y], W)
    proto.graph.sparse_initializer.append(sparse("s", np.array([2], np.float32)))
    converted = check(proto, FEED).model
    assert list(converted.graph.sparse_initializer) == list(proto.graph.sparse_initializer)


def test_a_sparse_initializer_in_a_branch():
    then = branch([node("Mul", "x s", "h"), deconv("h w b", "r")])
    then.sparse_initializer.append(sparse("s", np.array([2], np.float32)))
    check(choice(then, doubled("x w b"), W), FEED | {"c": np.array(True)})


@pytest.mark.parametrize("strides", [[2, 3], [2, 2]], ids=str)
def test_an_empty_batch(strides):
    """Where the sizes are in the file, or DepthToSpace does the shuffle."""
    sizes = ["H", "W"] if strides == [2, 2] else list(X_SHAPE[2:])
    proto = model([deconv(strides=strides)], [value("x", ["N", 4, *sizes])], [Y], W)
    converted = check(proto, FEED).model
    feed = {"x": np.zeros((0, *X_SHAPE[1:]), np.float32)}
    assert run(converted, feed)[0].shape == run(proto, feed)[0].shape


def test_an_input_of_unknown_rank():
    check(model([deconv()], [value("x", None)], [Y], W), FEED)


def test_sizes_of_a_weight_that_kernel_shape_gives():
    proto = model([deconv("x w")], [X, value("w", [4, 3, "c", "d"])], [Y])
    check(proto, FEED | {"w": W["w"]})


UNKNOWN = {
    "rank of the weight": ([X, value("w", None)], {"kernel_shape": None}, "kernel size"),
    "kernel": ([X, value("w", [4, 3, "c", "d"])], {"kernel_shape": None}, "kernel size"),
    "channels": ([X, value("w", ["a", "b", "c", "d"])], {}, "shape of the weight"),
    "everything": ([value("x", None), value("w", None)], {"kernel_shape": None}, "kernel size"),
    "two ranks": ([X, value("w", [4, 3, 2])], {}, "two must agree"),
}


@pytest.mark.parametrize(("inputs", "attributes", "needed"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_unknown_is_a_refusal(inputs, attributes, needed):
    proto = model([deconv("x w", **attributes)], inputs, [Y])
    assert needed in refusal(proto)
    with pytest.raises(RefusedError):
        deconvfix.convert(proto, strict=True)


def without_operands(*inputs):
    return model([helper.make_node("ConvTranspose", inputs, ["y"], name="up")], [X], [Y], W)


MALFORMED = {
    "no weight": (lambda: without_operands("x"), "no input, no weight or no output"),
    "an empty weight": (lambda: without_operands("x", ""), "no input, no weight or no output"),
    "no input": (lambda: without_operands("", "w"), "no input, no weight or no output"),
    "no operands": (lambda: without_operands(), "no input, no weight or no output"),
    "group 0": (lambda: plain(group=0), "is 0; at least 1 is needed"),
    "group 3": (lambda: plain(group=3), "groups must divide"),
    "stride 0": (lambda: plain(strides=[0, 1]), "`stride` is (0, 1)"),
    "negative pads": (lambda: plain(pads=[-1, 0, 0, 0]), "must not be negative"),
    "one stride": (lambda: plain(strides=[2]), "strides is [2]"),
    "one output size": (lambda: plain(output_shape=[9], pads=None), "output_shape is [9]"),
    "kernel_shape and weight": (lambda: plain(kernel_shape=[2, 3]), "kernel_shape is [2, 3]"),
    "integers": (
        lambda: model([deconv("x w")], [X], [Y], {"w": W["w"].astype(np.int32)}),
        "its weight is int32",
    ),
}


@pytest.mark.parametrize(("build", "found"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_layers_are_refused(build, found):
    assert found in refusal(build())


def test_empty_lists_of_attributes_are_the_defaults():
    """ONNX Runtime rejects such a file, and takes the converted one."""
    layer = deconv(strides=None, pads=None, output_padding=None)
    for name in ("strides", "pads", "output_padding", "dilations"):
        layer.attribute.append(onnx.AttributeProto(name=name, type=INTS))
    converted = deconvfix.convert(model([layer], [X], [Y], W)).model
    same = plain(strides=None, pads=None, output_padding=None)
    np.testing.assert_array_equal(run(converted, FEED)[0], run(same, FEED)[0])
