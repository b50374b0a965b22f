"""An ONNX file, and the command line on it."""

import numpy as np
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from deconvfix.cli.main import main

FLOAT = TensorProto.FLOAT


def net(*, x_type=FLOAT, shape=("n", 3, "h", "w"), extra=(), seed=0):
    """relu(x) through two transposed convolutions; `extra` nodes may make x from other inputs."""
    rng = np.random.default_rng(seed)
    initializers = [
        numpy_helper.from_array(rng.standard_normal((3, 5, 4, 3)).astype(np.float32), "up1.weight"),
        numpy_helper.from_array(rng.standard_normal(5).astype(np.float32), "up1.bias"),
        numpy_helper.from_array(rng.standard_normal((5, 2, 3, 3)).astype(np.float32), "up2.weight"),
    ]
    up1 = helper.make_node(
        "ConvTranspose", ["r", "up1.weight", "up1.bias"], ["a"], name="up1",
        strides=[2, 3], pads=[1, 0, 2, 1],
    )  # fmt: skip
    up2 = helper.make_node("ConvTranspose", ["a", "up2.weight"], ["y"], name="up2", strides=[2, 2])
    first = helper.make_node("Relu", ["image" if extra else "x"], ["r"])
    graph = helper.make_graph(
        [*extra, first, up1, up2],
        "net",
        [helper.make_tensor_value_info("x", x_type, shape)],
        [helper.make_tensor_value_info("y", FLOAT, [shape[0], 2, None, None])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def convert(path, output, *arguments):
    return run("convert", path, "-o", output, *arguments)


def assert_fails_in_words(result, *fragments):
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert all(fragment in result.stderr for fragment in fragments), result.stderr
