"""Code of users that treats a converted layer as the one that it replaces."""

import pytest
import torch
from torch import nn

import deconvfix


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 3, 4, 2, 1)

    def forward(self, x):
        return self.up(x)


@pytest.fixture
def layer():
    return deconvfix.convert(Net()).model.up


WRITES = {
    "data.zero_": lambda layer: layer.weight.data.zero_(),
    "data.copy_": lambda layer: layer.weight.data.copy_(torch.zeros(4, 3, 4, 4)),
    "copy_ under no_grad": lambda layer: layer.weight.detach().copy_(torch.zeros(4, 3, 4, 4)),
    "nn.init": lambda layer: nn.init.kaiming_normal_(layer.weight),
    "nn.init of the bias": lambda layer: nn.init.zeros_(layer.bias),
    "mul_": lambda layer: layer.weight.detach().mul_(2),
    "out=": lambda layer: torch.add(torch.zeros(4, 3, 4, 4), 1, out=layer.weight.detach()),
    "index": lambda layer: layer.weight.data.__setitem__(0, 0.0),
}


@pytest.mark.parametrize("write", WRITES)
def test_writing_to_a_shown_weight_is_an_error(layer, write):
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"write to `conv\.(weight|bias)`"):
        WRITES[write](layer)


def test_adding_to_a_shown_weight_is_an_error(layer):
    weight = layer.weight.detach()
    with pytest.raises(RuntimeError, match="changes nothing"):
        weight += 1


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_shown_parameter_cannot_be_set(layer, name):
    with pytest.raises(AttributeError, match=rf"set `conv\.{name}`"):
        setattr(layer, name, nn.Parameter(torch.zeros(3)))


def test_a_shown_weight_is_read_like_any_other(layer):
    original = Net().up
    weight, bias = layer.weight, layer.bias
    assert (weight.shape, bias.shape) == (original.weight.shape, original.bias.shape)
    for value in (weight * 2, weight.sum(), weight[0], weight.clone(), weight.detach().numpy()):
        assert type(value) in (torch.Tensor, type(weight.detach().numpy()))
    weight.square().sum().backward()
    assert layer.conv.weight.grad.abs().sum() > 0
    copied = weight.clone()
    copied.zero_()  # what is computed from it is the caller's own
    assert layer.weight.abs().sum() > 0


def test_an_optimizer_that_holds_the_old_weights_is_named():
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.warns(UserWarning, match=r"AdamW holds up\.weight, up\.bias, which the conversion"):
        deconvfix.convert(model, inplace=True)
    del optimizer


def test_an_optimizer_of_the_original_is_no_concern():
    """A copy is converted, and the original goes on being trained."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    deconvfix.convert(model)
    other = Net()
    deconvfix.convert(other, inplace=True)
    del optimizer


def test_an_optimizer_of_a_converted_model_is_named():
    """A copy is the user's own once it was returned."""
    model = deconvfix.convert(nn.Sequential(Net(), Net()), include="0.*").model
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.warns(UserWarning, match=r"AdamW holds 1\.up\.weight"):
        deconvfix.convert(model, inplace=True)
    del optimizer


class Asks(Net):
    def forward(self, x):
        y = self.up(x)
        return y if isinstance(self.up, nn.ConvTranspose2d) else -y


def test_code_that_asks_for_the_class_is_named():
    notes = deconvfix.convert(Asks()).report.notes
    assert any("The code of Asks asks for the class of a layer" in note for note in notes)
    assert not any("asks for the class" in note for note in deconvfix.convert(Net()).report.notes)


def test_a_wrong_branch_is_no_conversion():
    with pytest.raises(deconvfix.ParityError):
        deconvfix.convert(Asks(), example_inputs=(torch.randn(1, 4, 5, 6),))
