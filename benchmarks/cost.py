"""CPU seconds and peak memory of converting and verifying, against the plain thing in the same run.

    python benchmarks/cost.py [--quick] [CASE...]

Each measurement is a process of its own on one thread. Of a torch module the plain thing is
`torch.onnx.export` alone; of an ONNX file it is to load and save it. The models have random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CHAINS = (10, 100, 1000)


def decoder(quick: bool) -> tuple[Any, tuple[Any, ...]]:
    """An audio decoder like that of the Descript Audio Codec: strides 8, 8, 4, 2 and 52 M parameters."""
    import torch
    from torch import nn

    class Snake(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.alpha = nn.Parameter(torch.ones(1, channels, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)

    class Residual(nn.Module):
        def __init__(self, channels: int, dilation: int) -> None:
            super().__init__()
            self.block = nn.Sequential(
                Snake(channels),
                nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation),
                Snake(channels),
                nn.Conv1d(channels, channels, 1),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = x + self.block(x)
            return result

    width = 192 if quick else 1536
    layers: list[nn.Module] = [nn.Conv1d(width * 2 // 3, width, 7, padding=3)]
    for stride in (8, 8, 4, 2):
        layers += [
            Snake(width),
            nn.ConvTranspose1d(width, width // 2, 2 * stride, stride, (stride + 1) // 2),
            *(Residual(width // 2, dilation) for dilation in (1, 3, 9)),
        ]
        width //= 2
    layers += [Snake(width), nn.Conv1d(width, 1, 7, padding=3), nn.Tanh()]
    torch.manual_seed(0)
    # One second at 44.1 kHz.
    return nn.Sequential(*layers).eval(), (torch.randn(1, layers[0].in_channels, 86),)


def volumes(quick: bool) -> tuple[Any, tuple[Any, ...]]:
    """A 3-D U-Net of residual units with four transposed convolutions, as in MONAI, on a volume of 96^3."""
    import torch
    from torch import nn

    def unit(old: int, new: int, stride: int) -> nn.Module:
        conv = nn.Conv3d(old, new, 3, stride, 1)
        return nn.Sequential(conv, nn.InstanceNorm3d(new), nn.PReLU())

    class Level(nn.Module):
        """Down, what is below, and up again, beside the level's input."""

        def __init__(self, old: int, channels: tuple[int, ...], result: int) -> None:
            super().__init__()
            new = channels[0]
            self.down = nn.Sequential(unit(old, new, 2), unit(new, new, 1))
            self.below = Level(new, channels[1:], new) if channels[1:] else None
            inside = new if self.below is None else 2 * new
            self.up = nn.ConvTranspose3d(inside, result, 3, 2, 1, 1)
            self.after = unit(result, result, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.down(x)
            if self.below is not None:
                y = torch.cat([y, self.below(y)], 1)
            result: torch.Tensor = self.after(self.up(y))
            return result

    torch.manual_seed(0)
    channels = (8, 16, 32, 64) if quick else (16, 32, 64, 128)
    size = 48 if quick else 96
    return Level(1, channels, 2).eval(), (torch.randn(1, 1, size, size, size),)


def chain(count: int, path: Path) -> None:
    """Writes an ONNX file of so many small transposed convolutions, one after the other."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for number in range(count):
        # Down again and the input added, so that maps and values stay as large as they are.
        source = f"h{number - 1}" if number else "x"
        weight = rng.standard_normal((4, 4, 4, 4), dtype=np.float32) / 8
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        nodes.append(
            helper.make_node(
                "ConvTranspose",
                [source, f"w{number}"],
                [f"u{number}"],
                name=f"up{number}",
                strides=[2, 2],
                pads=[1, 1, 1, 1],
            )
        )
        nodes.append(
            helper.make_node(
                "AveragePool",
                [f"u{number}"],
                [f"d{number}"],
                kernel_shape=[2, 2],
                strides=[2, 2],
            )
        )
        nodes.append(helper.make_node("Add", [f"d{number}", "x"], [f"h{number}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 6, 7])
        for name in ("x", f"h{count - 1}")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


MODULES: dict[str, Callable[[bool], tuple[Any, tuple[Any, ...]]]] = {
    "audio decoder": decoder,
    "3-D U-Net": volumes,
}


# --- what a process of its own does ----------------------------------------------------------------


def plain_export(case: str, quick: bool, folder: Path) -> None:
    """torch.onnx.export alone."""
    import torch

    model, inputs = MODULES[case](quick)
    torch.onnx.export(model, inputs, folder / "plain.onnx", dynamo=True, verbose=False)


def made(case: str, quick: bool, folder: Path) -> None:
    """The model alone: what a process costs before it does anything."""
    import torch.onnx  # noqa: F401

    MODULES[case](quick)


def run_once(case: str, quick: bool, folder: Path) -> None:
    """The model run once, which a comparison of what two models give cannot do without."""
    import torch
    import torch.onnx

    model, inputs = MODULES[case](quick)
    with torch.no_grad():
        model(*inputs)


def converted(case: str, quick: bool, folder: Path) -> None:
    """Converted and verified."""
    import deconvfix

    model, inputs = MODULES[case](quick)
    report = deconvfix.convert(model, example_inputs=inputs).report
    assert report.proven


def exported(case: str, quick: bool, folder: Path) -> None:
    """Converted and verified, exported, and the file verified against torch."""
    import deconvfix

    model, inputs = MODULES[case](quick)
    conversion = deconvfix.convert(model, example_inputs=inputs)
    assert conversion.report.proven
    del model
    deconvfix.export_onnx(conversion.model, folder / "converted.onnx", inputs)


def loaded(case: str, quick: bool, folder: Path) -> None:
    """An ONNX file loaded and saved."""
    import onnx

    onnx.save(onnx.load(folder / "chain.onnx"), folder / "plain.onnx")


def file_converted(case: str, quick: bool, folder: Path) -> None:
    """An ONNX file converted and verified."""
    import onnx

    import deconvfix

    conversion = deconvfix.convert(onnx.load(folder / "chain.onnx"))
    assert conversion.report.proven
    onnx.save(conversion.model, folder / "converted.onnx")


WORK = {
    work.__name__: work
    for work in (made, run_once, plain_export, converted, exported, loaded, file_converted)
}


def measure(work: Callable[..., None], case: str, quick: bool, folder: Path) -> tuple[float, float]:
    """CPU seconds and peak GB of a process that does it."""
    command = [sys.executable, __file__, "--work", work.__name__, str(folder), case]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *(["--quick"] if quick else [])],
        check=True,
        env=environment,
        stdout=subprocess.PIPE,
    )
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def _work(name: str, case: str, quick: bool, folder: Path) -> None:
    """Does one thing in this process, and prints what it took, with its child processes."""
    warnings.simplefilter("ignore")
    WORK[name](case, quick, folder)
    seconds, peak = 0.0, 0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        seconds += used.ru_utime + used.ru_stime
        peak = max(peak, used.ru_maxrss)
    print(json.dumps([seconds, peak / 2**20]))


# --- the tables -------------------------------------------------------------------------------------


def modules(cases: list[str], quick: bool) -> None:
    """Prints what torch modules cost."""
    print("| module | | CPU seconds | x export | peak GB | x export |")
    print("|---|---|---|---|---|---|")
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            plain = measure(plain_export, case, quick, Path(folder))
            for words, work in (
                ("model made", made),
                ("model made and run once", run_once),
                ("torch.onnx.export", plain_export),
                ("convert + verify", converted),
                ("convert + verify + export + verify", exported),
            ):
                cost = plain if work is plain_export else measure(work, case, quick, Path(folder))
                print(
                    f"| {case} | {words} | {cost[0]:.1f} | {cost[0] / plain[0]:.2f} "
                    f"| {cost[1]:.2f} | {cost[1] / plain[1]:.2f} |",
                    flush=True,
                )


def chains(counts: tuple[int, ...]) -> None:
    """Prints what ONNX files of many layers cost."""
    print("| layers | load + save, CPU seconds | convert + verify | seconds a layer | peak GB |")
    print("|---|---|---|---|---|")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            chain(count, Path(folder) / "chain.onnx")
            plain = measure(loaded, "", False, Path(folder))
            cost = measure(file_converted, "", False, Path(folder))
            # What one layer costs is not what it costs to start.
            layer = (cost[0] - plain[0]) / count
            print(
                f"| {count} | {plain[0]:.1f} | {cost[0]:.1f} | {layer:.4f} | {cost[1]:.2f} |",
                flush=True,
            )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"{', '.join(MODULES)} or chain; all by default")
    parser.add_argument("--quick", action="store_true", help="small models")
    parser.add_argument("--work", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        _work(given.work[0], next(iter(given.cases), ""), given.quick, Path(given.work[1]))
        return
    cases = given.cases or [*MODULES, "chain"]
    if named := [case for case in cases if case in MODULES]:
        modules(named, given.quick)
        print()
    if "chain" in cases:
        chains(CHAINS[:2] if given.quick else CHAINS)


if __name__ == "__main__":
    main()
