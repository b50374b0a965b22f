"""The layers of `layers.py` in torch on an accelerator: the layer itself against its writings.

    python benchmarks/accelerator.py

Eager and compiled, in float32 and float16, in torch's two memory formats. Times are medians in microseconds,
between events of the device, in rotating order; ratios are the time of the layer over that of a writing.
`--device cpu` tries the script out. Without an accelerator it says so, and that nothing was run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deconvfix
from benchmarks.layers import LAYERS, Layer, weight_of

MODULES: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}
WARM_UP = 5
# Of a writing: how it is asked for.
WRITINGS: dict[str, dict[str, Any]] = {
    "cropped": {"convolution": "cropped"},
    "union": {"convolution": "union"},
}


def module_of(layer: Layer) -> nn.Module:
    """The layer in torch."""
    c_in, c_out = layer.channels
    module: nn.Module = MODULES[len(layer.kernel)](
        c_in, c_out, layer.kernel, layer.stride, layer.padding, layer.output_padding,
        groups=c_in if layer.depthwise else 1,
    )  # fmt: skip
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(weight_of(layer)))
    return module.eval()


def candidates(layer: Layer) -> dict[str, nn.Module]:
    """The layer, and every writing of it."""
    module = module_of(layer)
    written = {
        name: deconvfix.convert(module, verify=False, **options).model
        for name, options in WRITINGS.items()
    }
    return {"keep": module, **written}


def timed(
    runs: dict[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, float]:
    """Median microseconds of each, in rotating order."""

    def done() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize()

    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(WARM_UP + repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            done()
            started = time.perf_counter()
            runs[name]()
            done()
            times[name].append(1e6 * (time.perf_counter() - started))
    return {name: statistics.median(found[WARM_UP:]) for name, found in times.items()}


def settings(ndim: int) -> Iterator[tuple[str, torch.dtype, bool, bool]]:
    """How a layer is run: in words, the dtype, whether compiled, whether channels come last."""
    for dtype in (torch.float32, torch.float16):
        for compiled in (False, True):
            for last in (False, True) if ndim in FORMATS else (False,):
                words = [str(dtype).removeprefix("torch."), "compiled" if compiled else "eager"]
                yield (
                    " ".join([*words, *(["channels last"] if last else [])]),
                    dtype,
                    compiled,
                    last,
                )


@torch.inference_mode()
def rows(layer: Layer, device: torch.device, repeats: int) -> Iterator[str]:
    """A line of the table for each way to run a layer."""
    ndim = len(layer.kernel)
    written = candidates(layer)
    for words, dtype, compiled, last in settings(ndim):
        x = torch.randn(1, layer.channels[0], *layer.sizes, device=device, dtype=dtype)
        x = x.contiguous(memory_format=FORMATS[ndim]) if last else x
        runs: dict[str, Callable[[], object]] = {}
        for name, module in written.items():
            moved = module.to(device, dtype)
            called = torch.compile(moved) if compiled else moved
            runs[name] = lambda called=called, x=x: called(x)  # type: ignore[misc]
        found = timed(runs, device, repeats)
        ratios = [f"{found['keep'] / found[name]:.2f}" for name in WRITINGS]
        yield f"| {layer.name} | {words} | {found['keep']:.0f} | {' | '.join(ratios)} |"


def main() -> None:
    """Prints the table, or that nothing was run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", help="of torch; the accelerator by default")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--layers", default="", help="only layers with this in their name")
    given = parser.parse_args()
    if given.device is None and not torch.accelerator.is_available():
        print("Not run: torch sees no accelerator here.")
        return
    device = torch.device(given.device or torch.accelerator.current_accelerator())
    print(f"torch {torch.__version__}, {device}, batch 1\n")
    print(f"| layer | run | keep, us | {' | '.join(WRITINGS)} |")
    print(f"|---|---|---|{'---|' * len(WRITINGS)}")
    for layer in LAYERS:
        if given.layers in layer.name:
            for row in rows(layer, device, given.repeats):
                print(row, flush=True)


if __name__ == "__main__":
    main()
