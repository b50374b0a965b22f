"""The optimisers of a distillation, their learning rate, and when they end."""

import itertools
import math

import pytest
import torch
from torch import nn

from deconvfix import Tuning
from deconvfix.frontends.torch.tuning import descent as torch_descent
from tests.support.tuned import convert, decoder


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 has Muon")
def test_wide_kernels_are_moved_by_muon(monkeypatch):
    """The first layer has 3 inputs of 13 free taps and 9 outputs; the second one only 2 outputs."""
    moved = []

    class Watched(torch.optim.Muon):
        def __init__(self, parameters, **options):
            moved.extend(tuple(each.shape) for each in parameters)
            super().__init__(parameters, **options)

    monkeypatch.setattr(torch.optim, "Muon", Watched)
    convert(decoder(), Tuning(steps=2, learning_rate=1e-3))
    assert moved == [(3 * 13, 9)]


@pytest.mark.parametrize(
    ("peak", "chosen", "trials"),
    [
        (3e-3, 3e-3, 3),
        (1.2e-2, 1.2e-2, 4),
        (7.5e-4, 7.5e-4, 5),
        (1.0, 9.6e-2, 6),
        (1e-6, 1.875e-4, 6),
    ],
)
def test_learning_rates_are_climbed(peak, chosen, trials):
    """By steps of two towards the largest gain, and no further than six trials lead."""
    tried = []
    rate, trying = torch_descent._next_rate(tried)
    while trying:
        tried.append((rate, -abs(math.log(rate / peak))))
        rate, trying = torch_descent._next_rate(tried)
    assert rate == pytest.approx(chosen)
    assert len(tried) == trials


@pytest.mark.parametrize(("last", "steps"), [(0.5, 40), (4.0, 21)])
def test_a_run_ends_early_only_if_it_gets_no_better_itself(last, steps):
    """Far from its start at first, as high rates are: what counts is whether it is on its way."""
    parameter, taken, seen = nn.Parameter(torch.zeros(1)), [], []

    def loss(batch):
        taken.append(batch)
        return parameter.sum()

    descent = torch_descent.Descent(
        parameters=[parameter],
        matrices=0,
        batches=itertools.repeat([]),
        loss=loss,
        heldout_loss=lambda: 3 + (last - 3) * len(taken) / 40 if taken else 1.0,
        tuning=Tuning(steps=40, learning_rate=1.0, progress=seen.append),
    )
    _, best = descent.run()
    assert seen[-1].step == len(taken) == steps
    assert best.loss == pytest.approx(min(last, 1.0))
