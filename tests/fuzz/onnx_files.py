"""ONNX files with their structure damaged: each is a model, or a sentence and exit code 1."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from tests.support.onnx_files import net

SIZES = (-(2**63), -1, 0, 1, 2, 3, 2**31 - 1, 2**31, 2**62, 2**63 - 1)
DTYPES = (*range(0, 30), 99, 2**31 - 1)
NAMES = ("", "x", "r", "a", "y", "up1.weight", "nobody", "\x1b[31m", "a" * 5000)
TEXTS = (b"", b"SAME_UPPER", b"VALID", b"SAME", b"\xff\xfe", b"\x1b[2J")
KINDS = tuple(range(0, 16))


def seeds():
    """Small models that between them hold everything that is read."""
    yield net()
    yield net(shape=(1, 3, 6, 5))
    body = net()
    inner = helper.make_graph(
        list(body.graph.node), "inner", [], list(body.graph.output), list(body.graph.initializer)
    )
    branch = helper.make_node("If", ["choice"], ["z"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [branch],
        "outer",
        [
            helper.make_tensor_value_info("choice", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 5]),
        ],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    yield helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    quantised = net()
    weight = quantised.graph.initializer[0]
    values = onnx.numpy_helper.to_array(weight)
    stored = onnx.numpy_helper.from_array((values * 30).astype("i1"), "q")
    scale = onnx.numpy_helper.from_array(values.max(axis=(0, 2, 3)) / 30, "s")
    quantised.graph.initializer.extend([stored, scale])
    del quantised.graph.initializer[0]
    quantised.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["q", "s"], ["up1.weight"], axis=1)
    )
    yield quantised


def graphs(graph):
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def mutated(rng):
    """A damaged model, as bytes.

    Args:
        rng: A random.Random, or what has its verbs.
    """
    model = onnx.ModelProto()
    model.CopyFrom(rng.choice([*seeds()]))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        rng.choice(MUTATIONS)(model, rng.choice([*graphs(model.graph)]), rng)
    content = model.SerializeToString()
    if rng.random() < 0.1:
        position = rng.randrange(len(content))
        content = content[:position] + bytes([rng.randrange(256)]) + content[position + 1 :]
    if rng.random() < 0.05:
        content = content[: rng.randrange(len(content))]
    return content


def _node(graph, rng):
    return rng.choice([*graph.node]) if graph.node else onnx.NodeProto()


def _tensor(graph, rng):
    return rng.choice([*graph.initializer]) if graph.initializer else onnx.TensorProto()


def remove_node(model, graph, rng):
    if graph.node:
        del graph.node[rng.randrange(len(graph.node))]


def repeat_node(model, graph, rng):
    graph.node.append(_node(graph, rng))


def reverse_nodes(model, graph, rng):
    nodes = [*graph.node][::-1]
    del graph.node[:]
    graph.node.extend(nodes)


def rename_input(model, graph, rng):
    node = _node(graph, rng)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(NAMES)


def rename_output(model, graph, rng):
    node = _node(graph, rng)
    if node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice(NAMES)


def add_or_remove_input(model, graph, rng):
    node = _node(graph, rng)
    if rng.random() < 0.5:
        node.input.append(rng.choice(NAMES))
    else:
        del node.input[:1]


def remove_outputs(model, graph, rng):
    del _node(graph, rng).output[:]


def change_operator(model, graph, rng):
    node = _node(graph, rng)
    node.op_type = rng.choice(["ConvTranspose", "Conv", "Loop", "", "Magic", "DequantizeLinear"])
    if rng.random() < 0.3:
        node.domain = rng.choice(["", "ai.onnx", "com.microsoft", "nobody"])


def change_attribute(model, graph, rng):
    node = _node(graph, rng)
    name = rng.choice(
        ["strides", "pads", "dilations", "group", "output_padding", "output_shape",
         "kernel_shape", "auto_pad", "axis"]
    )  # fmt: skip
    count = rng.choice([0, 1, 2, 3, 4, 5, 1000])
    values = (
        [rng.choice(SIZES) for _ in range(count)],
        rng.choice(SIZES),
        rng.choice(TEXTS),
        1.5,
        [1.5] * count,
        [b"a"] * count,
    )
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    value = rng.choice(values)
    if value == []:
        node.attribute.append(onnx.AttributeProto(name=name, type=onnx.AttributeProto.INTS))
    else:
        node.attribute.append(helper.make_attribute(name, value))


def change_attribute_type(model, graph, rng):
    node = _node(graph, rng)
    if node.attribute:
        attribute = rng.choice([*node.attribute])
        if rng.random() < 0.5:
            attribute.ClearField("type")
        elif (kind := rng.choice(KINDS)) in onnx.AttributeProto.AttributeType.values():
            attribute.type = kind
        if rng.random() < 0.3:
            attribute.ref_attr_name = "nobody"


def change_dims(model, graph, rng):
    tensor = _tensor(graph, rng)
    if tensor.dims and rng.random() < 0.7:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(SIZES)
    elif rng.random() < 0.5:
        del tensor.dims[:]
    else:
        tensor.dims.append(rng.choice(SIZES))


def change_dtype(model, graph, rng):
    _tensor(graph, rng).data_type = rng.choice(DTYPES)


def cut_data(model, graph, rng):
    tensor = _tensor(graph, rng)
    tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    if rng.random() < 0.3:
        tensor.float_data.append(1.0)


def store_outside(model, graph, rng):
    tensor = _tensor(graph, rng)
    tensor.data_location = TensorProto.EXTERNAL
    location = rng.choice(
        [
            "w",
            "../w",
            "/etc/passwd",
            "a\0b",
            "a" * 300,
            "w/",
            ".",
            "",
            "in.onnx",
            "\x1b[2J",
            "c:\\w",
        ]
    )
    for key, value in (
        ("location", location),
        ("offset", rng.choice(["0", "-1", "1_0", "9" * 30, "x", ""])),
        ("length", rng.choice(["4", "1_0", str(2**62), "", "-4"])),
    ):
        if rng.random() < 0.8:
            tensor.external_data.add(key=key, value=value)


def rename_tensor(model, graph, rng):
    _tensor(graph, rng).name = rng.choice(NAMES)


def change_interface(model, graph, rng):
    values = graph.input if rng.random() < 0.5 else graph.output
    if not values:
        return
    value = rng.choice([*values])
    choice = rng.random()
    if choice < 0.25:
        value.name = rng.choice(NAMES)
    elif choice < 0.5:
        value.ClearField("type")
    elif choice < 0.75:
        value.type.tensor_type.elem_type = rng.choice(DTYPES)
    elif value.type.tensor_type.shape.dim:
        rng.choice([*value.type.tensor_type.shape.dim]).dim_value = rng.choice(SIZES)


def change_header(model, graph, rng):
    choice = rng.random()
    if choice < 0.3:
        model.ir_version = rng.choice([0, 1, 3, 99, -1, 2**62])
    elif choice < 0.6 and model.opset_import:
        model.opset_import[0].version = rng.choice([0, 1, 6, 7, 11, 99, -1, 2**62])
    elif choice < 0.8:
        del model.opset_import[:]
    else:
        model.opset_import.append(
            model.opset_import[0] if model.opset_import else onnx.OperatorSetIdProto()
        )


def make_circle(model, graph, rng):
    nodes = [node for node in graph.node if node.input and node.output]
    if len(nodes) > 1:
        nodes[0].input[0] = nodes[-1].output[0]


def add_function(model, graph, rng):
    node = _node(graph, rng)
    function = helper.make_function(
        rng.choice(["", "nobody"]), node.op_type or "F", ["a"], ["b"], [node], [], []
    )
    model.functions.append(function)


def value_infos(model, graph, rng):
    name = rng.choice(NAMES)
    shape = [rng.choice([*SIZES, "n"]) for _ in range(rng.choice([0, 2, 4]))]
    shape = [n if isinstance(n, str) or abs(n) < 2**63 else 1 for n in shape]
    graph.value_info.append(helper.make_tensor_value_info(name, rng.choice([1, 7, 10]), shape))


MUTATIONS = (
    remove_node, repeat_node, reverse_nodes, rename_input, rename_output, add_or_remove_input,
    remove_outputs, change_operator, change_attribute, change_attribute, change_attribute,
    change_attribute_type, change_dims, change_dims, change_dtype, cut_data, store_outside,
    rename_tensor, change_interface, change_header, make_circle, add_function, value_infos,
)  # fmt: skip
