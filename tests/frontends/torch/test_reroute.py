"""Modules whose calls are converted where they run."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import deconvfix
from tests.support.modules import (
    B,
    Calls,
    Functional,
    W,
    X,
    assert_same_function,
    convert,
    transposed_calls,
    up,
)


class Aliased(nn.Module):
    """Calls its layer by a reference that is not registered."""

    def __init__(self):
        super().__init__()
        self.up = up()
        self.layers = [self.up]

    def forward(self, x):
        return self.layers[0](x)


def test_layer_called_by_a_hidden_reference_is_reported():
    class Hidden(Aliased):
        def __init__(self):
            super().__init__()
            self.layers = {"nested": [self.up]}

        def forward(self, x):
            return self.layers["nested"][0](x)

    with pytest.raises(deconvfix.ParityError, match="a transposed convolution still runs there"):
        convert(Hidden(), X)


def test_layer_in_a_list_that_is_not_registered_is_exchanged():
    model = Aliased()
    assert_same_function(convert(model, X), model, X)


def test_layer_called_by_a_hidden_reference_is_exchanged_without_inputs():
    """Or refused: else the old layer runs, and a checkpoint loaded later does not reach it."""
    assert transposed_calls(convert(Aliased()).model, X) == []


def test_call_in_another_method_than_forward_is_rerouted_there_too():
    """Autoencoders are often used by `model.decode(z)`."""

    class Decoder(Functional):
        def decode(self, x):
            return super().forward(x)

        def forward(self, x):
            return self.decode(x)

    assert transposed_calls(convert(Decoder(), X).model.decode, X) == []


@pytest.mark.xfail(strict=True, reason="torch's modes belong to one thread: see docs/limits.md")
def test_call_in_another_thread_is_found():
    def threaded(x):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(F.conv_transpose2d, x, W, B, 2).result()

    assert convert(Calls(threaded), X).plan.decisions != ()


@pytest.mark.xfail(
    strict=True,
    reason="the recomputation runs outside of the rerouted forward: see docs/limits.md",
)
def test_gradient_checkpointing_inside_a_rerouted_module():
    class Checkpointed(Functional):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    model = Checkpointed()
    converted = convert(model, X).model
    x = X.clone().requires_grad_()
    converted(x).sum().backward()
    (want,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.equal(x.grad, want)


def test_shallow_copy_of_a_rerouted_module_uses_its_own_weights():
    """nn.DataParallel runs such copies, one for each GPU."""
    twin = copy.copy(convert(Functional(), X).model)
    twin._parameters = {key: torch.zeros_like(value) for key, value in twin._parameters.items()}
    assert bool((twin(X) == 0).all())
