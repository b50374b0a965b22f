"""Layers with what follows them element by element, before the shuffle and behind it, timed in a runtime.

    python benchmarks/tails.py --runtime onnxruntime --loads 8

Each layer is timed with its tail as it is, converted with the tail before the shuffle (as `deconvfix.convert`
writes it), and converted with the tail behind it: the layer was converted alone, and the nodes were added.
Another operator follows all of it, as in a network. Ratios are with the interval that holds them in 99 of 100
measurements. One thread, float32, CPU time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deconvfix
from benchmarks.layers import LAYERS, Layer, feed_of, head, model_of
from deconvfix.runtimes.registry import RUNTIMES
from deconvfix.runtimes.timing import time_in
from deconvfix.runtimes.verdict import compare

NAMES = (
    *("k4s2_64-32_128", "k3s2op1_64-64_80", "k4s2_128-64_32", "dw_k4s2_64_80"),
    "k4s2_512-256_8",
)
_NORMALIZED = ("scale", "shift", "mean", "var")
# Nodes as operator, inputs, outputs and attributes; each reads "t" and gives "y" in the end.
TAILS: dict[str, list[tuple[str, str, str, dict[str, Any]]]] = {
    "Relu": [("Relu", "t", "y", {})],
    "BatchNormalization, Relu": [
        ("BatchNormalization", f"t {' '.join(_NORMALIZED)}", "n", {}),
        ("Relu", "n", "y", {}),
    ],
    "LeakyRelu": [("LeakyRelu", "t", "y", {"alpha": 0.2})],
    "Tanh": [("Tanh", "t", "y", {})],
    "x * Sigmoid(x)": [("Sigmoid", "t", "s", {}), ("Mul", "t s", "y", {})],
    "Elu": [("Elu", "t", "y", {})],
}


def with_tail(proto: onnx.ModelProto, name: str, channels: int) -> onnx.ModelProto:
    """A copy with a tail behind what gives "y"."""
    copied = onnx.ModelProto.FromString(proto.SerializeToString())
    for node in copied.graph.node:
        if "y" in node.output:
            node.output[0] = "t"
    for operator, inputs, outputs, attributes in TAILS[name]:
        copied.graph.node.append(
            helper.make_node(operator, inputs.split(), outputs.split(), **attributes)
        )
        if operator == "BatchNormalization":
            rng = np.random.default_rng(3)
            copied.graph.initializer.extend(
                numpy_helper.from_array(rng.uniform(0.5, 1.5, channels).astype(np.float32), each)
                for each in _NORMALIZED
            )
    return copied


def followed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the mean of each channel behind its result."""
    for node in proto.graph.node:
        for index, output in enumerate(node.output):
            node.output[index] = "up" if output == "y" else output
    proto.graph.node.append(helper.make_node("GlobalAveragePool", ["up"], ["y"]))
    for dim in proto.graph.output[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 1
    return proto


def row(layer: Layer, name: str, runtime: str, loads: int) -> str:
    """One layer with one tail."""
    alone, feed = model_of(layer), feed_of(layer)
    original = with_tail(alone, name, layer.channels[1])
    converted = deconvfix.convert(alone, example_inputs=feed).model
    files = {
        "original": original,
        "behind": with_tail(converted, name, layer.channels[1]),
        "before": deconvfix.convert(original, example_inputs=feed).model,
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{file}.onnx") for file in files]
        for path, proto in zip(paths, files.values(), strict=True):
            onnx.save(followed(proto), path)
        timed = time_in(runtime, paths, feed, repeats=loads)
    original_times, behind, before = (one.times for one in timed)
    verdicts = compare(behind, before), compare(original_times, before)
    cells = [f"{each.ratio:.2f} ({each.low:.2f} to {each.high:.2f})" for each in verdicts]
    milliseconds = 1e3 * float(np.median(original_times))
    return f"| {layer.name}, {name} | {milliseconds:.3g} | {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=sorted(RUNTIMES), default="onnxruntime")
    parser.add_argument("--loads", type=int, default=8, help="of each file")
    parser.add_argument("--layers", nargs="*", default=NAMES, help="names of `layers.LAYERS`")
    given = parser.parse_args()
    print(head(given.runtime, 1), "", sep="\n")
    print("| layer, tail | original, ms | before / behind the shuffle | before / original |")
    print("|---|---|---|---|")
    for layer in LAYERS:
        for name in TAILS if layer.name in given.layers else ():
            print(row(layer, name, given.runtime, given.loads), flush=True)


if __name__ == "__main__":
    main()
