"""ConvTranspose anywhere in an ONNX model: in bodies and functions, with any weight, nothing else lost."""

import time

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_models import (
    ATTRIBUTES,
    C_OUT,
    W_SHAPE,
    X_SHAPE,
    all_layers_compared,
    check,
    constant,
    deconv,
    graph,
    integers,
    is_valid,
    model,
    node,
    operators,
    run,
    tensor,
    value,
    weights,
)

import deconvfix
from deconvfix.core import steps
from deconvfix.core.rearrange import rearrange
from deconvfix.errors import DeconvfixError, ModelError, ParityError, RefusedError
from deconvfix.forms import form
from deconvfix.frontends.onnx.proto import FRONTEND

FEED = {"x": integers(X_SHAPE, 9)}
X = value("x", ["N", 4, "H", "W"])
Y = value("y", 4)
Z = value("z", 4)
W = weights()
BOOL, INT64 = TensorProto.BOOL, TensorProto.INT64
INTS, INT = onnx.AttributeProto.INTS, onnx.AttributeProto.INT


def refusal(proto, **options):
    """The sentence with which the only layer is refused; the rest of the model is unchanged."""
    conversion = deconvfix.convert(proto, **options)
    assert conversion.model == proto
    (decision,) = conversion.plan.refused
    return decision.reason


def plain(*, opset=17, ir_version=8, **attributes):
    return model([deconv(**attributes)], [X], [Y], W, opset=opset, ir_version=ir_version)


# --- bodies -------------------------------------------------------------------------------------


def branch(nodes, stored=None, name="branch"):
    return graph(nodes, [], [value("r", 4)], stored, name=name)


def choice(then, other, stored=None, extra=(), inputs=(), **kwargs):
    choose = helper.make_node(
        "If", ["c"], ["y"], name="choose", then_branch=then, else_branch=other
    )
    return model([*extra, choose], [X, value("c", [], BOOL), *inputs], [Y], stored, **kwargs)


def doubled(inputs, **attributes):
    """A branch whose layer is followed by something."""
    return branch([deconv(inputs, "q", "b", **attributes), node("Add", "q q", "r")], name="other")


CHOICES = {
    "own initializers": lambda **k: choice(
        branch([deconv("x w b", "r")], W), branch([deconv("x w b", "r")], weights(5), "other"), **k
    ),
    "outer initializers, shared": lambda **k: choice(
        branch([deconv("x w b", "r")]), doubled("x w b"), W, **k
    ),
    "outer initializers, two geometries": lambda **k: choice(
        branch([deconv("x w b", "r")]), doubled("x w", strides=[3, 2]), W, **k
    ),
    "outer constants": lambda **k: choice(
        branch([deconv("x w b", "r")]),
        doubled("x w b"),
        None,
        [constant("w", W["w"]), constant("b", W["b"])],
        **k,
    ),
    "a constant, and a computed one": lambda **k: choice(
        branch([constant("w", W["w"]), deconv("x w", "r")]),
        branch([node("Neg", "v", "u"), deconv("x u", "r")], name="other"),
        {"v": W["w"]},
        **k,
    ),
    "one name for two values": lambda **k: choice(
        branch([node("Neg", "x", "h"), deconv("h w", "r", kernel_shape=None)], {"w": W["w"]}),
        branch(
            [
                node("Concat", "x x", "h", axis=1),
                deconv("h w", "q", kernel_shape=None, strides=[2, 2]),
                node("Neg", "q", "r"),
            ],
            {"w": integers((8, 3, 2, 3), 3)},
            "other",
        ),
        **k,
    ),
}


@pytest.mark.parametrize("condition", [True, False], ids=["then", "else"])
@pytest.mark.parametrize("versions", [(8, 4), (21, 10)], ids=str)
@pytest.mark.parametrize("build", CHOICES.values(), ids=CHOICES)
def test_branches_of_if(build, versions, condition):
    proto = build(opset=versions[0], ir_version=versions[1])
    conversion = check(proto, FEED | {"c": np.array(condition)})
    assert len(conversion.plan.replaced) == 2
    assert all_layers_compared(conversion)


@pytest.mark.parametrize("condition", [True, False], ids=["then", "else"])
def test_branches_with_a_weight_that_the_caller_gives(condition):
    proto = choice(
        branch([deconv("x w", "r")]),
        doubled("x v", kernel_shape=None),
        extra=[node("Neg", "w", "v")],
        inputs=[value("w", W_SHAPE)],
    )
    check(proto, FEED | {"c": np.array(condition), "w": W["w"]})


def loop(body, body_stored=None, stored=None):
    inner = graph(
        [*body, node("Identity", "going", "on"), node("Add", "carried one", "next")],
        [value("i", [], INT64), value("going", [], BOOL), value("carried", [2, 4, "H", "W"])],
        [value("on", [], BOOL), value("next", [2, 4, "H", "W"]), value("r", 4)],
        {**(body_stored or {}), "one": np.float32(1)},
    )
    return model(
        [helper.make_node("Loop", ["n", "", "x"], ["last", "y"], body=inner, name="loop")],
        [value("x", [2, 4, "H", "W"])],
        [value("last", 4), value("y", 5)],
        {"n": np.int64(3), **(stored or {})},
    )


def scan(body_stored=None, stored=None):
    inner = graph(
        [node("Add", "state each", "sum"), deconv("sum w b", "r")],
        [value("state", X_SHAPE), value("each", X_SHAPE)],
        [value("sum", X_SHAPE), value("r", 4)],
        body_stored,
    )
    return model(
        [helper.make_node("Scan", ["x", "xs"], ["last", "y"], body=inner, num_scan_inputs=1)],
        [value("x", X_SHAPE), value("xs", ["T", *X_SHAPE])],
        [value("last", 4), value("y", 5)],
        stored,
    )


LOOPS = {
    "carried x, weight in the body": loop([deconv("carried w b", "r")], W),
    "outer x and weight": loop(
        [node("Cast", "i", "f", to=1), deconv("x w b", "q"), node("Mul", "q f", "r")], stored=W
    ),
    "weight from the iteration": loop(
        [node("Cast", "i", "f", to=1), node("Mul", "w f", "v"), deconv("x v b", "r")], stored=W
    ),
    "scan, weight in the body": scan(W),
    "scan, outer weight": scan(None, W),
}


@pytest.mark.parametrize("proto", LOOPS.values(), ids=LOOPS)
def test_bodies_of_loops(proto):
    feed = FEED | ({"xs": integers((3, *X_SHAPE), 4)} if len(proto.graph.input) > 1 else {})
    check(proto, feed)


@pytest.mark.parametrize("condition", [True, False], ids=["then", "else"])
def test_nested_bodies_share_a_weight_with_the_main_graph(condition):
    inner = graph(
        [deconv("x w b", "deep"), node("Identity", "going", "on")],
        [value("i", [], INT64), value("going", [], BOOL)],
        [value("on", [], BOOL), value("deep", 4)],
    )
    then = [
        helper.make_node("Loop", ["n", ""], ["many"], body=inner),
        node("ReduceSum", "many axes", "r", keepdims=0),
    ]
    proto = choice(
        branch(then), branch([deconv("x w b", "r")], name="other"), {**W, "n": np.int64(2)}
    )
    proto.graph.initializer.append(tensor("axes", np.array([0])))
    proto.graph.node.extend([deconv("x w b", "m", "main"), node("Add", "m y", "z")])
    proto.graph.output.append(Z)
    converted = check(proto, FEED | {"c": np.array(condition)}).model
    # one weight, rearranged once
    assert [each.name for each in converted.graph.initializer if len(each.dims) == 4] == ["w_up"]


# --- functions ----------------------------------------------------------------------------------


def function(nodes, inputs="x w b", name="Up", attributes=(), defaults=(), opset=17):
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_function(
        "local", name, inputs.split(), ["y"], nodes, imports, list(attributes), list(defaults)
    )


def call(inputs="x w b", output="y", name="Up", **attributes):
    return node(name, inputs, output, domain="local", **attributes)


def program(calls, functions, stored=W, outputs=("y",), opset=17, inputs=()):
    return model(
        calls,
        [X, *inputs],
        [value(each, 4) for each in outputs],
        stored,
        opset=opset,
        domains=["local"],
        functions=functions,
    )


def referring(made, **references):
    """A node some of whose attributes are those of the function around it: name=(its name, type)."""
    for name, (reference, kind) in references.items():
        made.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=reference, type=kind))
    return made


def strided(**kwargs):
    """A function that is called with its strides."""
    layer = referring(
        deconv(strides=None, output_padding=None, group=None),
        strides=("strides", INTS),
        group=("g", INT),
    )
    return function([layer], **kwargs)


DEFAULT = helper.make_attribute("strides", [2, 3])
GROUP = helper.make_attribute("g", 2)
INNER = function([deconv("p q r", "y", kernel_shape=None)], "p q r", "Inner")
PROGRAMS = {
    "weight and bias as inputs": program([call()], [function([deconv()])]),
    "no kernel_shape": program([call()], [function([deconv(kernel_shape=None)])]),
    "constant inside": program(
        [call("x")], [function([constant("w", W["w"]), deconv("x w", kernel_shape=None)], "x")], None
    ),
    "names of the main graph inside": program(
        [node("Neg", "x", "h"), call("h v c")],
        [function([node("Neg", "x", "h"), deconv("h w b", kernel_shape=None)])],
        {"v": W["w"], "c": W["b"], "w": integers((4, 1, 1, 1), 2), "b": integers((3, 2), 2)},
    ),
    "references": program([call(strides=[2, 3], g=2)], [strided(attributes=["strides", "g"])]),
    "references with defaults": program([call()], [strided(defaults=[DEFAULT, GROUP])]),
    "a default, and the same value": program(
        [call(), call(output="z", strides=[2, 3])],
        [strided(defaults=[DEFAULT, GROUP])],
        outputs=("y", "z"),
    ),
    "references through two functions": program(
        [call(pace=[3, 2])],
        [
            strided(name="Inner", attributes=["strides"], defaults=[GROUP]),
            function(
                [node("Neg", "x", "h"), referring(call("h w b", name="Inner"), strides=("pace", INTS))],
                attributes=["pace"],
            ),
        ],
    ),
    "two weights of one shape": program(
        [call(), call("x v b", "z")],
        [function([deconv(kernel_shape=None)])],
        W | {"v": integers(W_SHAPE, 7)},
        ("y", "z"),
    ),
    "nested": program([call()], [INNER, function([call("x w b", name="Inner")])]),
    "32 calls": program(
        [call(name="F5")],
        [
            function([deconv()], name="F0"),
            *(
                function(
                    [call(output="h", name=f"F{i}"), call(output="g", name=f"F{i}"), node("Add", "h g", "y")],
                    name=f"F{i + 1}",
                )
                for i in range(5)
            ),
        ],
    ),
    "opset 9": program([call()], [function([deconv()], opset=9)], opset=9),
}  # fmt: skip


@pytest.mark.parametrize("proto", PROGRAMS.values(), ids=PROGRAMS)
def test_functions(proto):
    assert is_valid(proto)
    conversion = check(proto, FEED)
    assert all_layers_compared(conversion)
    assert [each.name for each in conversion.model.functions] == [
        each.name for each in proto.functions
    ]


@pytest.mark.parametrize("condition", [True, False], ids=["then", "else"])
def test_branches_inside_a_function(condition):
    choose = helper.make_node(
        "If",
        ["c"],
        ["y"],
        then_branch=branch([deconv("x w b", "r")]),
        else_branch=doubled("x w", strides=[3, 2]),
    )
    proto = program(
        [call("c x w b")], [function([choose], "c x w b")], inputs=[value("c", [], BOOL)]
    )
    assert all_layers_compared(check(proto, FEED | {"c": np.array(condition)}))


TWICE = {"outputs": ("y", "z")}
REFUSED_PROGRAMS = {
    "strides": program(
        [call(), call(output="z", strides=[3, 2])], [strided(defaults=[DEFAULT, GROUP])], **TWICE
    ),
    "kernel_shape is known": program(
        [call(), call("x v b", "z")],
        [function([deconv(kernel_shape=None)])],
        W | {"v": integers((4, 3, 2, 2), 7)},
        **TWICE,
    ),
    "numbers of channels": program(
        [call("x w"), call("x v", "z")],
        [function([deconv("x w")], "x w")],
        {"w": W["w"], "v": integers((4, 2, 3, 2), 7)},
        **TWICE,
    ),
    "bias is not the same, or left out": program(
        [call(), call("x w", "z")], [function([deconv()])], **TWICE
    ),
    "function of opset 13": program([call()], [function([deconv()], opset=13)]),
    "function of opset 8": program([call()], [function([deconv()], opset=8)], opset=8),
}


@pytest.mark.parametrize(("found", "proto"), REFUSED_PROGRAMS.items(), ids=REFUSED_PROGRAMS)
def test_functions_whose_calls_differ_are_refused(found, proto):
    assert found in refusal(proto)


def bomb():
    levels = [function([deconv()], name="F0")]
    for i in range(30):
        twice = [call(output="h", name=f"F{i}"), call(output="g", name=f"F{i}")]
        levels.append(function([*twice, node("Add", "h g", "y")], name=f"F{i + 1}"))
    return program([call(name="F30")], levels)


HOSTILE = {
    "expand to": bomb,
    "calls itself": lambda: program(
        [call(name="A")],
        [
            function([call(name="B")], name="A"),
            function([call(output="h", name="A"), deconv("h w b")], name="B"),
        ],
    ),
    "calls deep": lambda: program(
        [call(name="F300")],
        [
            function([deconv()], name="F0"),
            *(function([call(name=f"F{i}")], name=f"F{i + 1}") for i in range(300)),
        ],
    ),
    "reads 'nothing', which no node computes": lambda: model([deconv("nothing w")], [X], [Y], W),
}


@pytest.mark.parametrize(("found", "build"), HOSTILE.items(), ids=HOSTILE)
def test_hostile_models_are_an_error_at_once(found, build):
    """Runtimes and checkers inline functions, and hang."""
    proto, started = build(), time.monotonic()
    with pytest.raises(ModelError, match=found):
        deconvfix.convert(proto)
    with pytest.raises(ModelError, match=found):
        deconvfix.inspect(proto)
    assert time.monotonic() - started < 5


# --- weights ------------------------------------------------------------------------------------

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
    conversion = deconvfix.convert(proto, to=to, example_inputs=FEED)
    assert conversion.report.parity.ok
    conversion.model.graph.input[0].name = "other"
    for each in conversion.model.graph.node:
        each.input[:] = ["other" if name == "x" else name for name in each.input]
    assert not FRONTEND.verify(proto, conversion.model, [FEED], conversion.plan).ok


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
    stored = {key: array.astype(numpy_dtype) for key, array in W.items()}
    proto = model(
        [deconv()],
        [value("x", X_SHAPE, dtype)],
        [value("y", 4, dtype)],
        stored,
        opset=22,
        ir_version=10,
    )
    conversion = deconvfix.convert(proto, strict=True)
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


def sparse(name, array):
    flat = array.reshape(-1)
    (index,) = np.nonzero(flat)
    return helper.make_sparse_tensor(
        tensor(name, flat[index]), tensor("", index.astype(np.int64)), array.shape
    )


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
    "no weight": (lambda: without_operands("x"), "no input or no weight"),
    "an empty weight": (lambda: without_operands("x", ""), "no input or no weight"),
    "no input": (lambda: without_operands("", "w"), "no input or no weight"),
    "no operands": (lambda: without_operands(), "no input or no weight"),
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


# --- preservation -------------------------------------------------------------------------------


def rich():
    """A model with a bit of everything that a conversion must not touch."""
    odd = helper.make_node("Odd", ["x"], ["odd"], domain="custom", name="odd", level=3)
    layer = deconv("h w b", "y")
    layer.doc_string = "the layer"
    layer.metadata_props.add(key="scope", value="decoder")
    proto = model(
        [odd, node("Relu", "x", "h"), layer, node("Neg", "y", "n"), node("Add", "y n", "z")],
        [X],
        [Y, Z, value("odd", 1)],
        {"unused": np.ones(2, np.float32), **W, "last": np.ones(1, np.float32)},
        ir_version=10,
        domains=["custom", "never.used", "local"],
        functions=[function([node("Add", "x w", "y")], "x w", "Other")],
        doc_string="a model",
        producer_name="someone",
        producer_version="7",
        model_version=3,
        domain="org.example",
    )
    for what in (proto, proto.graph, proto.graph.input[0], proto.graph.output[0]):
        what.metadata_props.add(key="kept", value="yes")
    proto.graph.doc_string = "a graph"
    proto.graph.output[0].doc_string = "an output"
    proto.graph.value_info.extend(
        [value("h", ["N", 4, "H", "W"]), value("n", ["N", C_OUT, "p", "q"])]
    )
    proto.graph.sparse_initializer.append(sparse("s", np.array([0, 2], np.float32)))
    for name in ("h", "w", "y"):
        annotation = proto.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="last")
    training = proto.training_info.add()
    training.initialization.name = "start"
    return proto


def test_what_is_not_replaced_stays():
    proto = rich()
    converted = deconvfix.convert(proto, strict=True).model
    for field in (
        *("ir_version", "producer_name", "producer_version", "domain", "model_version"),
        *("doc_string", "opset_import", "metadata_props", "functions", "training_info"),
    ):
        assert getattr(converted, field) == getattr(proto, field), field
    for field in (
        *("name", "doc_string", "input", "output", "metadata_props"),
        *("sparse_initializer", "quantization_annotation"),
    ):
        assert getattr(converted.graph, field) == getattr(proto.graph, field), field
    names = [each.name for each in proto.graph.initializer]
    assert [each.name for each in converted.graph.initializer] == names
    assert [each for each in converted.graph.value_info if each.name in "hn"] == list(
        proto.graph.value_info
    )
    new = list(converted.graph.node)
    assert [each for each in new if each in proto.graph.node] == [
        each for each in proto.graph.node if each.op_type != "ConvTranspose"
    ]
    added = [each for each in new if each not in proto.graph.node]
    assert {each.doc_string for each in added} == {"the layer"}
    assert all(each.metadata_props[0].value == "decoder" for each in added)
    assert next(each for each in added if "y" in each.output)


def test_a_model_without_layers_comes_out_as_it_was():
    proto = rich()
    del proto.graph.node[2]
    proto.graph.node.insert(2, node("Identity", "h", "y"))
    assert deconvfix.convert(proto).model == proto


def test_a_second_conversion_changes_nothing():
    converted = check(plain(), FEED).model
    assert deconvfix.convert(converted).model == converted


@pytest.mark.parametrize("kind", ["proto", "ir"])
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "inplace"])
def test_the_model_itself_changes_only_if_asked(kind, inplace):
    proto = choice(branch([deconv("x w b", "r")]), doubled("x w b"), W)
    given = proto if kind == "proto" else ir.from_proto(proto)

    def dump(which):
        written = which if kind == "proto" else ir.to_proto(which)
        return written.SerializeToString(deterministic=True)

    before = dump(given)
    converted = deconvfix.convert(given, inplace=inplace, verify=False).model
    assert (converted is given) == inplace
    assert (dump(given) == before) != inplace
    assert "ConvTranspose" not in operators(
        converted if kind == "proto" else ir.to_proto(converted)
    )


def test_duplicate_and_missing_node_names_give_unique_layers():
    """ONNX allows both; a plan made from one copy applies to another."""
    layers = [deconv("x w b", f"y{i}", name) for i, name in enumerate(["up", "up", "", ""])]
    proto = model(layers, [X], [value(f"y{i}", 4) for i in range(4)], W)
    names = [each.name for each in deconvfix.inspect(proto).layers]
    assert names == ["up", "up#2", "y2", "y3"]
    plan = deconvfix.convert(proto, include="up#2").plan
    copied = onnx.load_from_string(proto.SerializeToString())
    converted = deconvfix.convert(copied, plan=plan).model
    remaining = [each.output[0] for each in converted.graph.node if each.op_type == "ConvTranspose"]
    assert remaining == ["y0", "y2", "y3"]


def test_an_output_with_readers_everywhere():
    """The value is a graph output, read twice, and read in a branch."""
    then = branch([node("Add", "m m", "r")])
    proto = choice(then, branch([node("Neg", "m", "r")], name="other"), W, [deconv("x w b", "m")])
    proto.graph.node.append(node("Add", "m y", "z"))
    proto.graph.output.extend([Z, value("m", ["N", C_OUT, "p", "q"])])
    converted = check(proto, FEED | {"c": np.array(True)}).model
    assert list(converted.graph.output) == list(proto.graph.output)


# --- fitted forms -------------------------------------------------------------------------------

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
        interpolation=interpolation,
        padding_mode=padding_mode,
    )


@pytest.mark.parametrize("opset", [7, 11, 22])
def test_reflections_wider_than_the_map(opset):
    """ONNX Runtime's Pad stops with an error there; where the size is known, Gather does it."""
    conversion = fitted(1, opset, sizes=(1,), to="resize", padding_mode="reflect")
    assert "Gather" in operators(conversion.model)


@pytest.mark.parametrize("grow", [0, 1, 2])
@pytest.mark.parametrize("opset", [1, 6, 7, 11, 22])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_equalized(ndim, opset, grow):
    """The node of a kernel that grows has another kernel_shape, and other pads."""
    conversion = fitted(ndim, opset, to="equalized", grow=grow)
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
    fitted(2, 11, to="equalized", grow=grow)


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
    conversion = deconvfix.convert(proto, to="equalized", grow=1, example_inputs=FEED)
    assert FRONTEND.verify(proto, conversion.model, [FEED], conversion.plan).ok
    tamper(conversion.model)
    report = FRONTEND.verify(proto, conversion.model, [FEED], conversion.plan)
    assert not report.ok
    assert report.first_departure == "up"


def test_a_model_that_never_ran_is_not_blamed_on_the_correction():
    """ONNX Runtime refuses an output_padding of a stride: said in a note, as for any other form."""
    proto = plain(output_padding=[5, 0])
    conversion = deconvfix.convert(proto, to="equalized", grow=1)
    assert conversion.report.parity is None
    assert any("Nothing could be compared" in each for each in conversion.report.notes)


@pytest.mark.parametrize("known", [True, False], ids=["sizes known", "sizes open"])
@pytest.mark.parametrize("opset", [7, 10, 11, 22])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_notch(ndim, opset, known):
    conversion = fitted(ndim, opset, known=known, to="notch", reach=2)
    assert operators(conversion.model).count("AveragePool") == 2
    assert "ConvTranspose" not in operators(conversion.model)


@pytest.mark.parametrize(("interpolation", "opset"), [("nearest", 6), ("linear", 10)])
def test_opsets_without_the_upsampling_are_refused(interpolation, opset):
    reason = refusal(plain(opset=opset), to="resize", interpolation=interpolation)
    assert f"the file has opset {opset}" in reason


def test_opsets_without_local_means_are_refused():
    """ONNX Runtime would not run the file; a layer without a grid needs no means."""
    assert "the file has opset 6" in refusal(plain(opset=6, strides=[2, 2]), to="notch")
    even = {"w": np.ones(W_SHAPE, np.float32), "b": W["b"]}
    attributes = {"kernel_shape": [3, 2], "strides": [3, 2], "pads": None, "output_padding": None}
    proto = model([deconv(**attributes)], [X], [Y], even, opset=6)
    check(proto, FEED, to="notch")


# --- negative controls --------------------------------------------------------------------------


def initializer(proto, name):
    return next(each for each in proto.graph.initializer if each.name == name)


def changed(proto, name, change):
    old = initializer(proto, name)
    array = onnx.numpy_helper.to_array(old).copy()
    change(array)
    old.CopyFrom(tensor(name, array))


def swap_phases(proto):
    def swap(array):
        array[[0, 1]] = array[[1, 0]]

    changed(proto, "w", swap)


def change_bias(proto):
    def change(array):
        array[1] += 1

    changed(proto, "b", change)


def shift_crop(proto):
    """One pixel less at the begin of the first axis, one more at its end."""
    crop = next(each for each in proto.graph.node if each.op_type == "Slice")
    for bound in (each for each in proto.graph.node if each.output[0] in crop.input[1:3]):
        array = onnx.numpy_helper.to_array(bound.attribute[0].t).copy()
        assert array[0] in (1, -1)
        array[0] -= 1
        bound.attribute[0].t.CopyFrom(tensor("", array))


def swap_mode(proto):
    shuffle = next(each for each in proto.graph.node if each.op_type == "DepthToSpace")
    next(each for each in shuffle.attribute if each.name == "mode").s = b"DCR"


def rename_output(proto):
    proto.graph.node.append(node("Identity", "y", "other"))
    proto.graph.output[0].name = "other"


@pytest.mark.parametrize("tamper", [swap_phases, change_bias, shift_crop, swap_mode, rename_output])
@pytest.mark.parametrize("whole", [True, False], ids=["with a plan", "without"])
def test_the_proof_sees(tamper, whole):
    proto = model([deconv(strides=[2, 2], pads=[1, 0, 1, 1])], [value("x", X_SHAPE)], [Y], W)
    conversion = deconvfix.convert(proto)
    plan = conversion.plan if whole else None
    assert FRONTEND.verify(proto, conversion.model, [FEED], plan).ok
    tamper(conversion.model)
    report = FRONTEND.verify(proto, conversion.model, [FEED], plan)
    assert not report.ok
    assert report.problems


def test_constant_outputs_are_no_evidence():
    proto = model([deconv("x w")], [X], [Y], {"w": np.zeros(W_SHAPE, np.float32)})
    with pytest.raises(ParityError, match="constant"):
        deconvfix.convert(proto, example_inputs=FEED)


def test_errors_have_four_parts():
    with pytest.raises(DeconvfixError) as caught:
        deconvfix.convert(bomb())
    assert all((caught.value.where, caught.value.found, caught.value.needed, caught.value.todo))


def test_the_layer_of_these_tests_tells_axes_apart():
    """C_in != C_out, H != W, unequal kernel, strides and pads, two groups."""
    assert X_SHAPE[1] != C_OUT
    assert X_SHAPE[2] != X_SHAPE[3]
    assert all(len(set(ATTRIBUTES[each])) == 2 for each in ("kernel_shape", "strides", "pads"))
