"""A model and its ONNX file, exported once for each module of tests."""

import pytest
import torch

from deconvfix import export_onnx
from tests.support.exports import Net, convert, integers, seeded


@pytest.fixture(scope="module")
def original():
    return seeded(Net())


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory):
    """A converted net with all its axes dynamic, written once for many tests; not to be changed."""
    path = tmp_path_factory.mktemp("export") / "net.onnx"
    image = integers(2, 2, 5, 6)
    model = convert(original, image)
    report = export_onnx(
        model,
        path,
        (image,),
        dynamic_shapes={"image": {0: "batch", 2: "height", 3: "width"}},
        metadata={"author": "tests"},
    )
    return path, model, report


@pytest.fixture
def example():
    return (torch.randn(2, 3, 5, 6),)
