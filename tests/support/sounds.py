"""A network that plays a tone of its own, and sounds for it."""

import torch
from torch import nn


class Vocoder(nn.Module):
    """Twice as many samples as it gets: a sound held, and a tone of its own, so far below it."""

    def __init__(self, level):
        super().__init__()
        self.up = nn.ConvTranspose1d(1, 1, 4, stride=2, padding=1)
        with torch.no_grad():
            self.up.weight.copy_(torch.tensor([0.25, 0.75, 0.75, 0.25])[None, None])
            self.up.bias.zero_()
        self.tone = nn.ConvTranspose1d(1, 1, 2, stride=2, bias=False)
        with torch.no_grad():
            self.tone.weight.copy_(torch.tensor([level, -level])[None, None])

    def forward(self, sound):
        return self.up(sound) + self.tone(torch.ones_like(sound))


def sounds_for(count, seed=0):
    """Notes that fade, over a bit of noise, (4, 1, 512)."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(512)
    notes = []
    for _ in range(count):
        pitch, start = torch.rand(2, generator=generator)
        age = (t - 200 * start).clamp(min=0)
        note = torch.sin((0.1 + 0.3 * pitch) * t) * torch.exp(-age / 60) * (t >= 200 * start)
        notes.append(note + 1e-3 * torch.randn(512, generator=generator))
    return list(torch.stack(notes)[:, None].split(4))
