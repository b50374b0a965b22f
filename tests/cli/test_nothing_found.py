"""Files without a transposed convolution: said to be that, and copied byte for byte."""

import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from tests.support.command import run


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x)


def onnx_file(folder, **place):
    weight = torch.randn(4, 3, 3, 3).numpy()
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 3, 6, 5])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "in.onnx", **place)
    return folder / "in.onnx"


def checkpoint(folder):
    torch.save({"epoch": 3, "state_dict": Plain().state_dict()}, folder / "in.pt")
    return folder / "in.pt"


def safetensors(folder):
    save_file(Plain().state_dict(), folder / "in.safetensors", {"license": "mine"})
    return folder / "in.safetensors"


def program(folder):
    exported = torch.export.export(Plain().eval(), (torch.randn(1, 3, 6, 5),))
    torch.export.save(exported, folder / "in.pt2")
    return folder / "in.pt2"


@pytest.mark.parametrize("make", [onnx_file, checkpoint, safetensors, program])
@pytest.mark.parametrize("strict", [(), ("--strict",)])
def test_output_is_the_input(tmp_path, make, strict):
    source = make(tmp_path)
    (tmp_path / "other").mkdir()
    arch = () if source.suffix in (".onnx", ".pt2") else ("--arch", f"{__name__}:Plain")
    for output in (source.with_stem("out"), tmp_path / "other" / source.name):
        result = run("convert", source, *arch, "-o", output, *strict)
        assert result.exit_code == 0, result.output
        assert "0 transposed convolutions found: nothing to do." in result.stdout
        words = " ".join(result.stdout.split())
        assert "no transposed convolution: the output is a copy of it, byte for byte" in words
        assert "erified" not in words
        assert output.read_bytes() == source.read_bytes()


def test_weights_beside_the_file(tmp_path):
    """In the same folder the copy finds them; in another one they go along."""
    place = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0}
    source = onnx_file(tmp_path, **place)
    (tmp_path / "other").mkdir()
    for output in (tmp_path / "out.onnx", tmp_path / "other" / "out.onnx"):
        assert run("convert", source, "-o", output).exit_code == 0
        first, second = (onnx.load(path).graph.initializer[0] for path in (source, output))
        assert (numpy_helper.to_array(first) == numpy_helper.to_array(second)).all()
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


def test_another_kind_of_file_is_no_copy(tmp_path):
    source = checkpoint(tmp_path)
    output = tmp_path / "out.safetensors"
    result = run("convert", source, "--arch", f"{__name__}:Plain", "-o", output)
    assert result.exit_code == 0
    assert "a copy of it" not in result.stdout
