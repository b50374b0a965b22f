"""Time of single layers before and after the sub-pixel conversion, as ratios measured in one run.

    python benchmarks/speed.py

Each pair is run alternately and the medians are compared, so that a busy machine slows both. Above 1.00
the converted layer is faster. One thread, float32, batch 1.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deconvfix
from deconvfix.cli.bench import Runner, bench
from deconvfix.parity.runtime import open_session

REPEATS = 15
LAYERS: tuple[tuple[str, nn.Module, tuple[int, ...]], ...] = (
    ("k4 s2 p1, 64->32", nn.ConvTranspose2d(64, 32, 4, 2, 1), (1, 64, 96, 96)),
    ("k3 s2 p1 op1, 128->64", nn.ConvTranspose2d(128, 64, 3, 2, 1, 1), (1, 128, 32, 32)),
    ("k2 s2, 64->64", nn.ConvTranspose2d(64, 64, 2, 2), (1, 64, 80, 80)),
    ("k5 s2 p2 op1, 64->32", nn.ConvTranspose2d(64, 32, 5, 2, 2, 1), (1, 64, 64, 64)),
    ("k16 s8 p4, 21->21", nn.ConvTranspose2d(21, 21, 16, 8, 4), (1, 21, 32, 32)),
    ("k1 s2, 64->64", nn.ConvTranspose2d(64, 64, 1, 2), (1, 64, 80, 80)),
    ("1-D k16 s8 p4, 256->128", nn.ConvTranspose1d(256, 128, 16, 8, 4), (1, 256, 400)),
    ("3-D k4 s2 p1, 32->16", nn.ConvTranspose3d(32, 16, 4, 2, 1), (1, 32, 16, 16, 16)),
)


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    print("| layer | multiply-accumulates | torch | ONNX Runtime |")
    print("|---|---|---|---|")
    for name, layer, shape in LAYERS:
        x = torch.randn(shape)
        conversion = deconvfix.convert(layer.eval())
        (report,) = conversion.report.layers
        assert report.macs_after is not None
        assert report.macs_before is not None
        with torch.inference_mode():
            eager = ratio(lambda: layer(x), lambda: conversion.model(x))  # noqa: B023
        runtime = ratio(session(layer, x), session(conversion.model, x))
        cost = report.macs_after / report.macs_before
        print(
            f"| {name} at {'x'.join(map(str, shape[2:]))} | x{cost:.2f} | {eager:.2f} | {runtime:.2f} |"
        )


def ratio(before: Callable[[], Any], after: Callable[[], Any]) -> float:
    """Median time of `before` over that of `after`, run alternately."""
    runners = (Runner("before", before), Runner("after", after))
    return bench(*runners, repeats=REPEATS, threads=1).ratio


def session(model: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    """The exported model in ONNX Runtime on one thread, ready to run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        deconvfix.export_onnx(model, path, (x,), verify=False)
        made = open_session(str(path), threads=1)
    feed = {made.get_inputs()[0].name: x.numpy()}
    return lambda: made.run(None, feed)


if __name__ == "__main__":
    main()
