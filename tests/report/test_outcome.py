"""The word "verified" is said where a model ran and agreed, and nowhere else."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

import deconvfix
from deconvfix.errors import ParityError
from tests.support import command
from tests.support.forms import options_of
from tests.support.onnx_files import net, run


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 2, 4, 2, 1)

    def forward(self, x):
        return self.up(x)


X = (torch.randn(1, 3, 5, 4),)


def unknown_operator():
    """A file with an operator that ONNX Runtime does not have, behind the layers."""
    model = net()
    model.graph.node.append(helper.make_node("Magic", ["y"], ["z"], domain="nobody.knows"))
    model.graph.output[0].name = "z"
    model.opset_import.append(helper.make_opsetid("nobody.knows", 1))
    return model


def strange_inputs():
    """A file that needs inputs which cannot be made up: an index that must be small."""
    table = helper.make_tensor("table", 1, [2, 3, 6, 5], np.ones(180, np.float32))
    gather = helper.make_node("Gather", ["table", "index"], ["image"])
    model = net(extra=[gather])
    model.graph.initializer.append(table)
    index = helper.make_tensor_value_info("index", onnx.TensorProto.INT64, [1])
    model.graph.input.append(index)
    del model.graph.input[0]
    model.graph.node.insert(
        0, helper.make_node("Add", ["given", "far"], ["index"], name="out of range")
    )
    model.graph.input[0].name = "given"
    model.graph.initializer.append(helper.make_tensor("far", 7, [1], [1000]))
    return model


CASES = {
    "module with inputs": (Net, {"example_inputs": X}, "verified"),
    "module without inputs": (Net, {}, "layers verified, the model was not run"),
    "module, no proof": (Net, {"verify": False}, "not verified, as nothing was run"),
    "nothing to do": (nn.Identity, {"example_inputs": X}, ""),
    "all kept": (Net, {"exclude": "*", "example_inputs": X}, ""),
    "fitted, measured": (Net, {**options_of("equalized"), "example_inputs": X}, "verified"),
    "fitted, not run": (
        Net,
        options_of("equalized"),
        "layers verified, the model was not run",
    ),
    "file": (net, {}, "verified"),
    "file, no proof": (net, {"verify": False}, "not verified, as nothing was run"),
    "file of unknown operators": (unknown_operator, {}, "layers verified, the model was not run"),
    "file of strange inputs": (strange_inputs, {}, "layers verified, the model was not run"),
}


@pytest.mark.parametrize("case", CASES)
def test_outcome(case):
    make, options, wanted = CASES[case]
    report = deconvfix.convert(make(), **options).report
    assert report.outcome() == wanted
    assert report.proven is (wanted == "verified")
    assert report.verdict().endswith(f"; {wanted}." if wanted else ".")


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][2].startswith("layers")])
def test_strict_wants_the_model_to_run(case):
    make, options, wanted = CASES[case]
    with pytest.raises(ParityError, match=wanted):
        deconvfix.convert(make(), strict=True, **options)


@pytest.mark.parametrize(
    "case", ["module with inputs", "nothing to do", "fitted, measured", "file"]
)
def test_strict_is_content_with_a_run(case):
    make, options, _ = CASES[case]
    deconvfix.convert(make(), strict=True, **options)


def test_strict_command_writes_nothing_that_was_not_run(tmp_path):
    onnx.save(unknown_operator(), tmp_path / "in.onnx")
    result = run("convert", tmp_path / "in.onnx", "-o", tmp_path / "out.onnx", "--strict")
    assert result.exit_code == 1
    assert "the model was not run" in result.stderr
    assert not (tmp_path / "out.onnx").exists()
    relaxed = run("convert", tmp_path / "in.onnx", "-o", tmp_path / "out.onnx")
    assert relaxed.exit_code == 0
    assert "nobody.knows" in relaxed.stdout, "the reason of ONNX Runtime is shown"
    assert "Layers verified" in relaxed.stdout
    assert "layers verified, the model was not run." in " ".join(relaxed.stdout.split())


def test_verified_is_not_said_of_an_unknown_checkpoint(tmp_path):
    path = command.save(tmp_path)
    result = command.run("convert", path, *command.arch("Net"), "-o", tmp_path / "out.pt")
    assert "Layers verified" in result.stdout
    assert " ".join(result.stdout.split()).endswith("layers verified, the model was not run.")


def test_converted_file_that_does_not_load_is_a_problem(monkeypatch):
    """Only the original's failure is excused: here the converted model gets the unknown operator."""
    from deconvfix.frontends.onnx import parity

    def spoiled(model, path):
        if not any(node.op_type == "ConvTranspose" for node in model.graph.all_nodes()):
            raise deconvfix.ExportError("ONNX Runtime", "it does not load", "it must", "Help")
        return sessions(model, path)

    sessions = parity._sessions
    monkeypatch.setattr(parity, "_sessions", spoiled)
    with pytest.raises(ParityError, match="the converted model does not"):
        deconvfix.convert(net())
