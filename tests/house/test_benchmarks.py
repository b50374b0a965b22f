"""The fidelity benchmark in short: its structure, and relations that must hold on any machine."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks import by_hand, cases, fidelity, measures

WEIGHTS, CALIBRATED = "equalized, fit to the weights", "equalized, calibrated"


def rows(*names):
    return [each for each in fidelity.ROWS if each.name in names]


@pytest.fixture(scope="module")
def digits():
    """The generator with its table, of few samples."""
    case = cases.load("digits_generator")
    chosen = rows(WEIGHTS, CALIBRATED, "sub-pixel, one kernel for all phases (ICNR)")
    return case, fidelity.run_case(case, chosen, samples=24, growth=(4, 24))


def test_a_calibrated_row_is_closer_and_has_no_ripple(digits):
    _, result = digits
    shared, weights, calibrated = result.rows
    assert shared.distance_db < weights.distance_db < calibrated.distance_db
    assert result.quality < calibrated.quality < weights.quality  # a distance
    assert result.ripple_db > -20
    for each in result.rows:
        assert each.ripple_db <= -100
    assert [each.macs for each in result.rows] == pytest.approx([9 / 4, 1, 1])
    assert calibrated.passes > 0
    assert weights.passes is None
    (few, far), (many, near) = result.growth
    assert (few, many) == (4, 24)
    assert far < near == calibrated.distance_db


def test_the_measures_see_a_conversion_that_changes_nothing(digits):
    """The control: the same function has the same grid, and no distance."""
    case, result = digits
    same = replace(rows(WEIGHTS)[0], options={"to": "subpixel"})
    [row] = fidelity.run_case(case, [same], growth=()).rows
    assert row.distance_db > 100
    assert row.ripple_db == pytest.approx(result.ripple_db, abs=0.1)
    assert row.quality == pytest.approx(result.quality, abs=1e-3)
    assert measures.distance_db(case, case.model) is None


def test_calibration_inputs_are_not_held_out_ones():
    for name in cases.NAMES:
        case = cases.load(name)
        drawn = torch.cat([batch for [batch] in case.draw(12)])
        assert drawn.shape[1:] == case.inputs.shape[1:]
        assert torch.equal(drawn, torch.cat([batch for [batch] in case.draw(12)]))
        assert torch.cdist(drawn.flatten(1), case.inputs.flatten(1)).min() > 0


LAYERS = [
    nn.ConvTranspose2d(3, 4, 4, 2, 1),
    nn.ConvTranspose2d(4, 2, 3, 2, 1, 1, bias=False),
    nn.ConvTranspose1d(3, 2, 16, 8, 4),
    nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=4),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@torch.no_grad()
def test_what_is_done_by_hand_keeps_size_mean_and_equal_phases(layer):
    x = torch.ones(1, layer.in_channels, *[9] * len(layer.stride))
    wanted = layer(x)
    model = nn.Sequential(layer)
    for build in (by_hand.shared_kernel, by_hand.bilinear_then_kernel):
        got = by_hand.replaced(model, ["0"], build)(x)
        assert got.shape == wanted.shape
        middle = tuple(slice(4 * s, 5 * s) for s in layer.stride)
        one, other = (each[(..., *middle)].flatten(2) for each in (got, wanted))
        torch.testing.assert_close(one.mean(2), other.mean(2), rtol=1e-4, atol=1e-5)
        assert (one - one.mean(2, keepdim=True)).abs().max() < 1e-5
        assert (other - other.mean(2, keepdim=True)).abs().max() > 1e-3
    assert model[0] is layer


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@torch.no_grad()
def test_phases_that_are_alike_already_stay_as_they_are(layer):
    """A box over nearest upsampling, whose phases have one kernel: it is copied unchanged."""
    ones = nn.Parameter(torch.zeros_like(layer.weight))
    middle = tuple(slice(p, p + s) for p, s in zip(layer.padding, layer.stride, strict=True))
    ones[(..., *middle)] = torch.randn(ones.shape[:2])[(..., *[None] * len(layer.stride))]
    box = by_hand.replaced(nn.Sequential(layer), [], by_hand.shared_kernel)
    box[0].weight = ones
    x = torch.randn(2, layer.in_channels, *[5] * len(layer.stride))
    torch.testing.assert_close(by_hand.replaced(box, ["0"], by_hand.shared_kernel)(x), box(x))


def test_the_command_prints_and_writes_what_it_measured(tmp_path):
    file = tmp_path / "found.json"
    options = [
        "--fixtures",
        "segmenter",
        "--rows",
        "equalized*",
        "--samples",
        "8",
        "--seconds",
        "1",
    ]
    result = CliRunner().invoke(
        fidelity.main,
        [*options, "--tuned-samples", "8", "--markdown", "--no-growth", "--json", file],
    )
    assert result.exit_code == 0, result.output
    assert (
        "| equalized, calibrated | equal | 0.81 -> 0.81 | 0.61 (1.54) -> 0.61 (1.54) |"
        in result.stdout
    )
    assert "torch " in result.stdout
    found = json.loads(file.read_text())
    assert found["format"] == "deconvfix.benchmarks.fidelity/1"
    [fixture] = found["fixtures"]
    assert [each["row"] for each in fixture["rows"]] == [
        each.name
        for each in fidelity.ROWS
        if each.name.startswith("equalized") and not each.name.startswith(fidelity.SILENT)
    ]
    unknown = CliRunner().invoke(fidelity.main, ["--rows", "nothing"])
    assert unknown.exit_code == 2
