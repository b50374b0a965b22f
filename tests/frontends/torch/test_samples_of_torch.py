"""PyTorch's own samples of transposed convolutions, every one, in every real dtype."""

import numpy as np
import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

import deconvfix
from deconvfix.frontends.torch.calls import Call, executed_transposed_convolutions
from deconvfix.frontends.torch.reroute import Reroute

OPS = [op for op in op_db if op.name.startswith("nn.functional.conv_transpose")]

MODULES = [info for info in module_db if "ConvTranspose" in info.name]

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

SAMPLES = [
    pytest.param(op, dtype, index, id=f"{op.name.split('.')[-1]}-{str(dtype)[6:]}-{index}")
    for op in OPS
    for dtype in (*FLOATS, torch.int64)
    for index in range(len(list(op.sample_inputs("cpu", torch.float32))))
]

MODULE_SAMPLES = [
    pytest.param(
        info, dtype, training, index, id=f"{info.name}-{str(dtype)[6:]}-{training}-{index}"
    )
    for info in MODULES
    for dtype in FLOATS
    for training in (False, True)
    for index in range(len(info.module_inputs_func(info, "cpu", torch.float32, False, training)))
]


def test_the_samples_are_there():
    """torch's tables may be renamed: then this must fail, not pass with nothing to do."""
    assert {op.name for op in OPS} == {f"nn.functional.conv_transpose{n}d" for n in (1, 2, 3)}
    assert len(SAMPLES) >= 160
    assert len(MODULE_SAMPLES) >= 96


def integers(tensor):
    """Small integers of the same shape, dtype and memory order: their sums are exact everywhere."""
    drawn = torch.randint(-2, 3, tensor.shape, generator=torch.Generator().manual_seed(0))
    return torch.empty_like(tensor).copy_(drawn)


@pytest.mark.parametrize(("op", "dtype", "index"), SAMPLES)
def test_function_samples_are_bit_for_bit_the_same(op, dtype, index):
    sample = list(op.sample_inputs("cpu", dtype))[index]
    tensors = [integers(sample.input), *map(integers_if_tensor, sample.args)]
    want = op.op(*tensors, **sample.kwargs)
    with Reroute():
        got = op.op(*tensors, **sample.kwargs)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert torch.equal(got, want)


def integers_if_tensor(value):
    return integers(value) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(("op", "dtype", "index"), [p for p in SAMPLES if p.values[1] in FLOATS])
def test_function_samples_stay_within_the_bound(op, dtype, index):
    """|dy| <= 10 * eps * (|W| (*) |x| + |b|), on torch's own values."""
    sample = list(op.sample_inputs("cpu", dtype))[index]
    want = op.op(sample.input, *sample.args, **sample.kwargs).double()
    with Reroute():
        got = op.op(sample.input, *sample.args, **sample.kwargs).double()
    magnitude = [
        each.abs().double() if isinstance(each, torch.Tensor) else each
        for each in (sample.input, *sample.args)
    ]
    bound = 10 * torch.finfo(dtype).eps * op.op(*magnitude, **sample.kwargs)
    assert ((got - want).abs() <= bound).all()


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")  # torch says so of its own
@pytest.mark.parametrize(("info", "dtype", "training", "index"), MODULE_SAMPLES)
def test_module_samples_are_bit_for_bit_the_same(info, dtype, training, index):
    sample = info.module_inputs_func(info, "cpu", dtype, False, training)[index]
    arguments = sample.constructor_input
    module = info.module_cls(*arguments.args, **arguments.kwargs).to(dtype).train(training)
    x = integers(sample.forward_input.args[0])
    module(x)  # lazy modules get their weights here
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(integers(parameter))
    converted = deconvfix.convert(module, example_inputs=(x,)).model
    assert torch.equal(converted(x), module(x))
    assert executed_transposed_convolutions(converted, (x,)) == []
    assert executed_transposed_convolutions(module, (x,)) == [""]


def test_complex_samples_are_left_alone():
    op = OPS[1]
    sample = next(iter(op.sample_inputs("cpu", torch.complex64)))
    with Reroute():
        got = op.op(sample.input, *sample.args, **sample.kwargs)
    assert torch.equal(got, op.op(sample.input, *sample.args, **sample.kwargs))


def test_calls_know_their_geometry():
    call = Call("conv_transpose2d", None, torch.zeros(6, 4, 3, 5), None, (2, 3), 1, [0, 1], 2, 1)
    spec = call.spec()
    assert (spec.in_channels, spec.out_channels, spec.groups) == (6, 8, 2)
    assert spec.padding == ((1, 1), (1, 1))
    assert np.prod(spec.weight_shape) == 6 * 4 * 3 * 5
