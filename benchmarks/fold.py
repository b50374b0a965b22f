"""Time of nearest upsampling and a convolution before and after folding, as ratios measured in one run.

    python benchmarks/fold.py
    python benchmarks/fold.py --resize

The second measures the form resize in ONNX Runtime: folded against apart, and against the ConvTranspose.

Each pair is run alternately and the medians are compared, so that a busy machine slows both. Above 1.00
the folded pair is faster. One thread, float32, batch 1; sizes are those of the small map.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deconvfix
from benchmarks.speed import ratio
from deconvfix.parity.runtime import open_session

# Channels in and out, kernel, factor, border, size of the small map.
PAIRS = (
    (512, 512, 3, 2, "zeros", 16),
    (256, 256, 3, 2, "zeros", 32),
    (128, 128, 3, 2, "zeros", 64),
    (64, 64, 3, 2, "zeros", 64),
    (64, 64, 3, 2, "replicate", 64),
    (64, 64, 3, 2, "zeros", 128),
    (64, 3, 3, 2, "zeros", 128),
    (64, 64, 3, 3, "zeros", 48),
    (64, 64, 3, 4, "zeros", 48),
    (64, 64, 5, 2, "zeros", 64),
)
# Transposed convolutions and their inputs; borders are reflected, as by default.
LAYERS: tuple[tuple[str, nn.Module, tuple[int, ...]], ...] = (
    ("k3 s2 p1 op1, 256->128", nn.ConvTranspose2d(256, 128, 3, 2, 1, 1), (1, 256, 32, 32)),
    ("k3 s2 p1 op1, 64->32", nn.ConvTranspose2d(64, 32, 3, 2, 1, 1), (1, 64, 128, 128)),
    ("k4 s2 p1, 256->128", nn.ConvTranspose2d(256, 128, 4, 2, 1), (1, 256, 32, 32)),
    ("k4 s2 p1, 64->32", nn.ConvTranspose2d(64, 32, 4, 2, 1), (1, 64, 128, 128)),
    ("k4 s2 p1, 64->3", nn.ConvTranspose2d(64, 3, 4, 2, 1), (1, 64, 64, 64)),
    ("k8 s4 p2, 64->32", nn.ConvTranspose2d(64, 32, 8, 4, 2), (1, 64, 48, 48)),
    ("1-D k16 s8 p4, 256->128", nn.ConvTranspose1d(256, 128, 16, 8, 4), (1, 256, 400)),
    ("3-D k4 s2 p1, 32->16", nn.ConvTranspose3d(32, 16, 4, 2, 1), (1, 32, 16, 16, 16)),
)


def main() -> None:
    """Prints a table."""
    torch.set_num_threads(1)
    if "--resize" in sys.argv[1:]:
        resize_convolutions()
    else:
        pairs()


def resize_convolutions() -> None:
    """The form resize as ONNX files."""
    print(
        "| layer | multiply-accumulates apart, folded | folded against apart | against ConvTranspose |"
    )
    print("|---|---|---|---|")
    for name, layer, shape in LAYERS:
        x = torch.randn(shape)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layer.onnx"
            deconvfix.export_onnx(layer.eval(), path, (x,), verify=False)
            original = onnx.load(path)
        runs, costs = [running(original, x)], []
        for fold in (False, None):
            done = deconvfix.convert(original, to="resize", init="fit", fold=fold, verify=False)
            (row,) = done.report.layers
            assert row.macs_after is not None
            assert row.macs_before is not None
            costs.append(f"x{row.macs_after / row.macs_before:.2f}")
            runs.append(running(done.model, x))
        before, apart, folded = runs
        print(
            f"| {name} at {'x'.join(map(str, shape[2:]))} | {', '.join(costs)} | "
            f"{ratio(apart, folded):.2f} | {ratio(before, folded):.2f} |",
            flush=True,
        )


def running(model: onnx.ModelProto, x: torch.Tensor) -> Callable[[], Any]:
    """A model in ONNX Runtime on one thread, ready to run."""
    session = open_session(model.SerializeToString(), threads=1)
    return partial(session.run, None, {session.get_inputs()[0].name: x.numpy()})


def pairs() -> None:
    """Upsampling and a convolution that a model has already."""
    print(
        "| channels, kernel, factor, border, size | multiply-accumulates | torch | ONNX Runtime |"
    )
    print("|---|---|---|---|")
    for c_in, c_out, k, s, mode, size in PAIRS:
        conv = nn.Conv2d(c_in, c_out, k, padding=k // 2, padding_mode=mode)
        pair = nn.Sequential(nn.Upsample(scale_factor=s, mode="nearest"), conv).eval()
        x = torch.randn(1, c_in, size, size)
        done = deconvfix.convert(pair, example_inputs=(x,), fold=True, verify=False)
        (layer,) = done.report.layers
        assert layer.macs_after is not None
        assert layer.macs_before is not None
        with torch.inference_mode():
            eager = ratio(lambda: pair(x), lambda: done.model(x))  # noqa: B023
        runtime = ratio(*sessions(pair, x))
        print(
            f"| {c_in}->{c_out}, k{k}, x{s}, {mode}, {size} | x{layer.macs_after / layer.macs_before:.2f} | "
            f"{eager:.2f} | {runtime:.2f} |",
            flush=True,
        )


def sessions(pair: nn.Module, x: torch.Tensor) -> list[Callable[[], Any]]:
    """The exported pair in ONNX Runtime on one thread, as it is and folded."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("pair.onnx", "folded.onnx")]
        deconvfix.export_onnx(pair, paths[0], (x,), verify=False)
        onnx.save(deconvfix.convert(paths[0], fold=True, verify=False).model, paths[1])
        made = [open_session(str(path), threads=1) for path in paths]
    feed = {made[0].get_inputs()[0].name: x.numpy()}
    return [partial(one.run, None, feed) for one in made]


if __name__ == "__main__":
    main()
