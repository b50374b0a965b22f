"""Outputs without a channel axis: waveforms (N, L) of vocoders, depth maps (N, H, W)."""

import numpy as np
import pytest
import torch
from torch import nn

import deconvfix
from deconvfix.grid.tones import locked_tones
from deconvfix.grid.visible import visible_grid
from tests.support.gridded import gridded, pictures_for
from tests.support.sounds import Vocoder, sounds_for


class Squeezed(nn.Module):
    """The first channel of what another model gives."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)[:, 0]


def test_a_waveform_without_channels_loses_its_tones():
    """And what it is trained on, silence included, has the shape that the model gives."""
    model = Squeezed(Vocoder(3e-3)).eval()
    found = deconvfix.fix(model, data=sounds_for(64), seconds=6, sample_rate=8000)
    assert found.report.fixed, found.report.explain()
    assert found.report.is_sound
    new = torch.cat(sounds_for(24, seed=7))
    with torch.no_grad():
        old, fresh = (network(new).numpy()[:, None] for network in (model, found.model))
        silent = [network(torch.zeros(1, 1, 64)).numpy() for network in (model, found.model)]
    heard = [locked_tones(values, (2,), like=old).total_db for values in (old, fresh)]
    assert heard[0] > -40
    assert heard[1] < -60
    assert np.std(silent[1]) < 0.1 * np.std(silent[0])


@pytest.mark.parametrize("with_targets", [False, True])
def test_a_map_without_channels_loses_its_grid(with_targets):
    model, data = Squeezed(gridded()).eval(), pictures_for(48)
    targets = [x[:, 0].numpy() for x in data] if with_targets else None
    found = deconvfix.fix(model, data=data, targets=targets, seconds=8)
    assert found.report.fixed, found.report.explain()
    assert (found.report.original.truth_db is not None) is with_targets
    new = torch.cat(pictures_for(24, seed=7))
    with torch.no_grad():
        old, fresh = (network(new).numpy()[:, None] for network in (model, found.model))
    seen = [visible_grid(values, (2, 2), like=old).mean for values in (old, fresh)]
    assert seen[1] < 0.5 * seen[0]
