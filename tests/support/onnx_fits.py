"""Networks to calibrate, as modules and as ONNX models."""

import numpy as np
import torch
from onnx import TensorProto
from torch import nn

import deconvfix
from tests.support.onnx_models import (
    integers,
    is_valid,
    model,
    node,
    value,
)

FLOAT16 = TensorProto.FLOAT16


class Net(nn.Module):
    """Groups, unequal axes, a layer without bias."""

    def __init__(self, ndim=2):
        super().__init__()
        conv = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[ndim]
        self.up1 = conv(4, 6, (4, 5, 3)[:ndim], (2, 3, 2)[:ndim], 1, groups=2)
        self.up2 = conv(6, 2, 3, 2, 1, 1, bias=False)

    def forward(self, x):
        return self.up2(torch.relu(self.up1(x)))


def integer_net(ndim=2):
    """All that the first layer computes of integers is exact, in whatever order."""
    net = Net(ndim).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in net.parameters():
            each.copy_(torch.randint(-4, 5, each.shape, generator=generator) / 8)
    return net


def as_onnx(net, *, opset=17, dtype=np.float32, sizes=("N", 4, "H", "W")):
    n = len(sizes) - 2
    stored = {name: x.detach().numpy().astype(dtype) for name, x in net.named_parameters()}

    def up(name, inputs, output):
        layer = getattr(net, name)
        return node(
            *("ConvTranspose", inputs, output),
            name=name,
            strides=list(layer.stride),
            pads=list(layer.padding) * 2,
            output_padding=list(layer.output_padding),
            group=layer.groups,
        )

    kind = TensorProto.FLOAT if dtype == np.float32 else FLOAT16
    nodes = [
        up("up1", "x up1.weight up1.bias", "a"),
        node("Relu", "a", "r", name="relu"),
        up("up2", "r up2.weight", "y"),
    ]
    inputs = [value("x", list(sizes), kind)]
    return model(nodes, inputs, [value("y", n + 2, kind)], stored, opset=opset)


def batches(shape=(4, 4, 6, 5), count=5, seed=0, low=-3, high=4):
    return [integers(shape, seed + i, low=low, high=high) for i in range(count)]


X = value("x", ["N", 4, "L"])

Y = value("y", 3)

W = {"w": integers((4, 4, 4), 3) / 8, "b": integers((4,), 4) / 8}

W = {name: array.astype(np.float32) for name, array in W.items()}


def up(inputs, output, name, **attributes):
    return node("ConvTranspose", inputs, output, name=name, strides=[2], pads=[1, 1], **attributes)


def calibrated(proto, to="equalized", inputs=None, **options):
    inputs = batches((4, 4, 6)) if inputs is None else inputs
    got = deconvfix.convert(proto, to=to, init="calibrated", calibration=inputs, **options)
    assert got.report.parity.ok
    assert is_valid(got.model) or not is_valid(proto)
    return got
