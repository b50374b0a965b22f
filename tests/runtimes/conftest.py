"""Two files, and the fake runtimes among the real ones."""

import onnx
import pytest

import deconvfix
from deconvfix.runtimes.registry import RUNTIMES
from tests.support import fake_runtimes
from tests.support.onnx_files import net


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """An original with open sizes, and its converted file."""
    folder = tmp_path_factory.mktemp("runtimes")
    original = net(shape=(1, 3, "h", "w"))
    onnx.save(original, folder / "net.onnx")
    onnx.save(deconvfix.convert(original).model, folder / "fixed.onnx")
    return folder / "net.onnx", folder / "fixed.onnx"


@pytest.fixture
def fakes(monkeypatch):
    for name, home in fake_runtimes.NAMES.items():
        monkeypatch.setitem(RUNTIMES, name, home)
