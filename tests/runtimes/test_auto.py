"""The choice by measurement, in runtimes whose times are known."""

import json

import numpy as np
import onnx
import pytest

import deconvfix
from deconvfix.errors import OptionError
from deconvfix.plan import Plan
from deconvfix.runtimes import auto
from deconvfix.runtimes.cache import Cache
from tests.support.onnx_files import net

# up1 has unequal strides, which no DepthToSpace has; up2 may have all of these.
PROFILE = """
title = "a runtime of the tests"
[prefer]
value = ["cropped/crd", "cropped/dcr", "phases/slices"]
source = "three of them"
"""
FIXED = {"shape": (1, 3, 6, 5)}


@pytest.fixture(autouse=True)
def alone(fakes, tmp_path, monkeypatch):
    """All fakes can be named, and nothing was measured before."""
    monkeypatch.setenv("DECONVFIX_CACHE", str(tmp_path / "timings.jsonl"))


@pytest.fixture
def target(tmp_path):
    """Gives the path of a profile that is called like a runtime."""

    def named(runtime):
        path = tmp_path / f"{runtime}.toml"
        path.write_text(PROFILE)
        return str(path)

    return named


def chosen(plan):
    """Layer -> its writing, or the decision."""
    return {
        one.name: f"{one.settings.convolution}/{one.settings.shuffle}"
        if one.settings
        else one.decision
        for one in plan.decisions
    }


def auto_of(target, model=None, **options):
    return deconvfix.convert(model or net(**FIXED), to="auto", target=target, **options)


def operators(model):
    return [node.op_type for node in model.graph.node]


def test_the_fastest_writing_is_chosen_and_the_layer_without_one_stays(target):
    found = auto_of(target("FastDcr"))
    assert chosen(found.plan) == {"up1": "kept", "up2": "cropped/dcr"}
    assert "cropped/dcr is 2 times as fast in Fake 1.2 (2.00 to 2.00)" in found.plan["up2"].reason
    assert "phases/slices, is slower in Fake 1.2 (0.50 to 0.50)" in found.plan["up1"].reason
    assert operators(found.model).count("ConvTranspose") == 1
    assert found.report.parity.ok
    assert any(
        "whole model in Fake 1.2 on 1 thread: 2 times as fast" in n for n in found.report.notes
    )


def test_a_layer_is_timed_with_what_follows_it(target, monkeypatch):
    """The cache tells it from the layer alone, and the report says what moves."""
    proto, seen = net(**FIXED), []
    own = auto._Measurements._by_time
    monkeypatch.setattr(
        auto._Measurements,
        "_by_time",
        lambda self, files, single, judge: (
            seen.append([node.op_type for node in single.model.graph])
            or own(self, files, single, judge)
        ),
    )
    proto.graph.node[-1].output[0] = "t"
    proto.graph.node.append(onnx.helper.make_node("Relu", ["t"], ["y"], name="act"))
    found = auto_of(target("FastDcr"), proto)
    assert seen == [["ConvTranspose"], ["ConvTranspose", "Relu"]]
    assert found.plan["up2"].reason.endswith("; Relu behind it comes before the shuffle")
    kinds = operators(found.model)
    assert kinds.index("Relu", 2) < kinds.index("DepthToSpace")


def test_the_recipe_is_an_ordinary_one(target):
    found = auto_of(target("FastDcr"))
    plan = Plan.from_json(found.plan.to_json())
    assert plan.to == deconvfix.convert(net(**FIXED)).plan.to
    again = deconvfix.convert(net(**FIXED), plan=plan)
    assert again.model.graph == found.model.graph


@pytest.mark.parametrize("runtime", ["Noisy", "SlowWritings"])
def test_what_is_not_faster_stays(target, runtime):
    found = auto_of(target(runtime))
    assert chosen(found.plan) == {"up1": "kept", "up2": "kept"}
    words = {"Noisy": "is no faster", "SlowWritings": "is slower"}[runtime]
    assert all(words in one.reason for one in found.plan.decisions)
    assert operators(found.model) == operators(net(**FIXED))


def test_wrong_values_are_never_chosen(target):
    found = auto_of(target("WrongDcr"))
    assert chosen(found.plan) == {"up1": "kept", "up2": "kept"}
    reason = found.plan["up2"].reason
    assert "cropped/dcr is faster, and Fake 1.2 gets it wrong (y differs by 1 on" in reason


def test_a_writing_that_ends_the_process_is_left_out(target):
    found = auto_of(target("DeadlyDcr"))
    assert chosen(found.plan) == {"up1": "kept", "up2": "kept"}
    assert "is slower in Fake" in found.plan["up2"].reason


def test_a_layer_that_is_wrong_there_is_rescued_by_the_fastest_right_writing(target):
    found = auto_of(target("WrongLayers"))
    assert chosen(found.plan) == {"up1": "phases/slices", "up2": "cropped/crd"}
    assert "Fake 1.2 gets it wrong (y differs by 1" in found.plan["up2"].reason
    # It stays rescued though the whole model is slower with it.
    assert any("slower" in note or "times as fast" in note for note in found.report.notes)


def test_a_layer_that_no_writing_rescues_is_refused(target):
    found = auto_of(target("Shifted"))
    assert chosen(found.plan) == {"up1": "refused", "up2": "refused"}
    assert "gets no writing of it right" in found.plan["up1"].reason


def test_a_slower_whole_takes_its_layers_back(target):
    found = auto_of(target("SlowAsWhole"))
    assert chosen(found.plan) == {"up1": "kept", "up2": "kept"}
    assert (
        "faster alone, but not in the whole model: 0.3 times as fast (0.25 to 0.25)"
        in found.plan["up2"].reason
    )
    assert any("Taken back: up2." in note for note in found.report.notes)


def test_a_whole_that_does_not_run_takes_its_layers_back(target):
    found = auto_of(target("RefusesWhole"))
    assert chosen(found.plan) == {"up1": "kept", "up2": "kept"}
    assert "not in the whole model: the converted model does not run" in found.plan["up2"].reason
    assert "(too much at once)" in found.plan["up2"].reason


def test_what_was_measured_before_is_not_measured_again(target, monkeypatch):
    first = auto_of(target("FastDcr"))
    remembered = Cache().found

    def never(*args, **kwargs):
        raise AssertionError("it was timed")

    monkeypatch.setattr(auto, "time_in", never)
    again = auto_of(target("FastDcr"))
    assert chosen(again.plan) == chosen(first.plan)
    assert again.report.notes == first.report.notes
    assert remembered == Cache().found
    # The control: for other threads nothing was measured.
    with pytest.raises(AssertionError, match="it was timed"):
        auto_of(target("FastDcr"), threads=2)


def test_a_cache_that_keeps_nothing_is_a_way_around_it(target, monkeypatch):
    monkeypatch.setenv("DECONVFIX_CACHE", "/dev/null")
    calls = []
    real = auto.time_in
    monkeypatch.setattr(auto, "time_in", lambda *a, **k: calls.append(a) or real(*a, **k))
    for _ in range(2):
        auto_of(target("SlowWritings"))
    assert len(calls) == 2 * 4


def twins():
    """Two layers of one geometry, one after the other, and their weights differ."""
    rng = np.random.default_rng(3)
    weights = [rng.standard_normal((3, 3, 1, 2)).astype(np.float32) for _ in range(2)]
    nodes = [
        onnx.helper.make_node("ConvTranspose", ["x", "w0"], ["a"], name="up0", strides=[1, 1],
                              pads=[0, 0, 0, 1]),
        onnx.helper.make_node("ConvTranspose", ["a", "w1"], ["y"], name="up1", strides=[1, 1],
                              pads=[0, 0, 0, 1]),
    ]  # fmt: skip
    graph = onnx.helper.make_graph(
        nodes,
        "twins",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 3, 5, 4])],
        [onnx.helper.make_tensor_value_info("y", 1, [1, 3, 5, 4])],
        [onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )


def test_layers_of_one_geometry_are_measured_once(target, monkeypatch):
    calls = []
    real = auto.time_in
    monkeypatch.setattr(auto, "time_in", lambda *a, **k: calls.append(a) or real(*a, **k))
    found = auto_of(target("SlowWritings"), twins())
    assert chosen(found.plan) == {"up0": "kept", "up1": "kept"}
    assert len(calls) == 2  # a first load of all, and the rest


def test_open_sizes_need_inputs(target):
    found = auto_of(target("FastDcr"), net())
    assert chosen(found.plan) == {"up1": "refused", "up2": "refused"}
    assert "up1: the size of its input is not known; " in found.plan["up1"].reason
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 5)).astype(np.float32)
    found = auto_of(target("FastDcr"), net(), example_inputs=(x,))
    assert chosen(found.plan) == {"up1": "kept", "up2": "cropped/dcr"}
    [geometry] = {
        key.geometry
        for key in Cache().found
        if key.writing == "cropped/dcr" and "spec" in key.geometry
    }
    # After up1, of strides 2 and 3, kernel 4 x 3 and pads 1, 0, 2, 1: the sizes of a real run.
    assert json.loads(geometry)["input"] == [2, 5, 11, 14]


def test_what_is_asked_for_is_measured_alone(target):
    found = auto_of(target("FastDcr"), convolution="phases")
    assert chosen(found.plan) == {"up1": "kept", "up2": "kept"}
    assert auto_of(target("FastDcr"), exclude="up2").plan["up2"].reason == "not selected"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "coreml"}, "files for it are not run here"),
        ({"target": "nothing"}, "nothing"),
        ({"fold": True}, "what is folded is not measured"),
        ({"threads": 0}, "a positive number"),
        ({"layer_seconds": float("nan")}, "a positive number"),
    ],
)
def test_what_cannot_be_asked_for(options, words):
    with pytest.raises(OptionError, match=words):
        deconvfix.convert(net(**FIXED), to="auto", **options)


def test_a_runtime_that_is_not_installed_says_how_to_install_it(target):
    with pytest.raises(OptionError, match="pip install fake"):
        auto_of(target("NotInstalled"))
