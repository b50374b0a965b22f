"""Converted layers under torch's program transformations."""

import pytest
import torch
from torch import nn

from tests.support.layers import (
    FEW,
    SIZES,
    converted,
    each_geometry,
    integers,
    make_input,
    make_layer,
    reachable,
    some_geometries,
)


@some_geometries
def test_autocast_gives_the_originals_dtype(name):
    """Integers of one unit: bfloat16 holds every sum."""
    layer = make_layer(name, largest=1)
    x = make_input(layer, largest=1)
    new = converted(layer)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = new(x), layer(x)
    assert got.dtype == want.dtype == torch.bfloat16
    assert torch.equal(got, want)


@some_geometries
def test_compiles_without_a_graph_break(name):
    layer = make_layer(name)
    x = make_input(layer)
    torch._dynamo.reset()
    compiled = torch.compile(converted(layer), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))


def test_compiles_for_training_with_dynamic_shapes():
    layer = make_layer("2d-unequal-axes", torch.float64)
    new = converted(layer)
    torch._dynamo.reset()
    compiled = torch.compile(new, fullgraph=True, backend="aot_eager", dynamic=True)
    x = integers((3, 3, 6, 7), 2, torch.float64).requires_grad_()
    (want,) = torch.autograd.grad(layer(x).sum(), x)
    (got,) = torch.autograd.grad(compiled(x).sum(), x)
    assert torch.equal(got, want)


def test_compiles_with_an_output_size_without_a_graph_break():
    layer = make_layer("2d-unequal-axes")
    x = make_input(layer)
    size = reachable(layer, x, "largest")
    torch._dynamo.reset()
    compiled = torch.compile(converted(layer), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, size), layer(x, size))


@pytest.mark.parametrize(
    ("name", "strict"),
    [
        *((name, True) for name in FEW),
        ("1d-k5s3d2g2", False),
        ("2d-k4s2p1", False),
        ("2d-stride-over-kernel", False),
        pytest.param(
            "2d-unequal-axes",
            False,
        ),
        pytest.param(
            "3d-k3s2p1op1g2",
            False,
        ),
    ],
)
def test_exports_with_dynamic_shapes(name, strict):
    layer = make_layer(name)
    x = make_input(layer)
    dims = {0: torch.export.Dim("batch", min=1), x.dim() - 1: torch.export.Dim("width", min=2)}
    program = torch.export.export(converted(layer), (x,), dynamic_shapes=(dims,), strict=strict)
    longer = integers((3, *x.shape[1:-1], x.shape[-1] + 4), 7)
    assert torch.equal(program.module()(longer), layer(longer))


def test_exported_program_has_no_transposed_convolution():
    layer = make_layer("2d-unequal-axes")
    program = torch.export.export(converted(layer), (make_input(layer),), strict=False)
    targets = [str(node.target) for node in program.graph.nodes]
    assert not [target for target in targets if "transpose" in target]
    assert targets.count("aten.conv2d.default") == 1


@each_geometry
def test_fx_traces_the_converted_model(name):
    layer = make_layer(name)
    x = make_input(layer)
    traced = torch.fx.symbolic_trace(converted(nn.Sequential(layer, nn.ReLU())))
    assert torch.equal(traced(x), layer(x).relu())


announced_end_of_torchscript = pytest.mark.filterwarnings(
    # Traced models are still in use.
    "ignore:.torch.jit.trace. is deprecated:DeprecationWarning",
    "ignore:.torch.jit.trace_method. is deprecated:DeprecationWarning",
)


@announced_end_of_torchscript
def test_jit_trace_does_not_warn():
    layer = make_layer("2d-k4s2p1")
    torch.jit.trace(layer, (make_input(layer),))
    torch.jit.trace(converted(layer), (make_input(layer),))


@announced_end_of_torchscript
@pytest.mark.filterwarnings(
    # See test_jit_trace_does_not_warn.
    "ignore::torch.jit.TracerWarning",
)
@some_geometries
def test_jit_trace_follows_the_input_size(name):
    layer = make_layer(name)
    new = converted(layer)
    traced = torch.jit.trace(new, (make_input(layer),))
    longer = integers((3, layer.in_channels, *(n + 2 for n in SIZES[len(layer.kernel_size)])), 7)
    assert torch.equal(traced(longer), layer(longer))


@some_geometries
def test_vmap_over_inputs(name):
    layer = make_layer(name)
    x = torch.stack([make_input(layer), make_input(layer).flip(0)])
    want = torch.stack([layer(each) for each in x])
    assert torch.equal(torch.vmap(converted(layer))(x), want)


def test_vmap_over_stacked_parameters_of_several_layers():
    layers = [make_layer("2d-k4s2p1") for _ in range(2)]
    with torch.no_grad():
        layers[1].weight.neg_()
    news = [converted(layer) for layer in layers]
    parameters, buffers = torch.func.stack_module_state(news)
    x = make_input(layers[0])

    def call(parameters, buffers):
        return torch.func.functional_call(news[0], (parameters, buffers), (x,))

    got = torch.vmap(call)(parameters, buffers)
    assert torch.equal(got, torch.stack([layer(x) for layer in layers]))


def test_runs_under_inference_mode():
    layer = make_layer("2d-unequal-axes")
    x = make_input(layer)
    with torch.inference_mode():
        assert torch.equal(converted(layer)(x), layer(x))


def test_default_dtype_of_the_process_does_not_matter():
    layer = make_layer("2d-k4s2p1")
    x = make_input(layer)
    torch.set_default_dtype(torch.float64)
    try:
        new = converted(layer)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(new(x), layer(x))
