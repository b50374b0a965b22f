"""Calibration inputs cut into samples, and those that are held out."""

import pytest
import torch
from torch import nn

from deconvfix.frontends.torch.inputs import as_inputs
from deconvfix.frontends.torch.samples import cut, join, split
from tests.support.networks import smooth_batches
from tests.support.tuned import decoder


def test_batches_are_cut_where_the_model_treats_samples_alone():
    model = decoder()
    batches = [as_inputs(each) for each in smooth_batches((4, 3, 5, 6), count=2)]
    samples, independent = cut(model, batches)
    assert independent
    assert len(samples) == 8
    [joined] = join(samples)
    assert torch.equal(joined.args[0], torch.cat([each.args[0] for each in batches]))


class _Mixes(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (_Mixes(), torch.randn(4, 3)),
        (nn.ConvTranspose2d(4, 2, 3), torch.randn(4, 5, 6)),
        (nn.Identity(), (torch.randn(4, 3), torch.tensor(1.0))),
        (nn.Identity(), torch.randn(1, 3)),
    ],
    ids=["a mean over samples", "unbatched", "a scalar", "a single sample"],
)
def test_other_batches_stay_whole(model, batch):
    if isinstance(batch, tuple):
        model = nn.Bilinear(3, 1, 2)
    samples, independent = cut(model, [as_inputs(batch)])
    assert not independent
    assert len(samples) == 1


def test_a_quarter_is_held_out():
    fitted, heldout = split([as_inputs(torch.tensor(i)) for i in range(9)])
    assert [int(each.args[0]) for each in heldout] == [3, 7]
    assert [int(each.args[0]) for each in fitted] == [0, 1, 2, 4, 5, 6, 8]
    few = [as_inputs(torch.tensor(0))]
    assert split(few) == (few, few)
