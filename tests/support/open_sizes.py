"""A network whose layer comes back to the size of its skip, with sizes that stay open."""

import torch
from torch import nn

OPEN = {"x": {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}}
SIZES = ((16, 16), (20, 26), (19, 22), (17, 16), (18, 21), (23, 19))


def whole_numbers(module):
    """Weights and inputs that every order of summation adds exactly."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randint(-3, 4, parameter.shape, generator=generator).float()
    return module.eval()


class UNet(nn.Module):
    """Comes back to the size of its skip, which may be odd."""

    def __init__(self, functional=False):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, (2, 3), 1)
        self.up = nn.ConvTranspose2d(8, 5, 3, (2, 3), 1)

    def forward(self, x):
        y = self.up(self.down(x), output_size=x.shape[-2:])
        return torch.cat([y, x], 1)


def unet():
    return whole_numbers(UNet()), torch.randint(-3, 4, (1, 3, 16, 16)).float()


def agrees(run, module):
    generator = torch.Generator().manual_seed(2)
    for size in SIZES:
        x = torch.randint(-3, 4, (1, 3, *size), generator=generator).float()
        with torch.no_grad():
            want, got = module(x), torch.as_tensor(run(x))
        assert got.shape == want.shape, size
        assert torch.equal(got, want), size
