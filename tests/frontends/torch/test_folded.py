"""Nearest upsampling and convolutions in torch modules: found, folded, the same function; others stay."""

import copy

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import deconvfix
from deconvfix.core.folded import Folded
from deconvfix.errors import ModelError
from deconvfix.frontends.torch.frontend import FRONTEND
from deconvfix.frontends.torch.upsampled import folded_of
from deconvfix.plan import Plan
from tests.support.folds import geometries, whole, whole_input
from tests.support.onnx_models import operators


class Up(nn.Module):
    """As diffusers does it: the convolution is a layer, upsampling is a call."""

    def __init__(self, layer, **how):
        super().__init__()
        self.conv = layer
        self.how = how or {"scale_factor": 2.0}

    def forward(self, x):
        x = functional.interpolate(x, mode="nearest", **self.how)
        return self.conv(x)


def check_equal(model, x, count=1):
    """Whole numbers: both are exact, and equal."""
    done = deconvfix.convert(model, example_inputs=(x,), fold=True)
    assert torch.equal(done.model(x), model(x))
    assert len(done.plan.replaced) == count
    assert done.report.parity.ok
    assert done.report.parity.ran
    return done


@settings(max_examples=20, deadline=None)
@given(geometries(), st.booleans())
def test_the_same_function_for_any_geometry(case, by_layer):
    layer, factors, sizes, seed = case
    assume(isinstance(folded_of(layer, factors), Folded))
    if by_layer:
        model = nn.Sequential(nn.Upsample(scale_factor=factors), layer)
    else:
        model = Up(layer, scale_factor=factors)
    x = whole_input(2, layer.in_channels, *sizes)
    done = check_equal(whole(model, seed), x)
    assert done.plan.replaced[0].spec.stride == factors


def test_multiply_accumulates_and_the_place_of_the_upsampling():
    model = whole(nn.Sequential(Up(nn.Conv2d(4, 6, 3, padding=1)), nn.ReLU()))
    [decision] = check_equal(model, whole_input(2, 4, 5, 7)).plan.replaced
    assert (decision.name, decision.upsampling) == ("0.conv", "0")
    assert (decision.macs_before, decision.macs_after) == (36 * 24, 16 * 24)


def test_a_size_that_is_a_whole_multiple():
    check_equal(whole(Up(nn.Conv2d(4, 6, 3), size=(10, 21))), whole_input(2, 4, 5, 7))


def test_nodes_between_and_casts():
    class Between(Up):
        def forward(self, x):
            x = functional.interpolate(x, mode="nearest", **self.how).relu().to(torch.float64)
            return self.conv(x.contiguous().to(x.dtype) * 2.0)

    model = whole(Between(nn.Conv2d(4, 6, 3, padding=1))).double()
    check_equal(model, whole_input(2, 4, 5, 7).double())


def test_copies_pickles_programs_and_files_of_it(tmp_path):
    model = whole(
        nn.Sequential(Up(nn.Conv2d(4, 6, (3, 5), padding=(1, 2), padding_mode="replicate")))
    )
    x = whole_input(2, 4, 5, 7)
    made, wanted = check_equal(model, x).model, model(x)
    assert torch.equal(copy.deepcopy(made)(x), wanted)
    assert torch.equal(torch.export.export(made, (x,)).module()(x), wanted)
    path = tmp_path / "net.onnx"
    deconvfix.export_onnx(made, path, (x,))
    assert "Resize" not in operators(onnx.load(path))


def test_a_recipe_carries_it_out_without_inputs():
    model = whole(
        nn.Sequential(Up(nn.Conv2d(4, 6, 3, padding=1)), nn.Upsample(None, 2), nn.Conv2d(6, 3, 3))
    )
    x = whole_input(2, 4, 5, 7)
    plan = Plan.from_json(check_equal(model, x, 2).plan.to_json())
    again = deconvfix.convert(model, plan=plan)
    assert torch.equal(again.model(x), model(x))


def test_other_factors_are_an_error_and_not_another_function():
    model = whole(Up(nn.Conv2d(4, 6, 3), size=(10, 21)))
    done = check_equal(model, whole_input(2, 4, 5, 7))
    with pytest.raises(ModelError, match="was folded into the convolution"):
        done.model(whole_input(2, 4, 5, 21))


class ReadTwice(Up):
    def forward(self, x):
        x = functional.interpolate(x, mode="nearest", **self.how)
        return self.conv(x) + x.mean()


class AsksForSize(Up):
    def forward(self, x):
        x = functional.interpolate(x, mode="nearest", **self.how)
        return self.conv(x) * x.shape[-1]


class GivesItOut(Up):
    def forward(self, x):
        x = functional.interpolate(x, mode="nearest", **self.how)
        return self.conv(x), x


class GetsMore(Up):
    def forward(self, x):
        return self.conv(functional.interpolate(x, mode="nearest", **self.how)).mean() + self.conv(
            x
        )


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (ReadTwice(nn.Conv2d(4, 6, 3)), "read elsewhere too"),
        (AsksForSize(nn.Conv2d(4, 6, 3)), "read elsewhere too"),
        (GivesItOut(nn.Conv2d(4, 6, 3)), "read elsewhere too"),
        (GetsMore(nn.Conv2d(4, 6, 3)), "run for each other alone"),
        (Up(nn.Conv2d(4, 6, 3, stride=2)), "both must be 1"),
        (Up(nn.Conv2d(4, 6, 2)), "more taps than"),
        (Up(nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect")), "a wider one is no border"),
        (Up(nn.Conv2d(4, 6, 3, padding=2, padding_mode="circular")), "of the border"),
        (Up(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3))), "sums of its taps"),
    ],
)
def test_what_cannot_be_folded_stays_and_is_named(model, sentence):
    x = whole_input(2, 4, 5, 7)
    done = deconvfix.convert(model.eval(), example_inputs=(x,), fold=True)
    assert not done.plan.decisions
    [note] = [note for note in done.report.notes if note.startswith("conv: ")]
    assert sentence in note


def test_one_upsampling_for_two_layers_stays():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Upsample(scale_factor=2)
            self.a, self.b = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 3)

        def forward(self, x):
            return self.b(self.up(self.a(self.up(x))))

    done = deconvfix.convert(Shared(), example_inputs=(whole_input(2, 4, 5, 7),), fold=True)
    assert not done.plan.decisions
    assert sum("run for each other alone" in note for note in done.report.notes) == 2


def test_without_inputs_a_note_says_that_they_are_needed():
    done = deconvfix.convert(Up(nn.Conv2d(4, 6, 3)), fold=True)
    assert not done.plan.decisions
    assert any("is seen by a run" in note for note in done.report.notes)


def test_a_wrong_tap_and_a_wrong_border_are_noticed():
    torch.manual_seed(0)
    model = nn.Sequential(Up(nn.Conv2d(4, 6, 3, padding=1))).eval()
    x = torch.randn(2, 4, 5, 7)
    done = deconvfix.convert(model, example_inputs=(x,), fold=True)
    assert FRONTEND.verify(model, done.model, [(x,)], done.plan).ok
    done.model[0].conv.conv.weight.data[3, 2, 1, 0] *= 1.0001
    report = FRONTEND.verify(model, done.model, [(x,)], done.plan)
    assert not report.ok
    assert report.first_departure == "0.conv"
    other = nn.Sequential(Up(nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"))).eval()
    other.load_state_dict(model.state_dict())
    copies = deconvfix.convert(other, example_inputs=(x,), fold=True)
    assert not FRONTEND.verify(model, copies.model, [(x,)], done.plan).ok


def test_the_decoder_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 32), norm_num_groups=4, layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    ).decoder.eval()  # fmt: skip
    x = torch.randn(1, 4, 6, 8)
    done = deconvfix.convert(model, example_inputs=(x,), fold=True)
    assert len(done.plan.replaced) == 2
    assert done.report.parity.ran
    assert not [r for r in done.plan.replaced if "upsamplers" not in r.name]
    assert np.allclose(done.model(x).detach(), model(x).detach(), atol=1e-4)
