"""Programs of torch.export."""

import torch
from torch import nn


def export(model, *, strict=False):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -1, 1)
    height = torch.export.Dim("height", min=4, max=64)
    dynamic = {"x": {0: torch.export.Dim("batch"), 2: height}}
    inputs = (torch.randn(2, 3, 6, 7),)
    return torch.export.export(model.eval(), inputs, dynamic_shapes=dynamic, strict=strict)
