"""A saved program, for tests of files."""

import pytest
import torch

from deconvfix.frontends.program import file as program_file
from tests.support.program_files import Net


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    dynamic = {"x": {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}}
    return torch.export.export(Net().eval(), (torch.randn(2, 2, 6),), dynamic_shapes=dynamic)


@pytest.fixture
def path(program, tmp_path):
    path = tmp_path / "net.pt2"
    program_file.write(program, path)
    return path
