"""The members of a .pt2 file, read and changed."""

import io
import json
import zipfile
from pathlib import Path

import torch
from torch import nn

PROGRAM = "models/model.json"

WEIGHTS = "data/weights/model_weights_config.json"

SAMPLE_INPUTS = "data/sample_inputs/model.pt"


class Net(nn.Module):
    """A dynamic axis with a guard, a parameter, a buffer and a constant."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose1d(2, 3, 4, 2, 1)
        self.register_buffer("count", torch.zeros(1))
        self.constant = torch.ones(3, 1)

    def forward(self, x):
        self.count.add_(1)
        y = self.up(x) + self.constant
        return y if x.shape[2] % 2 == 0 else y[..., 1:]


class Touch:
    """An object whose pickle creates a file when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {each.split("/", 1)[1]: archive.read(each) for each in archive.namelist()}


def write_members(path, members, root="net/", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(root + name, content)


def edit(members, name, change):
    data = json.loads(members[name])
    change(data)
    members[name] = json.dumps(data).encode()


def in_sample_inputs(members, marker):
    members[SAMPLE_INPUTS] = saved(((Touch(marker),), {}))
