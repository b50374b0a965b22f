"""ONNX models with one layer, or with branches."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import deconvfix
from tests.support.onnx_models import (
    X_SHAPE,
    deconv,
    graph,
    integers,
    model,
    node,
    tensor,
    value,
    weights,
)

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


def bomb():
    levels = [function([deconv()], name="F0")]
    for i in range(30):
        twice = [call(output="h", name=f"F{i}"), call(output="g", name=f"F{i}")]
        levels.append(function([*twice, node("Add", "h g", "y")], name=f"F{i + 1}"))
    return program([call(name="F30")], levels)


def sparse(name, array):
    flat = array.reshape(-1)
    (index,) = np.nonzero(flat)
    return helper.make_sparse_tensor(
        tensor(name, flat[index]), tensor("", index.astype(np.int64)), array.shape
    )


def layer_of(spec, weight, bias, sizes):
    """A file of one layer; sizes are numbers, or names for open ones."""
    stored = {"w": weight.astype(np.float32)}
    if bias is not None:
        stored["b"] = bias.astype(np.float32)
    made = helper.make_node(
        "ConvTranspose", ["x", *stored], ["y"], name="up",
        kernel_shape=spec.kernel_size, strides=spec.stride, dilations=spec.dilation, group=spec.groups,
        output_padding=spec.output_padding,
        pads=[b for b, _ in spec.padding] + [e for _, e in spec.padding],
    )  # fmt: skip
    graph = helper.make_graph(
        [made],
        "layer",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, spec.in_channels, *sizes])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * (spec.ndim + 2))],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
