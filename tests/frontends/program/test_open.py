"""Programs whose transposed convolutions have numbers that the graph computes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import deconvfix
from deconvfix.frontends.torch.calls import is_transposed
from tests.support.open_sizes import OPEN, agrees, unet, whole_numbers


def left(program):
    return [
        node.name
        for node in program.graph.nodes
        if is_transposed(node.target, node.args, node.kwargs)
    ]


@pytest.mark.filterwarnings("ignore:`isinstance.treespec")  # torch's own, in run_decompositions
@pytest.mark.parametrize("decomposed", [False, True])
def test_output_size_of_an_open_input(decomposed):
    module, x = unet()
    program = torch.export.export(module, (x,), dynamic_shapes=OPEN)
    if decomposed:
        program = program.run_decompositions()
    agrees(program.module(), module)
    conversion = deconvfix.convert(program)
    assert not left(conversion.model)
    assert conversion.report.proven
    agrees(conversion.model.module(), module)
    (layer,) = deconvfix.inspect(program).layers
    assert (layer.kernel_size, layer.stride) == ((3, 3), (2, 3))


class Modulated(nn.Module):
    """As in StyleGAN2: every picture of a batch is a group, with weights of its own."""

    def __init__(self, inner=8, outer=6):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outer, inner, 3, 3))
        self.affine = nn.Linear(16, inner)

    def forward(self, x, style):
        batch, inner, height, width = x.shape
        outer = self.weight.shape[1]
        weight = self.weight * self.affine(style).view(batch, 1, inner, 1, 1)
        weight = weight.transpose(1, 2).reshape(batch * inner, outer, 3, 3)
        y = F.conv_transpose2d(
            x.reshape(1, batch * inner, height, width), weight, stride=2, groups=batch
        )
        return y.view(batch, outer, y.shape[2], y.shape[3])


class Generator(nn.Module):
    """One layer of open groups, and one that every form can replace."""

    def __init__(self):
        super().__init__()
        self.up = Modulated()
        self.last = nn.ConvTranspose2d(6, 3, 4, 2, 1)
        self.constant = nn.Parameter(torch.randn(1, 8, 4, 4))

    def forward(self, z):
        return self.last(self.up(self.constant.repeat(z.shape[0], 1, 1, 1), z))


def generator():
    module = whole_numbers(Generator())
    z = torch.randint(-1, 2, (2, 16)).float()
    open_batch = {"z": {0: torch.export.Dim.DYNAMIC}}
    return module, torch.export.export(module, (z,), dynamic_shapes=open_batch)


def test_groups_of_an_open_batch():
    module, program = generator()
    conversion = deconvfix.convert(program)
    assert [layer.decision for layer in conversion.report.layers] == ["replaced", "replaced"]
    assert not left(conversion.model)
    run = conversion.model.module()
    for batch in (1, 2, 5):
        z = torch.randint(-1, 2, (batch, 16)).float()
        with torch.no_grad():
            assert torch.equal(run(z), module(z))


def test_a_layer_of_open_groups_does_not_block_the_others():
    _, program = generator()
    first, second = deconvfix.convert(program, to="equalized", init="fit").report.layers
    assert (first.decision, second.decision) == ("refused", "replaced")
    assert len(first.reason.split()) > 5
    first, second = deconvfix.inspect(program).layers
    assert first.kernel_size == (3, 3)
    assert second.kernel_size == (4, 4)
