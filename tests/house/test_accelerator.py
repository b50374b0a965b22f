"""The benchmark for accelerators runs, on a CPU here, and says where it was not run."""

import subprocess
import sys

import pytest
import torch

from benchmarks import accelerator
from benchmarks.layers import LAYERS


def test_it_says_that_nothing_was_run():
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    done = subprocess.run(
        [sys.executable, accelerator.__file__], capture_output=True, text=True, check=True
    )
    assert done.stdout == "Not run: torch sees no accelerator here.\n"


def test_every_writing_of_a_layer_is_the_layer():
    layer = next(layer for layer in LAYERS if layer.name == "k4s2_64-3_64")
    x = torch.randn(1, 64, 5, 4, generator=torch.Generator().manual_seed(0))
    found = accelerator.candidates(layer)
    want = found.pop("keep")(x)
    assert found.keys() == accelerator.WRITINGS.keys()
    for module in found.values():
        torch.testing.assert_close(module(x), want, rtol=0, atol=1e-4)


def test_times_are_medians_in_turns():
    calls = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    found = accelerator.timed(runs, torch.device("cpu"), 2)
    assert calls == [*"ab", *"ba"] * 3 + [*"ab"]
    assert all(time >= 0 for time in found.values())
