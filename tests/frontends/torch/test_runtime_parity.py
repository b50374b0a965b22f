"""ONNX Runtime against torch: a check that can fail."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import deconvfix
from deconvfix import export_onnx
from deconvfix.errors import ExportError
from deconvfix.frontends.torch import first_run
from deconvfix.frontends.torch.runtime_parity import verify_onnx
from tests.support.exports import Net, convert, integers, noise, seeded


def rewritten(exported, tmp_path, change):
    """A copy of the exported file, changed by hand."""
    proto = onnx.load(exported[0])
    change(proto)
    onnx.save(proto, tmp_path / "changed.onnx")
    return tmp_path / "changed.onnx"


def test_exported_file_passes(exported):
    """The control of the tests below."""
    assert verify_onnx(exported[1], exported[0], (noise(1, 2, 4, 5),)).ok


def edit_weight(edit):
    def change(proto):
        nodes = [node for node in proto.graph.node if node.op_type == "Conv"]
        stored = {each.name: each for each in proto.graph.initializer}[nodes[-1].input[1]]
        weight = numpy_helper.to_array(stored).copy()
        edit(weight)
        stored.CopyFrom(numpy_helper.from_array(weight, stored.name))

    return change


def swap_phases(weight):
    weight[[0, 1]] = weight[[1, 0]]


def halve_precision(weight):
    # What rounding to float16, with its 11 bits, does to weights that are no integers.
    weight *= 1 + 2.0**-11 * np.random.default_rng(0).uniform(-1, 1, weight.shape)


def nudge(weight):
    weight[0, 0, 0, 0] += 0.25


def erase(weight):
    weight[...] = np.nan


@pytest.fixture
def dear(monkeypatch):
    """Each run counts as a long one."""
    monkeypatch.setattr(first_run, "_MOST_OPERATIONS", 0)


def test_the_file_of_a_long_model_passes(dear, exported):
    report = verify_onnx(exported[1], exported[0], (noise(1, 2, 4, 5),))
    assert report.ok
    assert any("Each run is long" in note for note in report.notes)
    assert "seeded noise" not in {each.inputs for each in report.comparisons}


@pytest.mark.parametrize("edit", [swap_phases, halve_precision, nudge, erase])
def test_mistakes_in_the_file_of_a_long_model_fail(dear, edit, exported, tmp_path):
    path = rewritten(exported, tmp_path, edit_weight(edit))
    assert not verify_onnx(exported[1], path, (noise(1, 2, 4, 5),)).ok


@pytest.mark.parametrize("edit", [swap_phases, halve_precision, nudge, erase])
def test_tampered_weight_is_found(exported, tmp_path, edit):
    path = rewritten(exported, tmp_path, edit_weight(edit))
    assert not verify_onnx(exported[1], path, (integers(1, 2, 4, 5),)).ok


def test_other_weights_are_found(exported):
    other = convert(seeded(Net(), seed=1), integers(1, 2, 4, 5))
    assert not verify_onnx(other, exported[0], (noise(1, 2, 4, 5),)).ok


def rename_input(proto):
    proto.graph.input[0].name = "picture"
    for node in proto.graph.node:
        node.input[:] = ["picture" if name == "image" else name for name in node.input]


def test_unknown_input_name_is_refused(exported, tmp_path):
    path = rewritten(exported, tmp_path, rename_input)
    with pytest.raises(ExportError, match=r"\['picture'\]; the model's are called \['image'"):
        verify_onnx(exported[1], path, (noise(1, 2, 4, 5),))


def test_number_of_outputs_must_agree(exported, tmp_path):
    def change(proto):
        proto.graph.output.append(copy.deepcopy(proto.graph.input[0]))

    report = verify_onnx(exported[1], rewritten(exported, tmp_path, change), (noise(1, 2, 4, 5),))
    assert report.problems == ("The file has 2 outputs, the model 1 tensors.",)


def test_inputs_that_the_model_does_not_take_are_no_evidence(exported):
    with pytest.raises(deconvfix.ModelError, match="it cannot be run on inputs of shapes"):
        verify_onnx(exported[1], exported[0], (noise(1, 2, 4, 5), noise(1)))


def test_model_without_evidence_does_not_pass(exported, tmp_path):
    """Zeros are equal to zeros: that shows nothing about the weights."""

    def change(proto):
        for each in proto.graph.initializer:
            value = numpy_helper.to_array(each)
            if value.dtype == np.float32:
                each.CopyFrom(numpy_helper.from_array(np.zeros_like(value), each.name))

    model = copy.deepcopy(exported[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    report = verify_onnx(model, rewritten(exported, tmp_path, change), (noise(1, 2, 4, 5),))
    assert not report.ok
    assert "no evidence" in report.problems[0]


@pytest.mark.parametrize("content", [b"", b"hello" * 20], ids=["empty", "garbage"])
def test_damaged_file_is_refused(exported, tmp_path, content):
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ExportError, match="ONNX Runtime: it does not load the file"):
        verify_onnx(exported[1], tmp_path / "net.onnx", (noise(1, 2, 4, 5),))


def test_missing_file_is_refused(exported, tmp_path):
    with pytest.raises(ExportError):
        verify_onnx(exported[1], tmp_path / "absent.onnx", (noise(1, 2, 4, 5),))


def test_what_is_no_module_is_refused(tmp_path):
    state = nn.Conv1d(2, 3, 3).state_dict()
    with pytest.raises(deconvfix.ModelError, match="it is a OrderedDict"):
        export_onnx(state, tmp_path / "net.onnx", (noise(1, 2, 5),))


def test_exported_program_is_exported_as_its_module(tmp_path):
    layer = nn.ConvTranspose1d(2, 3, 4, 2).eval()
    program = deconvfix.convert(torch.export.export(layer, (noise(1, 2, 5),))).model
    report = export_onnx(program.module(), tmp_path / "net.onnx", (noise(1, 2, 5),))
    assert report.parity.ok
    assert "ConvTranspose" not in report.operators
