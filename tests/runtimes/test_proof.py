"""Files in another runtime: ONNX Runtime itself, and fakes with a fault that must be seen."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from deconvfix.errors import DeconvfixError
from deconvfix.parity.bounds import LIMIT
from deconvfix.parity.runtime import isolated
from deconvfix.runtimes.proof import judge_in, prove_in
from tests.support.onnx_files import net

X = {"x": np.random.default_rng(5).standard_normal((1, 3, 5, 4)).astype(np.float32)}


def proof(files, runtime, *, inputs=(X,), seconds=60.0):
    with isolated(60):
        return prove_in(runtime, *files, inputs, seconds)


def test_onnx_runtime_is_right(files):
    report = proof(files, "onnxruntime", inputs=())
    assert report.ok
    assert (report.before.status, report.after.status) == ("right", "right")
    assert report.before.max_abs == 0
    assert 0 < report.after.max_abs < 1e-4
    assert report.after.error_ratio < LIMIT / 10
    assert report.runtime.startswith("ONNX Runtime 1.")
    assert report.verdict() == f"{report.runtime} gets both files right."


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("runtime", ["Fake", "Reordered", "LoadedAnew"])
def test_another_order_of_summation_is_right(files, runtime):
    report = proof(files, runtime)
    assert report.ok, report
    assert report.runtime == "Fake 1.2"


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ("Half", "y differs by"),
        ("Shifted", "y differs by"),
        ("LastPixel", "y differs by 0.01"),
        ("NotANumber", "y has values that are no finite numbers"),
        ("Cropped", "y has another size on the inputs"),
        ("Twice", "another number of outputs"),
        ("OtherSizesWrong", "noise with h="),
    ],
)
def test_other_values_are_seen(files, runtime, words):
    report = proof(files, runtime)
    assert not report.ok
    for fared in (report.before, report.after):
        assert fared.status == "wrong"
        assert words in fared.words
    assert (
        report.verdict() == "Fake 1.2 gets the converted file wrong, and gets the original wrong."
    )


@pytest.mark.usefixtures("fakes")
def test_the_difference_is_a_number(files):
    half, cropped = proof(files, "Half").after, proof(files, "Cropped").after
    assert 0 < half.max_abs < 0.1
    assert half.error_ratio > LIMIT
    assert cropped.max_abs == math.inf


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("runtime", "status", "words"),
    [
        ("Refuses", "refused", "it does not load the file (opset 17 is too new)"),
        ("FailsToRun", "refused", "on inputs of shapes {'x': (1, 3, 5, 4)} (rank 5 is not"),
        ("Dies", "died", "its process was ended by SIGSEGV"),
        ("Hangs", "late", "it did not finish within 3 s"),
    ],
)
def test_what_does_not_run_is_said(files, runtime, status, words):
    report = proof(files, runtime, seconds=3.0)
    assert not report.ok
    for fared in (report.before, report.after):
        assert fared.status == status
        assert words in fared.words
        assert fared.max_abs is None


@pytest.mark.usefixtures("fakes")
def test_a_runtime_that_gets_the_original_wrong(files):
    report = proof(files, "WrongOriginal")
    assert report.ok
    assert (report.before.status, report.after.status) == ("wrong", "right")
    assert report.verdict() == "Fake 1.2 gets the original wrong; the converted file is right."
    assert report.to_dict()["verdict"] == report.verdict()


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(("runtime", "alike"), [("Shifted", 1), ("Unlike", 0), ("Twice", 0)])
def test_whether_both_files_are_wrong_in_the_same_way_is_said(files, runtime, alike):
    report = proof(files, runtime)
    assert (report.before.status, report.after.status) == ("wrong", "wrong")
    assert sum("not the conversion" in note for note in report.notes) == alike


@pytest.mark.usefixtures("fakes")
def test_a_converted_file_of_another_function_is_wrong_where_the_original_is_right(files, tmp_path):
    other = tmp_path / "other.onnx"
    onnx.save(net(shape=(1, 3, "h", "w"), seed=1), other)
    report = proof((files[0], other), "Fake")
    assert not report.ok
    assert (report.before.status, report.after.status) == ("right", "wrong")


@pytest.mark.usefixtures("fakes")
def test_a_runtime_without_batches_gets_one_sample(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(net(), path)
    report = proof((path, path), "OneSample")
    assert report.ok
    assert report.notes == ("Fake takes one sample: inputs with more were left out.",)


@pytest.mark.usefixtures("fakes")
def test_constant_outputs_are_no_evidence(tmp_path):
    proto = net(shape=(1, 3, 5, 4))
    proto.graph.node.append(helper.make_node("Sub", ["y", "y"], ["z"]))
    proto.graph.output[0].name = "z"
    path = tmp_path / "constant.onnx"
    onnx.save(proto, path)
    report = proof((path, path), "Fake")
    assert not report.ok
    assert report.after.status == "unproven"
    assert "constant" in report.after.words


def test_an_original_that_does_not_run_is_an_error(files, tmp_path):
    proto = onnx.load(files[0])
    proto.graph.node[0].op_type = "NoSuchOperator"
    path = Path(tmp_path, "bad.onnx")
    onnx.save(proto, path)
    with pytest.raises(DeconvfixError, match="NoSuchOperator"):
        proof((path, files[1]), "onnxruntime")


@pytest.mark.usefixtures("fakes")
def test_one_original_judges_many_files(files):
    judge = judge_in("WrongOriginal", files[0])
    assert [judge(path).status for path in (*files, files[0])] == ["wrong", "right", "wrong"]
