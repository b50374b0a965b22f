"""Converted modules for other tools: plain operations in a trace, TorchScript, sizes that stay open."""

import onnxruntime
import pytest
import torch
from torch import nn

import deconvfix
from tests.support.forms import options_of
from tests.support.open_sizes import OPEN, agrees, unet, whole_numbers

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, but converters use it

# What Core ML, ncnn and others read from a trace: convolution, shuffle, layout, slices, padding, arithmetic.
PLAIN = {
    *("_convolution", "conv1d", "conv2d", "conv3d", "pixel_shuffle", "reshape", "view", "permute"),
    *("transpose", "contiguous", "flatten", "slice", "narrow", "select", "cat", "stack", "squeeze"),
    *("unsqueeze", "pad", "constant_pad_nd", "add", "sub", "mul", "relu", "clone", "size", "Int"),
    *("floor_divide", "floordiv", "ScalarImplicit"),
}
LAYERS = {
    "1-D k8 s8": (nn.ConvTranspose1d, (4, 4, 8, 8), {}, (1, 4, 9)),
    "1-D k4 s2 p1": (nn.ConvTranspose1d, (4, 6, 4, 2, 1), {}, (1, 4, 9)),
    "2-D k(16,1) s(16,1)": (nn.ConvTranspose2d, (4, 4, (16, 1), (16, 1)), {}, (1, 4, 5, 6)),
    "2-D k(4,3) s(2,1)": (nn.ConvTranspose2d, (4, 6, (4, 3), (2, 1), (1, 1)), {}, (2, 4, 5, 6)),
    "2-D k4 s2 p1": (nn.ConvTranspose2d, (4, 4, 4, 2, 1), {}, (1, 4, 5, 6)),
    "2-D groups, no bias": (
        nn.ConvTranspose2d,
        (4, 6, (4, 3), (2, 3), (1, 0)),
        {"groups": 2, "bias": False},
        (2, 4, 5, 6),
    ),
    "2-D phases without a tap": (
        nn.ConvTranspose2d,
        (4, 6, (3, 2), (4, 6)),
        {"dilation": (2, 3)},
        (2, 4, 5, 6),
    ),
    "3-D k2 s2": (nn.ConvTranspose3d, (4, 4, 2, 2), {}, (1, 4, 3, 4, 5)),
    "3-D k3 s2 p1 op1": (nn.ConvTranspose3d, (4, 2, 3, 2, 1, 1), {}, (1, 4, 3, 4, 5)),
}


def layer(name):
    build, args, options, shape = LAYERS[name]
    module = whole_numbers(nn.Sequential(build(*args, **options)))
    x = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(1)).float()
    return module, x


def transposed(node):
    """Whether an operation of a trace is a transposed convolution."""
    if node.kind() == "aten::_convolution":
        return list(node.inputs())[6].toIValue()
    return "conv_transpose" in node.kind()


@pytest.mark.parametrize("name", LAYERS)
def test_a_trace_holds_plain_operations(name):
    module, x = layer(name)
    traced = torch.jit.trace(deconvfix.convert(module, example_inputs=(x,)).model, x)
    larger = torch.cat([x, x], -1)
    for given in (x, larger):
        assert torch.equal(traced(given), module(given)), "no size is fixed"
    assert not any(map(transposed, traced.inlined_graph.nodes()))
    used = {
        node.kind() for node in traced.inlined_graph.nodes() if node.kind().startswith("aten::")
    }
    assert used <= {f"aten::{operation}" for operation in PLAIN}


def test_a_transposed_convolution_in_a_trace_is_seen():
    """The control of the test before."""
    module, x = layer("2-D k4 s2 p1")
    assert any(map(transposed, torch.jit.trace(module, x).inlined_graph.nodes()))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("unbatched", [False, True])
def test_a_converted_module_can_be_scripted(name, unbatched):
    module, x = layer(name)
    x = x[0] if unbatched else x
    scripted = torch.jit.script(deconvfix.convert(module, example_inputs=(x,)).model)
    assert torch.equal(scripted(x), module(x))


@pytest.mark.parametrize("options", [{}, {"interpolation": "linear"}, {"padding_mode": "reflect"}])
@pytest.mark.parametrize("name", ["1-D k4 s2 p1", "2-D k(4,3) s(2,1)", "3-D k3 s2 p1 op1"])
def test_a_resize_convolution_can_be_scripted(name, options):
    module, x = layer(name)
    converted = deconvfix.convert(module, to="resize", init="fit", verify=False, **options).model
    assert torch.equal(torch.jit.script(converted)(x), converted(x))


def test_what_cannot_be_scripted_says_so():
    module, x = layer("2-D k4 s2 p1")
    scripted = torch.jit.script(
        deconvfix.convert(module, to="notch", init="fit", verify=False).model
    )
    with pytest.raises(torch.jit.Error, match="local means are not scripted"):
        scripted(x)


# --- output_size of an open input -------------------------------------------------------------------


@pytest.mark.parametrize("to", ["subpixel", "equalized"])
def test_a_converted_module_is_exported_with_open_sizes(to, tmp_path):
    module, x = unet()
    converted = deconvfix.convert(module, example_inputs=(x,), **options_of(to)).model
    agrees(torch.export.export(converted, (x,), dynamic_shapes=OPEN).module(), converted)
    if to == "subpixel":
        agrees(converted, module)
        path = str(tmp_path / "out.onnx")
        deconvfix.export_onnx(converted, path, (x,), dynamic_shapes={"x": {2: "h", 3: "w"}})
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        agrees(lambda x: session.run(None, {"x": x.numpy()})[0], module)


def test_a_trace_follows_the_size_of_the_skip():
    module, x = unet()
    agrees(torch.jit.trace(deconvfix.convert(module, example_inputs=(x,)).model, x), module)


def test_sizes_out_of_reach_are_still_refused():
    """As torch's own layer does."""
    module, x = unet()
    up = deconvfix.convert(module, example_inputs=(x,)).model.up
    for layer in (module.up, up):
        with pytest.raises(ValueError, match="requested an output size"):
            layer(torch.zeros(1, 8, 4, 4), output_size=(9, 9))


@pytest.mark.parametrize("to", ["resize", "notch"])
def test_every_output_size_of_a_fitted_form(to):
    """A smaller output is the begin of a larger one, whatever the form."""
    module = whole_numbers(nn.Sequential(nn.ConvTranspose2d(4, 3, (3, 5), (2, 3), (1, 2))))
    up = deconvfix.convert(module, to=to, init="fit", verify=False).model[0]
    x = torch.randint(-3, 4, (2, 4, 6, 5)).float()
    largest = up(x, output_size=(12, 15))
    for height in (11, 12):
        for width in (13, 14, 15):
            assert torch.equal(up(x, output_size=(height, width)), largest[..., :height, :width])
    assert torch.equal(up(x, output_size=(11, 13))[..., 2:-2, 3:-3], up(x)[..., 2:-2, 3:-3])
