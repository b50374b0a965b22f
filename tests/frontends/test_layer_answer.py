"""A run for a diagnosis: what a layer answers, in each kind of model."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.frontends.base import LayerAnswer
from deconvfix.frontends.registry import enter

SPEC = ConvTransposeSpec.create(2, 3, (4, 3), stride=(2, 3), padding=(1, 0))


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize(("samples", "answers"), [(3, 3), (9, 8)])
def test_it_answers_the_means_of_the_first_samples(samples, answers):
    weight, bias, x = noise(2, 3, 4, 3), noise(3), noise(samples, 2, 5, 6)
    found = LayerAnswer.of("up", SPEC, weight, bias, x, (10, 18))
    flat = np.broadcast_to(x.mean((2, 3), keepdims=True), x.shape)
    layer = nn.ConvTranspose2d(2, 3, (4, 3), (2, 3), (1, 0)).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
        y = layer(torch.from_numpy(np.array(flat))).numpy()
    # Output row o is phase (o + padding) % stride.
    period = y[:answers, :, 3:5, 6:9]
    assert found.phases.shape == (answers, 3, 2, 3)
    assert found.output_size == (10, 18)
    np.testing.assert_allclose(found.phases, period, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_modules_and_files_give_the_same_answers(tmp_path, bias):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(2, 4, 4, 2, 1, bias=bias),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 3, (3, 2), (0, 1), groups=1, bias=bias),
    ).eval()
    x = torch.randn(9, 2, 5, 6)
    path = tmp_path / "model.onnx"
    deconvfix.export_onnx(model, path, (x,))
    answers = []
    for kind, inputs in ((model, (x,)), (onnx.load(path), (x.numpy(),))):
        frontend, entered = enter(kind)
        matches = frontend.find(entered, inputs).matches
        answers.append(frontend.probe(entered, inputs, matches).layers)
    assert [len(layers) for layers in answers] == [2, 2]
    for one, other in zip(*answers, strict=True):
        assert one.output_size == other.output_size
        np.testing.assert_allclose(one.phases, other.phases, rtol=1e-4, atol=1e-6)
