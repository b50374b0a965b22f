"""Layers whose trained weights have a structure, in every way that it can be used, timed in ONNX Runtime.

    python benchmarks/structure.py [NAME ...]

Each layer is followed by another operator, as in a network, and once more it is the model's result, where
ONNX Runtime copies what a last Reshape gives. Ratios are those of times: above 1 is faster.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deconvfix
from benchmarks.layers import LAYERS, Layer, feed_of, model_of
from deconvfix.runtimes.timing import time_in
from deconvfix.runtimes.verdict import compare
from deconvfix.targets.writing import Structure

NAMES = ("fcn_k64s32_21_16", "fcn_k16s8_21_64", "fcn_k4s2_21_128", "dwbilinear_k4s2_64_64")


def followed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a Slice of a few columns behind its result."""
    proto.graph.node[0].output[0] = "up"
    numbers = {"starts": [0], "ends": [4], "axes": [3]}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.array(values), name) for name, values in numbers.items()
    )
    proto.graph.node.append(helper.make_node("Slice", ["up", *numbers], ["y"]))
    proto.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 4
    return proto


def row(layer: Layer, *, alone: bool) -> str:
    """One layer in all ways: its ratios and the share of its multiply-accumulates."""
    proto = model_of(layer) if alone else followed(model_of(layer))
    feed = feed_of(layer)
    cells: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths, macs = {"keep": Path(folder, "keep.onnx")}, {}
        onnx.save(proto, paths["keep"])
        for way in (None, *get_args(Structure)):
            done = deconvfix.convert(proto, structure=way, example_inputs=feed, verify=way is None)
            (decision,) = done.plan.replaced
            if way is None:
                chosen = decision.settings.structure
            if way not in (None, decision.settings.structure):
                continue  # the weight has not got it
            name = "default" if way is None else way
            paths[name] = Path(folder, f"{name}.onnx")
            onnx.save(done.model, paths[name])
            macs[name] = (decision.macs_after or 0) / (decision.macs_before or 1)
        timed = time_in("onnxruntime", list(paths.values()), feed, repeats=8)
    for name, one in zip(paths, timed, strict=True):
        if name != "keep":
            verdict = compare(timed[0].times, one.times)
            span = f"{verdict.low:.2f} to {verdict.high:.2f}"
            cells[name] = f"{verdict.ratio:.2f} ({span}), x{macs[name]:.3f}"
    keep = 1e3 * float(np.median(timed[0].times))
    ways = ("none", "reduced", "passes", "matrices", "upsampling")
    shown = " | ".join(cells.get(way, "-") for way in ways)
    where = "alone" if alone else "followed"
    return f"| {layer.name}, {where} | {keep:.3g} | {cells['default']} {chosen} | {shown} |"


def main() -> None:
    """Prints the table, or the rows of the layers that are named."""
    chosen = sys.argv[1:]
    print("| layer | keep, ms | default | none | reduced | passes | matrices | resize |")
    print("|---|---|---|---|---|---|---|---|")
    layers = [layer for layer in LAYERS if layer.name in NAMES]
    layers.append(replace(layers[-1], name="dwconstant_k2s2_64_64", kernel=(2, 2), padding=0))
    for layer in layers:
        if not chosen or layer.name in chosen:
            for alone in (False, True):
                print(row(layer, alone=alone), flush=True)


if __name__ == "__main__":
    main()
