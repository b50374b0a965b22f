"""Calibrated fits of programs: the same as those of the module."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deconvfix
from deconvfix.errors import DeconvfixError
from deconvfix.frontends.program import file as program_file
from deconvfix.frontends.program.frontend import FRONTEND
from tests.support.programs import export

# torch's own decomposition pass warns about its own tree code.
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")


class Chain(nn.Module):
    """Layers that are modules and a call, one of them without a bias."""

    def __init__(self):
        super().__init__()
        self.a = nn.ConvTranspose2d(3, 4, 4, 2, 1)
        self.b = nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, groups=2, bias=False)
        self.w = nn.Parameter(torch.randn(4, 2, 4, 4))

    def forward(self, x):
        y = torch.tanh(self.b(torch.relu(self.a(x))))
        return F.conv_transpose2d(y, self.w, stride=2, padding=1)


def batches(count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(3, 3, 6, 7, generator=generator),) for _ in range(count)]


def error_of(model, other, inputs):
    return float(sum((model(*x) - other(*x)).square().sum() for x in inputs))


CALIBRATED = [
    {"to": "equalized"},
    {"to": "equalized", "grow": 1},
    {"to": "resize"},
    {"to": "notch", "reach": 1},
]


@pytest.mark.parametrize("decomposed", [False, True], ids=["training", "decomposed"])
@pytest.mark.parametrize("options", CALIBRATED, ids=str)
def test_a_calibrated_program_equals_the_calibrated_module(options, decomposed, tmp_path):
    """To the bit: the same moments of the same tensors, written into other places."""
    model = Chain()
    program = export(model)
    if decomposed:
        program = program.run_decompositions()
    state = copy.deepcopy(dict(program.state_dict))
    options = {**options, "init": "calibrated", "calibration": batches(), "include": ["a", "b"]}
    want = deconvfix.convert(model, **options)
    got = deconvfix.convert(program, **options)
    assert all(torch.equal(program.state_dict[name], value) for name, value in state.items())
    assert [got.plan[name].reason for name in "ab"] == [want.plan[name].reason for name in "ab"]
    assert got.report.parity.ok
    assert got.report.fidelity.ripple_db_after < -120 < got.report.fidelity.ripple_db_before
    assert got.report.fidelity.calibration_samples == 15
    program_file.write(got.model, tmp_path / "net.pt2")
    loaded = program_file.read(tmp_path / "net.pt2").module()
    with torch.no_grad():
        for x in batches(1):
            assert torch.equal(loaded(*x), got.model.module()(*x))
            torch.testing.assert_close(loaded(*x), want.model(*x), rtol=0, atol=0)


@pytest.mark.parametrize("options", CALIBRATED, ids=str)
def test_a_calibrated_program_is_closer_than_one_fitted_to_its_weights(options):
    program = export(Chain())
    calibrated = {"init": "calibrated", "calibration": batches()}
    got = deconvfix.convert(program, **options, **calibrated)
    worse = deconvfix.convert(program, **options, init="fit")
    assert all(each.reason.startswith("calibrated") for each in got.plan.decisions)
    models = [each.module() for each in (program, got.model, worse.model)]
    with torch.no_grad():
        assert error_of(*models[:2], batches(seed=1)) < error_of(*models[::2], batches(seed=1))
    changed = copy.deepcopy(program)
    same = deconvfix.convert(changed, **options, **calibrated, inplace=True).model
    assert same is changed
    with torch.no_grad():
        assert torch.equal(same.module()(*batches(1)[0]), models[1](*batches(1)[0]))


@pytest.mark.parametrize("to", ["equalized", "resize", "notch"])
@pytest.mark.parametrize("key", ["a.weight", "a.bias"])
def test_a_wrong_calibrated_kernel_or_bias_is_noticed(to, key):
    program = export(Chain())
    got = deconvfix.convert(program, to=to, init="calibrated", calibration=batches())
    assert FRONTEND.verify(program, got.model, [], got.plan).ok
    bare = [copy.copy(each) for each in got.plan.decisions]
    for each in bare:
        object.__setattr__(each, "fitted", None)
    weights_only = dataclasses.replace(got.plan, decisions=tuple(bare))
    assert not FRONTEND.verify(program, got.model, [], weights_only).ok
    with torch.no_grad():
        got.model.state_dict[key].view(-1)[1].add_(0.01)
    assert not FRONTEND.verify(program, got.model, [], got.plan).ok


class TiedBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 4, 2, 1)
        self.w = nn.Parameter(torch.randn(3, 2, 4, 4))

    def forward(self, x):
        y = self.up(x) + self.up.bias.sum()
        return F.conv_transpose2d(y, self.w, self.w.mean((0, 2, 3)) * 0, stride=2)


def test_biases_that_cannot_be_set_leave_the_fit_to_the_weights():
    program = export(TiedBias())
    got = deconvfix.convert(program, to="equalized", init="calibrated", calibration=batches())
    assert got.report.parity.ok
    [note] = [each for each in got.report.notes if each.startswith("up: ")]
    assert "because its bias up.bias is used elsewhere too; only a layer whose" in note
    assert got.plan["up"].fitted is None
    assert "minimum-norm" in got.plan["up"].reason


def test_a_regression_that_takes_too_much_memory_is_left_out_of_a_program():
    """16 KiB: enough for the layer of two groups with a kernel of 3, not for the others."""
    program = export(Chain())
    options = {"init": "calibrated", "calibration": batches(), "to": "equalized"}
    got = deconvfix.convert(program, memory=2**-16, **options)
    fitted = {each.name: each.fitted is not None for each in got.plan.decisions}
    wholly = deconvfix.convert(program, **options)
    assert list(fitted.values()) == [False, True, False]
    assert all(each.fitted is not None for each in wholly.plan.decisions)
    notes = [each for each in got.report.notes if "GiB are allowed (`memory`)" in each]
    assert [each.split(":")[0] for each in notes] == [each for each in fitted if not fitted[each]]
    assert got.report.parity.ok


def test_a_program_brings_the_shapes_that_inputs_are_drawn_in():
    program = export(Chain())
    got = deconvfix.convert(program, to="equalized", init="calibrated", calibration="normal")
    assert got.report.fidelity.calibration_samples == 256
    assert got.report.parity.ok


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"init": "tuned", "calibration": batches()}, "init: it is 'tuned', and the model is a"),
        ({}, "calibration: there are no calibration inputs"),
        ({"calibration": []}, "calibration: it is empty"),
        ({"calibration": [(torch.ones(1, 2, 6, 7),)]}, "cannot be run on inputs of shapes"),
        ({"calibration": [(torch.full((1, 3, 6, 7), torch.nan),)]}, "a: its inputs or outputs are"),
    ],
    ids=["tuned", "none", "empty", "shape", "not finite"],
)
def test_what_is_wrong_with_a_calibration_is_said(options, text):
    with pytest.raises(DeconvfixError) as caught:
        deconvfix.convert(export(Chain()), to="equalized", **{"init": "calibrated", **options})
    assert text in str(caught.value)
    assert all((caught.value.where, caught.value.found, caught.value.needed, caught.value.todo))
