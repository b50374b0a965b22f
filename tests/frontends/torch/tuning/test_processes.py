"""Two processes, each with half of the calibration inputs, against one with all of them."""

import subprocess
import sys

import pytest
import torch

from tests.support.processes import ROOT, convert

WORKER = """
import sys
import torch
sys.path.insert(0, ".")
torch.set_num_threads(1)
from tests.support.processes import convert
number, folder, init = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2
)
torch.save(convert(init, number), f"{folder}/{number}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("init", ["calibrated", "tuned"])
def test_two_processes_agree_with_one(init, tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(number), str(tmp_path), init],
                         cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for number in (0, 1)
    ]  # fmt: skip
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    if init == "calibrated":
        # Sums in another order, solved in float64, rounded to float32 once.
        for name, value in convert(init).items():
            torch.testing.assert_close(first[name], value)
    else:
        assert not torch.equal(first["0.weight"], convert("calibrated")["0.weight"])
