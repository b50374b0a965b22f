"""The int8 benchmark in short: its files, and relations that hold on any machine."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import int8


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A layer whose sizes tell the axes apart, in the five ways."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(6, 4, (3, 4), stride=2, padding=1).eval()
    batches = [(torch.randn(4, 6, 9, 7),) for _ in range(2)]
    # 7 bits, so that no CPU's integer sums saturate.
    files = int8.written(layer, batches, tmp_path_factory.mktemp("int8"), reduce_range=True)
    return {
        each.name: each for each in int8.measure(files, torch.randn(2, 6, 9, 7), scale=2, rounds=3)
    }


def test_only_the_exact_form_runs_in_integers(found):
    ran = [each.operators for each in found.values()]
    assert ran == ["1 ConvTranspose", "1 Conv", "1 ConvTranspose", "1 QLinearConv", "1 QLinearConv"]


def test_what_is_converted_is_the_quantised_function_and_what_is_quantised_is_not(found):
    exact = found["float, exact form"]
    before, after, other = list(found.values())[2:]
    assert exact.snr_db > 100
    step = np.diff(np.unique(before.outputs)).min()
    assert np.abs(after.outputs - before.outputs).max() <= 1.01 * step
    assert all(20 < each.snr_db < 60 for each in (before, after, other))
    assert before.ratio == 1
    assert all(each.milliseconds > 0 and each.ratio > 0 for each in found.values())


def test_the_grid_stays_away_where_the_integers_are_rounded_together(tmp_path):
    """And comes back where a quantiser rounds them one by one."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(6, 4, (3, 4), stride=2, padding=1).eval()
    batches = [(torch.randn(4, 6, 9, 7),) for _ in range(4)]
    files = int8.corrected(layer, batches, tmp_path)
    inputs = torch.randn(2, 6, 9, 7)
    found = int8.measure(files, inputs, rounds=1)
    left = int8.grids(files, inputs, [each.outputs for each in found])
    names = [each.name for each in files]
    ripples = dict(zip(names, (each[0] for each in left), strict=True))
    even = "equalized: quantised, then converted"
    assert ripples[even] == "none"
    assert -60 < float(ripples["equalized: converted, then quantised"]) < -10
    flat = dict(zip(names, (each[1] for each in left), strict=True))
    assert [flat[name] for name in (even, "the same, then in the exact form")] == ["none"] * 2
    ran = dict(zip(names, (each.operators for each in found), strict=True))
    assert ran["resize: quantised, then converted"] == "1 QLinearConv"
    assert ran["the same, then in the exact form"] == "1 QLinearConv"
    assert ran["notch: quantised, then converted"] == "1 Conv"
