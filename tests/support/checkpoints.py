"""Networks in checkpoints, converted as the command line does."""

import torch
from safetensors.torch import save_file
from torch import nn

import deconvfix
from deconvfix.frontends.torch import checkpoint

PICKLED = [".pt", ".pth", ".ckpt"]

ALL = [".safetensors", *PICKLED]


class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.head = nn.Conv2d(2, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.up1 = nn.ConvTranspose2d(width, 5, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(5, 2, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x):
        return self.up2(torch.relu(self.up1(self.norm(self.head(x)))))


class Bilinear(nn.Module):
    """A depthwise layer whose kernel divides, so that its resize form is exact."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1, groups=2, bias=False)
        tent = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
        with torch.no_grad():
            self.up.weight.copy_(torch.outer(tent, tent))

    def forward(self, x):
        return self.up(x)


def seeded(build, seed=0):
    torch.manual_seed(seed)
    model = build()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def example():
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, 2, 5, 6, generator=generator)


def save(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(
        one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
    )


def converted_file(path, model, **options):
    conversion = deconvfix.convert(model, **options)
    checkpoint.write(path, conversion.model, conversion.plan)
    return conversion
