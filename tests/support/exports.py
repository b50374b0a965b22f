"""Models to export, with integer-valued weights."""

import torch
from torch import nn

import deconvfix


class Net(nn.Module):
    """Weights and biases are small integers, so that float32 sums are exact in any order."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(2, 3, 3, padding=1)
        self.up = nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1, output_padding=1)

    def forward(self, image):
        return self.up(torch.relu(self.head(image)))


def seeded(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-4, 5, parameter.shape, generator=generator))
    return model.eval()


def integers(*shape, seed=7):
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).float()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def convert(model, *inputs, **options):
    return deconvfix.convert(model, example_inputs=inputs, **options).model
