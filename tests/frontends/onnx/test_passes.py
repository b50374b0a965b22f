"""The onnx_ir pass among those of others: onnx_ir's own, onnxscript's optimiser, torch.onnx's programs."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import onnxscript.optimizer
import pytest
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass
from torch import nn

from deconvfix.onnx import ReplaceTransposedConvs
from tests.support.onnx_files import net


def operators(model):
    return {node.op_type for node in model.graph}


def outputs(model, feed):
    content = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content).run(None, feed)


@pytest.fixture
def model():
    return ir.from_proto(net(shape=(1, 3, 7, 8)))


FEED = {"x": np.random.default_rng(0).standard_normal((1, 3, 7, 8)).astype(np.float32)}
# Two convolutions of 3 * 4 * 3 and 5 * 3 * 3 products, whose sums come in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


def test_in_a_sequence_of_onnx_ir(model):
    before = outputs(model, FEED)
    passes = ir.passes.Sequential(
        ShapeInferencePass(), ReplaceTransposedConvs(), RemoveUnusedNodesPass()
    )
    result = passes(model)
    assert result.modified
    assert "ConvTranspose" not in operators(result.model)
    np.testing.assert_allclose(outputs(result.model, FEED)[0], before[0], **ROUNDING)
    assert not ReplaceTransposedConvs()(result.model).modified


def test_before_and_after_the_optimiser_of_onnxscript(model):
    before = outputs(model, FEED)
    first = onnxscript.optimizer.optimize(ReplaceTransposedConvs()(model.clone()).model)
    last = ReplaceTransposedConvs()(onnxscript.optimizer.optimize(model.clone())).model
    for made in (first, last):
        assert "ConvTranspose" not in operators(made)
        onnx.checker.check_model(ir.to_proto(made))
        np.testing.assert_allclose(outputs(made, FEED)[0], before[0], **ROUNDING)


# torch.export warns of its own use of LeafSpec.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_on_a_program_of_torch_onnx():
    net = nn.Sequential(nn.ConvTranspose2d(2, 3, 4, 2, 1), nn.ReLU()).eval()
    x = torch.linspace(-1, 1, 60).reshape(1, 2, 5, 6)
    program = torch.onnx.export(net, (x,), dynamo=True, verbose=False)
    assert ReplaceTransposedConvs()(program.model).modified
    program.optimize()
    assert "ConvTranspose" not in operators(program.model)
    [name] = [value.name for value in program.model.graph.inputs]
    with torch.no_grad():
        np.testing.assert_allclose(
            outputs(program.model, {name: x.numpy()})[0], net(x).numpy(), **ROUNDING
        )


def test_the_comparison_sees_another_function(model):
    other = outputs(ir.from_proto(net(shape=(1, 3, 7, 8), seed=1)), FEED)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(outputs(model, FEED)[0], other[0], **ROUNDING)
