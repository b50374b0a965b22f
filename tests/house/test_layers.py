"""The benchmark of the layers of published networks in short: what they are, and its table."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks import layers
from deconvfix.errors import OptionError
from deconvfix.runtimes.verdict import Verdict

# The last axes of the outputs, by hand.
SIZES = {
    "hifigan_k16s8_512-256_400": (256, 3200),
    "encodec_k10s5_256-128_600": (128, 3005),
    "k3s2op1_64-64_80": (64, 160, 160),
    "dw_k4s2_64_80": (64, 160, 160),
    "fcn_k64s32_21_16": (21, 544, 544),
    "s21_64-64_40x160": (64, 80, 160),
    "3d_k3s2op1_64-32_12": (32, 24, 24, 24),
    "dpt_k4s4_256-256_24": (256, 96, 96),
    "vitpose_k4s2_256-256_16x12": (256, 32, 24),
}


def named(name):
    return next(layer for layer in layers.LAYERS if layer.name == name)


@pytest.mark.parametrize("name", SIZES)
def test_the_layers_have_the_sizes_of_their_names(name):
    [output] = layers.model_of(named(name)).graph.output
    found = [size.dim_value for size in output.type.tensor_type.shape.dim]
    assert found == [1, *SIZES[name]]


def test_there_are_twenty_four_of_different_names():
    assert len({layer.name for layer in layers.LAYERS}) == len(layers.LAYERS) == 24


@pytest.mark.parametrize("name", ["fcn_k4s2_21_128", "fcn_k16s8_21_64", "dwbilinear_k4s2_64_64"])
def test_bilinear_weights_interpolate(name):
    """A ramp of each channel stays a ramp of that channel, away from the borders."""
    layer = named(name)
    channels = layer.channels[0]
    ramp = np.arange(layer.sizes[1], dtype=np.float32) + np.zeros((1, channels, *layer.sizes), "f")
    scale = 1 + np.arange(channels, dtype=np.float32).reshape(-1, 1, 1)
    session = onnxruntime.InferenceSession(layers.model_of(layer).SerializeToString())
    [y] = session.run(None, {"x": ramp * scale})
    inside = y[0, :, 40:-40, 40:-40] / scale
    np.testing.assert_allclose(np.diff(inside, axis=-1), 1 / layer.stride[1], rtol=1e-3)
    np.testing.assert_allclose(np.diff(inside, axis=-2), 0, atol=1e-3)


SMALL = layers.Layer("small", (4, 3), (4, 4), (2, 2), (8, 7), padding=1)


def refused(proto, feed):
    raise OptionError("up", "it is small", "a large one", "Take another")


def test_a_layer_is_timed_with_all_of_its_writings():
    writings = {**layers.WRITINGS, "refused": refused, layers.CONTROL: lambda proto, _: proto}
    found = {one.writing: one for one in layers.measure(SMALL, "onnxruntime", writings, repeats=8)}
    assert set(found) == {"refused", "keep", *layers.WRITINGS, layers.CONTROL}
    assert found["keep"].verdict is None
    ran = {name for name, one in found.items() if one.verdict is not None}
    assert {"cropped/crd", "cropped/axes", "phases/slices", layers.CONTROL} < ran
    # All are loaded once, and some of them eight times.
    loads = [found[name].verdict["loads"] for name in ran]
    assert loads.count(8) == layers.MOST + 2
    assert loads.count(1) == len(ran) - layers.MOST - 2
    assert found["cropped/crd"].verdict["loads"] == found[layers.CONTROL].verdict["loads"] == 8
    assert found["refused"].words.startswith("up: it is small")
    assert found["refused"].verdict is None
    assert layers.ratio_of(found["refused"]) is None


def test_what_auto_chooses_is_in_its_file(monkeypatch):
    monkeypatch.setenv("DECONVFIX_CACHE", "/dev/null")
    proto = layers.auto("onnxruntime", 1, 1.0)(layers.model_of(SMALL), layers.feed_of(SMALL))
    [entry] = proto.metadata_props
    assert entry.key == layers.CHOSEN
    operators = [node.op_type for node in proto.graph.node]
    assert (entry.value == "keep") == (operators == ["ConvTranspose"])


def made(layer, writing, ratio, low):
    verdict = Verdict(ratio, low, ratio + 0.01, 0.99, 8).to_dict()
    return layers.Found(layer, writing, 2.0, verdict)


def test_the_table_has_the_sums():
    found = []
    for layer, one, two in (("a", 0.5, 0.9), ("b", 2.0, 2.2), ("c", 1.0, 1.1)):
        found += [
            layers.Found(layer, "keep", 3.0, None),
            made(layer, "cropped/crd", one, one - 0.01),
            # The last one is above 1, and its interval is not.
            made(layer, "two", two, two - 0.1 - 0.01 * (layer == "c")),
            # A larger ratio than that of any writing is no writing.
            made(layer, layers.CONTROL, 2.3, 2.2),
            replace(made(layer, layers.AUTO, 1.1, 1.05), words="keep"),
        ]
    lines = list(layers.table(found))
    assert lines[2].startswith(
        "| a | 3 | 0.50 (0.49 to 0.51) | 1.10 (1.05 to 1.11) keep | 2.30 (2.20"
    )
    assert lines[2].endswith("| 1.00 keep | 1.10 |")
    assert lines[3].endswith("| 2.20 two | 0.50 |")
    assert "| 1.00 keep |" in lines[4]
    assert lines[5] == "| **geometric mean** | | 1.00 | 1.10 | 2.30 | 1.30 | 0.85 |"
    assert lines[6] == "| **least** | | 0.50 | 1.10 | 2.30 | 1.00 | 0.50 |"
    assert lines[7] == "| **below 0.97** | | 1 of 3 | 0 of 3 | 0 of 3 | 0 of 3 | 1 of 3 |"


def test_a_table_is_made_of_what_was_measured(tmp_path: Path, monkeypatch, capsys):
    path = tmp_path / "found.jsonl"
    found = [layers.Found("a", "keep", 3.0, None), made("a", "cropped/axes", 1.5, 1.4)]
    path.write_text("".join(json.dumps(vars(one)) + "\n" for one in found))
    monkeypatch.setattr("sys.argv", ["layers.py", "--table", str(path)])
    layers.main()
    told = capsys.readouterr().out
    assert told.startswith("ONNX Runtime 1.")
    assert "| a | 3 | 1.50 (1.40 to 1.51) | 1.50 cropped/axes | - |" in told
