"""Layers whose weights are normed, parametrized or pruned."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import deconvfix
from deconvfix.errors import ModelError
from deconvfix.frontends.torch.surgery import put_weight
from tests.support.modules import (
    Negative,
    X,
    assert_same_function,
    convert,
    drawn,
    parametrized,
    pruned,
    transposed_calls,
    up,
)

announced_end_of_weight_norm = pytest.mark.filterwarnings(
    # torch announces the end of the hook-style weight_norm; many published models still use it.
    "ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning",
)

NORMS = {
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm over outputs": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "orthogonal": parametrizations.orthogonal,
}

each_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=list(NORMS))


@announced_end_of_weight_norm
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@each_norm
def test_normed_layer_is_converted(norm, training):
    """Real-valued weights: the conversion's own parity check holds the outputs to their bound."""
    model = nn.Sequential(norm(drawn())).train(training)
    conversion = convert(model, X)
    assert conversion.report.parity.ok
    assert transposed_calls(conversion.model, X) == []
    assert conversion.model.state_dict().keys() == model.state_dict().keys()


@announced_end_of_weight_norm
@each_norm
def test_normed_layer_equals_the_original_up_to_rounding(norm):
    model = nn.Sequential(norm(drawn())).eval()
    converted = convert(model, X).model
    with torch.no_grad():
        got, want = converted(X), model(X)
        layer = model[0]
        # 10 eps (|W| (*) |x| + |b|), see deconvfix.parity.bounds
        magnitude = F.conv_transpose2d(
            X.abs(), layer.weight.abs(), layer.bias.abs(), (2, 3), (1, 0), (0, 1)
        )
    assert bool(((got - want).abs() <= 10 * torch.finfo(torch.float32).eps * magnitude).all())


@announced_end_of_weight_norm
@each_norm
def test_model_that_was_trained_before_is_converted(norm):
    """A backward pass leaves computed weights with a gradient history behind."""
    model = nn.Sequential(norm(drawn()))
    model(X).sum().backward()
    assert convert(model, X).report.ok
    assert convert(model).report.ok


@announced_end_of_weight_norm
@each_norm
def test_normed_layer_still_trains(norm):
    converted = convert(nn.Sequential(norm(drawn())), X).model
    converted(X).square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in converted.parameters())


def test_conversion_leaves_the_vectors_of_spectral_norm_alone():
    """In train mode reading the weight changes buffers; the converted model's must be untouched."""
    model = nn.Sequential(parametrizations.spectral_norm(drawn())).train()
    converted = convert(model, X).model
    before, after = model.state_dict(), converted.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@announced_end_of_weight_norm
@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(
            NORMS["old weight_norm"],
        ),
        pytest.param(
            NORMS["old spectral_norm"],
        ),
        NORMS["weight_norm"],
        NORMS["spectral_norm"],
    ],
    ids=["old weight_norm", "old spectral_norm", "weight_norm", "spectral_norm"],
)
def test_normed_layer_becomes_a_resize_convolution(norm):
    model = nn.Sequential(norm(drawn())).eval()
    conversion = convert(model, X, to="resize", init="fit")
    assert transposed_calls(conversion.model, X) == []


def test_pruned_layer_becomes_a_resize_convolution():
    assert transposed_calls(convert(pruned("weight"), X, to="resize", init="fit").model, X) == []


def test_layer_with_a_pruned_bias_is_converted():
    model = pruned("bias")
    assert_same_function(convert(model, X), model, X)


@announced_end_of_weight_norm
@pytest.mark.parametrize(
    "norm", [NORMS["old weight_norm"], NORMS["weight_norm"]], ids=["old", "new"]
)
def test_weight_normed_layer_is_equalized_through_its_norm(norm):
    model = nn.Sequential(norm(drawn()))
    conversion = convert(model, X, to="equalized", init="fit")
    assert conversion.model.state_dict().keys() == model.state_dict().keys()
    after = deconvfix.inspect(conversion.model, (X,)).layers[0].ripple_db
    # Phase sums are equal up to float32: 10 eps is -118 dB.
    assert after < -110 < model_ripple(model)


def model_ripple(model):
    return deconvfix.inspect(model, (X,)).layers[0].ripple_db


def rescaled(ran):
    """As after loading a checkpoint: `weight` follows weight_g and weight_v at the next call."""
    model = nn.Sequential(nn.utils.weight_norm(drawn()))
    with torch.no_grad():
        model[0].weight_g.mul_(3)
        model[0].weight_v[..., 0].mul_(3)
        if ran:
            model(X)
    return model


@announced_end_of_weight_norm
@pytest.mark.parametrize("inputs", [(X,), ()], ids=["inputs", "no inputs"])
def test_equalized_starts_from_the_weight_that_the_model_would_use(inputs):
    want = convert(rescaled(ran=True), *inputs, to="equalized", init="fit").model(X)
    got = convert(rescaled(ran=False), *inputs, to="equalized", init="fit").model(X)
    assert torch.equal(got, want)


@announced_end_of_weight_norm
def test_inspect_reads_the_weight_that_the_model_would_use():
    assert model_ripple(rescaled(ran=False)) == model_ripple(rescaled(ran=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(parametrizations.spectral_norm(drawn())).eval(),
        lambda: nn.Sequential(nn.utils.spectral_norm(drawn())).eval(),
        lambda: parametrized(Negative()),
    ],
    ids=["spectral_norm", "old spectral_norm", "no right inverse"],
)
def test_weight_that_cannot_be_set_is_refused_by_equalized(make):
    """A refusal in the plan, so that the other layers are still converted."""
    conversion = convert(nn.Sequential(make(), up(4, 3)), X, to="equalized", init="fit")
    assert [each.decision for each in conversion.plan.decisions] == ["refused", "replaced"]


class Forgetful(nn.Module):
    """A parametrization that does not invert itself."""

    def forward(self, x):
        return x / 2

    def right_inverse(self, x):
        return x


def test_weight_that_could_not_be_set_is_what_it_was():
    layer = parametrized(Forgetful())[0]
    before = [value.clone() for value in layer.parameters()]
    kernel = np.ones(layer.weight.shape)
    with pytest.raises(ModelError, match="differs by"):
        put_weight(layer, kernel, None, "up")
    assert all(map(torch.equal, before, layer.parameters()))
