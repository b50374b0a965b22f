"""ONNX models for tests, built by hand, and the one check that all of them must pass.

Weights and inputs are small integers, so that float32 results are exact and compared with equality.
"""

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import deconvfix
from deconvfix.frontends.onnx.proto import FRONTEND, from_proto

FLOAT = TensorProto.FLOAT
# A layer whose sizes tell all axes apart: C_in != C_out, unequal kernel, strides and pads, two groups.
X_SHAPE = (2, 4, 5, 3)
W_SHAPE = (4, 3, 3, 2)
GROUPS = 2
C_OUT = 6
ATTRIBUTES = {
    "kernel_shape": [3, 2],
    "strides": [2, 3],
    "pads": [1, 0, 0, 1],
    "output_padding": [1, 0],
    "group": GROUPS,
}


def integers(shape, seed=0, dtype=np.float32, low=-3, high=4):
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def tensor(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def constant(name, array, **kwargs):
    return helper.make_node("Constant", [], [name], value=tensor(name, array), **kwargs)


def value(name, shape, dtype=FLOAT):
    """An input or output; a number instead of a shape is a rank, None an unknown one."""
    shape = [None] * shape if isinstance(shape, int) else shape
    return helper.make_tensor_value_info(name, dtype, shape)


def node(op_type, inputs, outputs, **attributes):
    """A node; inputs and outputs as words."""
    return helper.make_node(op_type, inputs.split(" "), outputs.split(" "), **attributes)


def deconv(inputs="x w b", output="y", name="up", **attributes):
    """The layer with `ATTRIBUTES`; None leaves an attribute out."""
    chosen = {k: v for k, v in (ATTRIBUTES | attributes).items() if v is not None}
    return node("ConvTranspose", inputs, output, name=name, **chosen)


def graph(nodes, inputs, outputs, stored=None, name="g", **fields):
    """A graph; `stored` holds the initializers by name."""
    initializers = [tensor(key, array) for key, array in (stored or {}).items()]
    return helper.make_graph(nodes, name, inputs, outputs, initializers, **fields)


def model(nodes, inputs, outputs, stored=None, *, opset=17, ir_version=8, domains=(), **fields):
    """A model; `opset` is that of the default domain."""
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(each, 1) for each in domains)]
    return helper.make_model(
        graph(nodes, inputs, outputs, stored),
        opset_imports=imports,
        ir_version=ir_version,
        **fields,
    )


def weights(seed=0):
    return {"w": integers(W_SHAPE, seed), "b": integers((C_OUT,), seed + 1)}


def nodes_of(proto) -> Iterator[onnx.NodeProto]:
    """All nodes of a model or graph, in bodies and functions too."""
    if isinstance(proto, onnx.ModelProto):
        yield from nodes_of(proto.graph)
        for function in proto.functions:
            yield from nodes_of(function)
        return
    for each in proto.node:
        yield each
        for attribute in each.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from nodes_of(body)


def operators(proto):
    return [each.op_type for each in nodes_of(proto)]


def run(proto, feed, *, optimize=True):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def is_valid(proto):
    try:
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def check(proto, feed, **options):
    """Converts every layer, and holds the result against the original in ONNX Runtime, bit for bit.

    Returns:
        The conversion.
    """
    before = proto.SerializeToString(deterministic=True)
    conversion = deconvfix.convert(proto, example_inputs=feed, strict=True, **options)
    converted = conversion.model
    assert proto.SerializeToString(deterministic=True) == before, "the input was changed"
    assert "ConvTranspose" not in operators(converted)
    assert is_valid(converted) or not is_valid(proto)
    assert conversion.report.parity.ok
    for optimize in (True, False):
        want = run(proto, feed, optimize=optimize)
        for mine, theirs in zip(run(converted, feed, optimize=optimize), want, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    return conversion


def all_layers_compared(conversion):
    """Whether the proof held every layer on its own: none could not be cut out."""
    return not any("not compared on its own" in each for each in conversion.report.parity.notes)


def proof(before, after, inputs, plan=None):
    """The report of a comparison of two protos."""
    return FRONTEND.verify(from_proto(before), from_proto(after), inputs, plan)
