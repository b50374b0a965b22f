"""A decoder of two layers."""

import torch
from torch import nn


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.ConvTranspose2d(3, 8, 4, 2, 1)
        self.second = nn.ConvTranspose2d(8, 5, 3, (2, 1), 1, (1, 0), groups=1)

    def forward(self, x):
        return torch.tanh(self.second(torch.relu(self.first(x))))
