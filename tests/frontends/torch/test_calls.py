"""Calls of transposed convolutions in every spelling, and the watch for those that still run."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deconvfix
from deconvfix.frontends.torch.calls import executed_transposed_convolutions
from tests.support.decoders import Decoder
from tests.support.modules import (
    B,
    Calls,
    Functional,
    Modulated,
    W,
    X,
    assert_same_function,
    convert,
    integers,
    transposed_calls,
    up,
)

W4 = integers((6, 2, 4, 3), 1)

aten = torch.ops.aten

SPELLINGS = {
    "defaults": lambda x: F.conv_transpose2d(x, W),
    "ints": lambda x: F.conv_transpose2d(x, W, B, 2, 1, 1),
    "tuples": lambda x: F.conv_transpose2d(x, W, B, (2, 3), (1, 0), (1, 2), 1, (1, 1)),
    "lists": lambda x: F.conv_transpose2d(x, W, B, [2, 3], [1, 0], [1, 2], 1, [1, 1]),
    "one entry": lambda x: F.conv_transpose2d(x, W, B, (2,), [1], (1,), 1, (1,)),
    "torch.Size": lambda x: F.conv_transpose2d(x, W, B, torch.Size((2, 3))),
    "keywords": lambda x: F.conv_transpose2d(
        input=x, weight=W, bias=B, stride=(2, 3), padding=1, output_padding=(1, 2), dilation=2
    ),
    "no bias": lambda x: F.conv_transpose2d(x, W, None, 2),
    "groups": lambda x: F.conv_transpose2d(torch.cat([x, x], 1), W4, B, 2, groups=2),
    "unbatched": lambda x: F.conv_transpose2d(x[0], W, B, 2),
    "torch namespace": lambda x: torch.conv_transpose2d(x, W, B, stride=2),
    "1d": lambda x: F.conv_transpose1d(x[..., 0], W[..., 0], B, 2, dilation=3),
    "3d": lambda x: F.conv_transpose3d(x[:, :, None], W[:, :, None], B, (1, 2, 3)),
    "torch.convolution": lambda x: torch.convolution(
        x, W, B, [2, 3], [1, 0], [1, 1], True, [0, 1], 1
    ),
    "torch.convolution with keywords": lambda x: torch.convolution(
        x, W, bias=B, stride=(2, 3), padding=(1, 0), dilation=(1, 1), transposed=True,
        output_padding=(0, 1), groups=1,
    ),
    "aten overload": lambda x: aten.conv_transpose2d.input(x, W, B, [2, 3], [1, 0]),
    "aten packet": lambda x: aten.conv_transpose2d(x, W, B, [2, 3], [1, 0]),
    "aten.convolution": lambda x: aten.convolution.default(
        x, W, B, [2, 3], [1, 0], [1, 1], True, [0, 1], 1
    ),
    "weight of a slice": lambda x: F.conv_transpose2d(x, W[:, ::2], None, 2),
    "weight from the input": lambda x: F.conv_transpose2d(x, W * x.amax(), None, 2),
    "inside no_grad": lambda x: torch.no_grad()(F.conv_transpose2d)(x, W, B, 2),
    "inside autocast off": lambda x: quiet_autocast(x),
    "inside a custom function": lambda x: Custom.apply(x),
    "inside vmap": pytest.param(
        lambda x: torch.vmap(lambda each: F.conv_transpose2d(each, W, B, 2))(x[:, None]),
        ),
    "stride from numpy": pytest.param(
        lambda x: F.conv_transpose2d(x, W, B, stride=np.int64(2)),
        ),
}  # fmt: skip


def quiet_autocast(x):
    with torch.autocast("cpu", enabled=False):
        return F.conv_transpose2d(x, W, B, 2)


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return F.conv_transpose2d(x, W, B, 2)


each_spelling = pytest.mark.parametrize("function", SPELLINGS.values(), ids=list(SPELLINGS))


@each_spelling
def test_call_in_every_spelling_is_converted(function):
    model = Calls(function)
    assert transposed_calls(model, X) != []
    assert_same_function(convert(model, X), model, X)


def plain_convolution(x):
    return torch.convolution(x, W.transpose(0, 1), B, [1] * 2, [0] * 2, [1] * 2, False, [0] * 2, 1)


def test_convolution_that_is_not_transposed_is_left_alone():
    assert convert(Calls(plain_convolution), X).plan.decisions == ()


@pytest.mark.parametrize("name", ["_convolution", "slow_conv_transpose2d"])
def test_spelling_that_is_not_known_is_reported(name):
    """Not converted, but never missed: the last check runs below all spellings."""
    functions = {
        "_convolution": lambda x: torch._convolution(
            x, W, B, [2, 2], [0, 0], [1, 1], True, [0, 0], 1, False, False, True, True
        ),
        "slow_conv_transpose2d": lambda x: torch._C._nn.slow_conv_transpose2d(x, W, [4, 3], B, 2),
    }
    with pytest.raises(deconvfix.ParityError, match="a transposed convolution still runs there"):
        convert(nn.Sequential(up(3, 3), Calls(functions[name])), X)


def test_groups_that_change_with_the_batch_are_followed():
    model = Modulated()
    converted = convert(model, X).model
    longer = integers((5, 3, 6, 4), 7)
    assert torch.equal(converted(longer), model(longer))


def test_functional_only_model_without_inputs_is_found_in_its_code():
    (found,) = deconvfix.inspect(Functional()).layers
    assert (found.name, found.op, found.kernel_size) == ("conv_transpose", "conv_transpose", None)


def test_functional_only_model_is_converted_without_inputs():
    """What needs no run works without inputs; the report has to say that nothing was compared."""
    model = Functional()
    converted = deconvfix.convert(model).model
    assert torch.equal(converted(X), model(X))


def test_functional_only_model_is_converted_without_inputs_or_verification():
    model = Functional()
    converted = deconvfix.convert(model, verify=False).model
    assert torch.equal(converted(X), model(X))
    assert transposed_calls(converted, X) == []


def test_the_watch_names_what_still_runs(example):
    model = Decoder()
    assert executed_transposed_convolutions(model, example) == ["first", "second"]
    half = deconvfix.convert(model, include="first").model
    assert executed_transposed_convolutions(half, example) == ["second"]


@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, but models made with it exist
def test_the_watch_sees_into_torchscript(example):
    scripted = nn.Sequential(torch.jit.trace(copy.deepcopy(Decoder()), example))
    assert len(executed_transposed_convolutions(scripted, example)) == 2


def test_the_gradient_of_a_convolution_is_not_watched():
    """Its operator is a transposed convolution by arithmetic, not by name."""

    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            with torch.enable_grad():
                x = x.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(self.conv(x).square().sum(), x)
            return gradient

    assert executed_transposed_convolutions(Energy(), (torch.randn(1, 3, 5, 6),)) == []
