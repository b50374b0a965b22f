"""A checkpoint, and what the command makes of it."""

import numpy as np
import pytest
import torch

from tests.support.command import INPUT, arch, run, save
from tests.support.networks import smooth_batches


@pytest.fixture
def net(tmp_path):
    return save(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The net, and what `convert` makes of it; made once, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    source = save(folder)
    for name in ("out.safetensors", "out.pt", "out.onnx"):
        dynamic = ("--dynamic", "x=0,2,3") if name.endswith(".onnx") else ()
        result = run("convert", source, *arch("Net"), *INPUT, *dynamic, "-o", folder / name)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def samples(tmp_path):
    path = tmp_path / "samples.npz"
    x = torch.cat(smooth_batches((4, 2, 16, 12), count=5)).numpy()
    np.savez(path, x=x)
    return path
