"""Nearest upsampling and a convolution of a program, folded: the same function, and what is left."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import deconvfix
from deconvfix.core.folded import Folded
from deconvfix.frontends.program.folded import summed_taps


class Decoder(nn.Module):
    """Upsampling by a module and by a function, with and without a bias, in groups."""

    def __init__(self):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2)
        self.first = nn.Conv2d(4, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 4, (3, 5), padding=(1, 0), groups=2, bias=False)
        self.last = nn.ConvTranspose2d(4, 3, 4, 2, 1)

    def forward(self, x):
        x = torch.relu(self.first(self.up(x)))
        x = self.second(functional.interpolate(x, scale_factor=(2.0, 3.0)))
        return self.last(x)


def exported(model, *shape, dynamic=None):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return torch.export.export(model.eval(), (x,), dynamic_shapes=dynamic), x


def upsamplings(program):
    return [str(node.target) for node in program.graph.nodes if "upsample" in str(node.target)]


@pytest.mark.parametrize("is_open", [False, True])
def test_pairs_are_folded_and_proven(is_open):
    torch.manual_seed(1)
    size = torch.export.Dim("size", min=2, max=64)
    dynamic = ({2: size},) if is_open else None
    program, x = exported(Decoder(), 1, 4, 5, 6, dynamic=dynamic)
    done = deconvfix.convert(program, fold=True)
    assert [decision.decision for decision in done.plan.decisions] == ["replaced"] * 3
    assert {decision.op for decision in done.plan.decisions} == {
        *("conv_transpose2d", "Upsample + Conv2d"),
    } or len(done.plan.folded) == 2
    assert done.plan["first"].macs_after < done.plan["first"].macs_before
    assert not upsamplings(done.model)
    assert done.report.parity.ok
    assert done.report.parity.comparisons
    want, got = program.module()(x), done.model.module()(x)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
    # The weights are those of the original, under its names.
    assert done.model.state_dict.keys() == program.state_dict.keys()
    # The recipe carries it out again.
    again = deconvfix.convert(program, plan=deconvfix.Plan.from_json(done.plan.to_json()))
    torch.testing.assert_close(again.model.module()(x), got, rtol=0, atol=0)


def test_summed_taps_are_those_of_the_algebra():
    rng = np.random.default_rng(0)
    folded = Folded((2, 3), (3, 2), ((1, 1), (0, 0)), "zeros", 4, 6, 2, True)
    weight = rng.integers(-4, 5, (6, 2, 3, 2)).astype(np.float64)
    got = summed_taps(torch.from_numpy(weight), folded.factors, folded.groups).numpy()
    np.testing.assert_array_equal(got, folded.transposed(weight))


def test_a_wrong_fold_is_noticed(monkeypatch):
    """Negative control: taps that are summed in another place."""

    def shifted(weight, factors, groups):
        return summed_taps(weight, factors, groups).roll(1, -1)

    monkeypatch.setattr("deconvfix.frontends.program.folded.summed_taps", shifted)
    program, _ = exported(Decoder(), 1, 4, 5, 6)
    with pytest.raises(deconvfix.ParityError):
        deconvfix.convert(program, fold=True)


class Read(nn.Module):
    """An upsampled map that is read twice, and one that is upsampled by a half."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 3)
        self.other = nn.Conv1d(2, 3, 3)

    def forward(self, x):
        up = functional.interpolate(x, scale_factor=2)
        return self.conv(up), up, self.other(functional.interpolate(x, scale_factor=1.5))


def test_what_cannot_be_folded_is_said():
    program, _ = exported(Read(), 1, 2, 8)
    done = deconvfix.convert(program, fold=True)
    assert not done.plan.decisions
    notes = " ".join(done.report.notes)
    assert (
        "conv: nearest upsampling in front of it is not folded: the upsampled map is read" in notes
    )
    assert "other: upsampling in front of it is not folded: it does not repeat" in notes
