"""A small auto-encoder with a visible grid, and pictures for it."""

import torch
from torch import nn

from tests.support import pictures


def pictures_for(count, side=64, seed=0):
    """Crops of photographs in batches of four, (4, 3, side, side) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    whole = [torch.from_numpy(pictures.load(name)[0]).float() for name in pictures.NAMES]
    crops = []
    for i in range(count):
        picture = whole[i % len(whole)]
        top, left = (
            int(torch.randint(0, size - side + 1, (1,), generator=generator))
            for size in picture.shape[1:]
        )
        crops.append(picture[:, top : top + side, left : left + side])
    return list(torch.stack(crops).split(4))


class Autoencoder(nn.Module):
    """Half the size and back; k3 s2, as the networks that started this."""

    def __init__(self, uneven=0.0):
        super().__init__()
        self.down = nn.Conv2d(3, 12, 4, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 3, 3, stride=2, padding=1, output_padding=1)
        self.uneven = uneven

    def forward(self, image):
        return self.up(torch.relu(self.down(image)))


class Shuffled(nn.Module):
    """Half the size and back by a pixel shuffle, one phase of which is a bit too bright."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(12, 12, 1)
        self.shuffle = nn.PixelShuffle(2)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(12)[..., None, None])
            self.mix.weight[1::4] *= 1.03
            self.mix.bias.zero_()

    def forward(self, image):
        return self.shuffle(self.mix(nn.functional.pixel_unshuffle(image, 2)))


def gridded(seed=0):
    """Nearly the identity: each phase in channels of its own, and one of them a bit too bright."""
    torch.manual_seed(seed)
    model = Autoencoder()
    with torch.no_grad():
        model.down.weight.zero_()
        model.down.bias.zero_()
        model.up.weight.zero_()
        model.up.bias.zero_()
        for c in range(3):
            for f, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
                channel = 4 * c + f
                model.down.weight[channel, c, 1 + row, 1 + column] = 1
                gain = 1.03 if f == 1 else 1.0
                model.up.weight[channel, c, 1 + row, 1 + column] = gain
    return model.eval()
