"""ConvTranspose in the bodies of If, Loop and Scan, and in functions."""

import time

import numpy as np
import onnx
import pytest
from onnx import helper

import deconvfix
from deconvfix.errors import ModelError
from tests.support.onnx_layers import (
    BOOL,
    FEED,
    INT,
    INT64,
    INTS,
    W,
    X,
    Y,
    Z,
    bomb,
    branch,
    call,
    choice,
    doubled,
    function,
    program,
    refusal,
)
from tests.support.onnx_models import (
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
    tensor,
    value,
    weights,
)

# --- bodies -------------------------------------------------------------------------------------


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
    "bias is not the same, or missing": program(
        [call(), call("x w", "z")], [function([deconv()])], **TWICE
    ),
    "function of opset 13": program([call()], [function([deconv()], opset=13)]),
    "function of opset 8": program([call()], [function([deconv()], opset=8)], opset=8),
}


@pytest.mark.parametrize(("found", "proto"), REFUSED_PROGRAMS.items(), ids=REFUSED_PROGRAMS)
def test_functions_whose_calls_differ_are_refused(found, proto):
    assert found in refusal(proto)


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
