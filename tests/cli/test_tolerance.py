"""Files that are not the same function, compared within limits."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from deconvfix.cli.tolerance import Limits, compare_within
from deconvfix.errors import ParityError
from tests.support.command import INPUT, arch
from tests.support.onnx_files import net, run


@pytest.fixture
def files(tmp_path):
    """A model, and the same with weights in steps of 1/64, as after a quantisation."""
    onnx.save(net(), tmp_path / "before.onnx")
    rough = net()
    for tensor in rough.graph.initializer:
        steps = np.round(numpy_helper.to_array(tensor) * 64) / 64
        tensor.CopyFrom(numpy_helper.from_array(steps.astype(np.float32), tensor.name))
    onnx.save(rough, tmp_path / "after.onnx")
    return tmp_path / "before.onnx", tmp_path / "after.onnx"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ((), 1),
        (("--min-snr", "30"), 0),
        (("--min-snr", "90"), 1),
        (("--atol", "1"), 0),
        (("--atol", "1e-6"), 1),
        (("--rtol", "1e-6"), 1),
        (("--atol", "1", "--min-snr", "90"), 1),
    ],
)
def test_limits_decide(files, options, code):
    result = run("verify", *files, *options)
    assert result.exit_code == code, result.output
    if options:
        assert ("Within the limits" in result.stdout) is (code == 0)
        found = json.loads(run("verify", *files, *options, "--json").stdout)
        assert found["ok"] is (code == 0)
        assert 30 < found["outputs"][0]["snr_db"] < 90


def test_checkpoints(net, tmp_path):
    state = {name: value * 1.001 for name, value in load_file(net).items()}
    save_file(state, tmp_path / "other.safetensors")
    command = ("verify", net, tmp_path / "other.safetensors", *arch("Net"), *INPUT)
    assert run(*command).exit_code == 1
    assert run(*command, "--min-snr", "40").exit_code == 0


def test_the_ratio_by_definition():
    before, after = np.array([3.0, 4.0]), np.array([3.0, 4.5])
    (output,) = compare_within(Limits(min_snr=19), before, after).outputs
    assert output.snr_db == pytest.approx(20)
    assert output.ok
    assert not compare_within(Limits(min_snr=21), before, after).ok


def test_limits_of_single_numbers():
    before, after = np.array([0.0, 100.0, 100.0]), np.array([0.1, 101.0, 103.0])
    (output,) = compare_within(Limits(atol=0.1, rtol=0.01), before, after).outputs
    assert (output.max_abs, output.beyond, output.ok) == (3.0, pytest.approx(1 / 3), False)
    assert compare_within(Limits(atol=0.1, rtol=0.03), before, after).ok


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_beyond_all_limits(value):
    before, after = np.ones(3), np.array([1.0, 1.0, value])
    assert not compare_within(Limits(atol=1e9), before, after).ok
    assert not compare_within(Limits(min_snr=-100), before, after).ok
    assert compare_within(Limits(atol=0), after, after).ok, "where both have it, they agree"


def test_no_output_is_no_agreement():
    assert not compare_within(Limits(atol=1), [], []).ok


def test_other_shapes_are_an_error():
    with pytest.raises(ParityError, match="the shapes are"):
        compare_within(Limits(atol=1), np.ones(3), np.ones(4))
