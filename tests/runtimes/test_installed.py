"""The real runtimes: each that is installed gets a plain layer right, and is seen to be wrong."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import deconvfix
from deconvfix.parity.runtime import isolated
from deconvfix.runtimes.proof import prove_in
from deconvfix.runtimes.registry import RUNTIMES, runtime_at


@pytest.fixture(params=sorted(RUNTIMES))
def runtime(request):
    missing = runtime_at(RUNTIMES[request.param]).missing()
    if missing is not None:
        pytest.skip(missing)
    return request.param


# The default is DepthToSpace of mode CRD, which IREE gets wrong.
TARGETS = {"iree": "iree"}


def layer(seed=0):
    """k4 s2 p1 of fixed sizes, which every runtime is right about."""
    rng = np.random.default_rng(seed)
    node = helper.make_node(
        "ConvTranspose", ["x", "w", "b"], ["y"], kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 7, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 14, 10])],
        [
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
            for name, shape in (("w", (4, 3, 4, 4)), ("b", (3,)))
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_plain_layer_is_right_and_another_one_is_not(runtime, tmp_path):
    proto = layer()
    paths = [tmp_path / name for name in ("before.onnx", "after.onnx", "other.onnx")]
    for path, model in zip(
        paths,
        (proto, deconvfix.convert(proto, target=TARGETS.get(runtime)).model, layer(seed=1)),
        strict=True,
    ):
        onnx.save(model, path)
    with isolated(60):
        report = prove_in(runtime, paths[0], paths[1], seconds=60)
        control = prove_in(runtime, paths[0], paths[2], seconds=60)
    assert report.ok, report
    assert report.before.status == "right", report
    assert any(character.isdigit() for character in report.runtime)
    assert (control.before.status, control.after.status) == ("right", "wrong")
