"""Nearest upsampling and convolutions in torch.fx graphs: found without a run, folded, the same function."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional

import deconvfix
from deconvfix.core.folded import Folded
from deconvfix.errors import ModelError
from deconvfix.frontends.torch import graph_folded
from deconvfix.frontends.torch.upsampled import folded_of
from deconvfix.fx import ReplaceTransposedConvs
from deconvfix.plan import Plan
from tests.support.folds import geometries, whole, whole_input


class Up(nn.Module):
    def __init__(self, layer, **how):
        super().__init__()
        self.conv = layer
        self.how = {"mode": "nearest"} | how

    def forward(self, x):
        return self.conv(functional.interpolate(x, **self.how))


def traced(model, seed=0):
    return fx.symbolic_trace(whole(model, seed))


def targets(graph_module):
    return [node.target for node in graph_module.graph.nodes if node.op.startswith("call")]


def check_equal(graph_module, x, names, **options):
    """Whole numbers: both are exact, and equal."""
    done = deconvfix.convert(graph_module, fold=True, **options)
    assert torch.equal(done.model(x), graph_module(x))
    assert [decision.name for decision in done.plan.replaced] == names
    assert done.report.parity.ok
    assert functional.interpolate not in targets(done.model)
    return done


@settings(max_examples=20, deadline=None)
@given(geometries(), st.booleans())
def test_the_same_function_for_any_geometry(case, by_layer):
    layer, factors, sizes, seed = case
    assume(isinstance(folded_of(layer, factors), Folded))
    if by_layer:
        model, name = nn.Sequential(nn.Upsample(scale_factor=factors), layer), "1"
    else:
        model, name = Up(layer, scale_factor=factors), "conv"
    x = whole_input(2, layer.in_channels, *sizes)
    done = check_equal(traced(model, seed), x, [name], example_inputs=(x,))
    assert done.plan.replaced[0].spec.stride == factors
    # The layer alone, against upsampling and the convolution by definition.
    assert {one.what for one in done.report.parity.comparisons} >= {name}


class Decoder(nn.Module):
    """A deconvolution and two pairs that plain code upsamples, with elementwise operations between."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 4, 2, 1)
        self.act = nn.LeakyReLU(0.5)
        self.first = nn.Conv2d(6, 8, 3, padding=1, padding_mode="replicate")
        self.second = nn.Conv2d(8, 3, (5, 3), padding=(2, 1))

    def forward(self, x):
        x = self.act(functional.interpolate(self.up(x), scale_factor=2))
        x = functional.interpolate(self.first(x), None, (2.0, 3.0), "nearest-exact").relu() * 2.0
        return self.second(x)


def test_what_lies_between_and_other_layers():
    model, x = traced(Decoder()), whole_input(1, 4, 3, 4)
    done = check_equal(model, x, ["up", "first", "second"], example_inputs=(x,))
    assert [decision.upsampling is None for decision in done.plan.replaced] == [True, False, False]
    assert done.report.layers[1].macs_after / done.report.layers[1].macs_before == 16 / 36
    # Without inputs, and from the recipe.
    for options in ({}, {"plan": Plan.from_json(done.plan.to_json())}):
        again = deconvfix.convert(model, fold=True, **options)
        assert torch.equal(again.model(x), done.model(x))
    # The original is not changed, and copies of the converted one run.
    assert functional.interpolate in targets(model)
    assert torch.equal(copy.deepcopy(done.model)(x), model(x))


def test_the_form_resize_and_pairs_of_the_model():
    model, x = traced(Decoder()), whole_input(1, 4, 3, 4)
    done = deconvfix.convert(model, to="resize", init="fit", fold=True, example_inputs=(x,))
    assert [decision.form for decision in done.plan.replaced] == ["resize", "subpixel", "subpixel"]
    assert done.plan["up"].reason.endswith(", folded")
    assert done.report.parity.ok
    apart = deconvfix.convert(model, to="resize", init="fit", example_inputs=(x,))
    torch.testing.assert_close(done.model(x), apart.model(x), rtol=1e-5, atol=1e-2)


def test_the_pass_folds_where_it_is_asked_to():
    model, x = traced(Decoder()), whole_input(1, 4, 3, 4)
    wanted = model(x)
    changed = ReplaceTransposedConvs(fold=True)(model).graph_module
    assert functional.interpolate not in targets(changed)
    assert torch.equal(changed(x), wanted)
    left = ReplaceTransposedConvs()(traced(Decoder())).graph_module
    assert functional.interpolate in targets(left)


class Read(nn.Module):
    """What is read twice, called twice, upsampled by a size or linearly, or called as a function."""

    def __init__(self):
        super().__init__()
        for name in ("read", "twice", "sized", "linear", "few"):
            setattr(self, name, nn.Conv2d(3, 3, 1 if name == "few" else 3, padding=1))
        self.weight = nn.Parameter(torch.zeros(3, 3, 3, 3))

    def forward(self, x):
        up = functional.interpolate(x, scale_factor=2)
        twice = self.twice(functional.interpolate(x, scale_factor=2))
        return (
            self.read(up),
            up,
            self.twice(twice),
            self.sized(functional.interpolate(x, size=(8, 8))),
            self.linear(functional.interpolate(x, scale_factor=2, mode="bilinear")),
            self.few(functional.interpolate(x, scale_factor=2)),
            functional.conv2d(functional.interpolate(x, scale_factor=2), self.weight),
        )


def test_what_is_left_says_why():
    model = traced(Read())
    done = deconvfix.convert(model, fold=True)
    assert not done.plan.decisions
    notes = {note.partition(":")[0]: note for note in done.report.notes}
    assert notes.keys() == {"read", "twice", "sized", "few", "conv2d"}
    for name, words in {
        "read": "is read elsewhere too",
        "twice": "serves other layers too",
        "sized": "whole factors are needed",
        "few": "too few taps",
        "conv2d": "it is a function call in the graph",
    }.items():
        assert words in notes[name]


def test_a_wrong_fold_is_noticed(monkeypatch):
    """Negative control: one tap of the folded layer is another one."""
    right = graph_folded.folded_layer

    def wrong(layer, decision):
        folded = right(layer, decision)
        folded.conv.weight.data[0, 0, 0, 0] += 1
        return folded

    monkeypatch.setattr(graph_folded, "folded_layer", wrong)
    model, x = traced(Up(nn.Conv2d(4, 6, 3, padding=1), scale_factor=2)), whole_input(1, 4, 3, 4)
    with pytest.raises(deconvfix.ParityError, match="conv"):
        deconvfix.convert(model, fold=True, example_inputs=(x,))


def test_a_plan_of_another_graph():
    model = traced(Up(nn.Conv2d(4, 6, 3, padding=1), scale_factor=2))
    plan = deconvfix.convert(model, fold=True).plan
    other = traced(Up(nn.Conv2d(4, 6, 5, padding=1), scale_factor=2))
    with pytest.raises(ModelError, match="no such upsampling"):
        deconvfix.convert(other, plan=plan)
