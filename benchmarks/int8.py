"""A trained network in int8, quantised before and after its conversion: accuracy and time in ONNX Runtime.

    python benchmarks/int8.py [--fixture NAME]
    python benchmarks/int8.py [--fixture NAME] --forms
    python benchmarks/int8.py --layers

The network is exported, and quantised by ONNX Runtime's own static quantisation: QDQ, per channel,
activations of 8 unsigned bits and weights of 8 signed ones, calibrated on what the fixture is calibrated on
(crops of photographs, or latents). Accuracy is measured on held-out inputs against the float file, and in the
fixture's own metric. `--forms` does so for the forms that remove the grid, fitted to what was calibrated on
in both orders, and looks for the grid that is left: in the layers' integers, on a constant input, and in the
smooth parts of held-out pictures. All files of a table are run in turns on one thread; medians are compared.
"""

from __future__ import annotations

import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deconvfix
from benchmarks import cases
from deconvfix.core.decibels import LOWEST_DB
from deconvfix.diagnose.measure import fidelity_of, with_runs
from deconvfix.frontends.onnx.frontend import FRONTEND
from deconvfix.frontends.onnx.parity import integers_saturate
from deconvfix.grid.visible import visible_grid
from deconvfix.parity.bounds import psnr
from deconvfix.parity.runtime import open_session

__all__ = ["FORMS", "LAYERS", "Measured", "Variant", "corrected", "grids", "measure", "written"]

ORIGINAL = "int8, original"
FORMS = ("equalized", "resize", "notch")
LAYERS = (
    ("k4 s2 p1, 64->32", nn.ConvTranspose2d(64, 32, 4, 2, 1), (1, 64, 64, 64)),
    ("k4 s2 p1, 128->64", nn.ConvTranspose2d(128, 64, 4, 2, 1), (1, 128, 32, 32)),
    ("k3 s2 p1 op1, 128->64", nn.ConvTranspose2d(128, 64, 3, 2, 1, 1), (1, 128, 48, 48)),
    ("k3 s2 p1 op1, 64->48", nn.ConvTranspose2d(64, 48, 3, 2, 1, 1), (1, 64, 96, 96)),
    ("k3 s2 p1 op1, 48->3", nn.ConvTranspose2d(48, 3, 3, 2, 1, 1), (1, 48, 192, 192)),
    ("k2 s2, 64->64", nn.ConvTranspose2d(64, 64, 2, 2), (1, 64, 80, 80)),
    ("k5 s2 p2 op1, 64->32", nn.ConvTranspose2d(64, 32, 5, 2, 2, 1), (1, 64, 64, 64)),
)
Batches = Sequence[tuple[Tensor]]


@dataclass(frozen=True)
class Variant:
    """One file.

    Attributes:
        name: In the table.
        path: The ONNX file.
    """

    name: str
    path: Path


@dataclass(frozen=True)
class Measured:
    """What was measured of a file.

    Attributes:
        name: In the table.
        outputs: For the held-out inputs.
        snr_db: Of the outputs against those of the float file, in dB; infinite for equal ones.
        milliseconds: Of one run, the median.
        ratio: How many times as fast as the int8 original.
        operators: What ONNX Runtime runs of convolutions, counted.
    """

    name: str
    outputs: NDArray[Any]
    snr_db: float
    milliseconds: float
    ratio: float
    operators: str


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """Samples for the calibration, one at a time."""

    def __init__(self, name: str, samples: Iterator[NDArray[np.float32]]) -> None:
        self._name, self._samples = name, samples

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next input."""
        sample = next(self._samples, None)
        return None if sample is None else {self._name: sample}


def _quantised(path: Path, batches: Batches, *, reduce_range: bool) -> Path:
    """The file in int8, beside it."""
    prepared = path.with_suffix(".prepared.onnx")
    target = path.with_suffix(".int8.reduced.onnx" if reduce_range else ".int8.onnx")
    (name,) = (each.name for each in onnx.load(path).graph.input)
    samples = (x.numpy()[None] for [batch] in batches for x in batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the quantiser
        quant_pre_process(path, prepared)
        quantize_static(
            prepared,
            target,
            _Reader(name, samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return target


def written(
    model: nn.Module, batches: Batches, folder: Path, *, reduce_range: bool = False
) -> list[Variant]:
    """The files: float, exact form, int8, int8 that was converted, exact form in int8.

    Args:
        model: In eval mode, with one input.
        batches: Inputs to calibrate on.
        folder: Where the files are written.
        reduce_range: Weights of 7 bits.
    """
    original, exact = folder / "original.onnx", folder / "exact.onnx"
    x = batches[0][0][:1]
    sizes = {axis: f"size{axis}" for axis in range(2, x.dim())}
    deconvfix.export_onnx(model, original, (x,), dynamic_shapes=(sizes,))
    (name,) = (each.name for each in onnx.load(original).graph.input)
    feed = {name: x.numpy()}
    onnx.save(deconvfix.convert(original, example_inputs=feed).model, exact)
    before = _quantised(original, batches, reduce_range=reduce_range)
    after = _quantised(exact, batches, reduce_range=reduce_range)
    converted = before.with_suffix(".exact.onnx")
    onnx.save(deconvfix.convert(before, example_inputs=feed).model, converted)
    return [
        Variant("float, original", original),
        Variant("float, exact form", exact),
        Variant(ORIGINAL, before),
        Variant("int8: quantised, then converted", converted),
        Variant("int8: converted, then quantised", after),
    ]


def _corrected(path: Path, form: str, batches: Batches) -> Path:
    """The file in a form that is fitted to the inputs, beside it."""
    (name,) = (each.name for each in onnx.load(path).graph.input)
    feeds = [{name: x.numpy()[None]} for [batch] in batches for x in batch]
    target = path.with_suffix(f".{form}.onnx")
    onnx.save(deconvfix.convert(path, to=form, calibration=feeds, verify=False).model, target)
    return target


def corrected(model: nn.Module, batches: Batches, folder: Path) -> list[Variant]:
    """The files: float and int8 original, then for each form converted after and before quantising.

    What is `equalized` comes in its exact form, too, which runs in integers.

    Args:
        model: In eval mode, with one input.
        batches: Inputs to calibrate on, for both the quantisation and the forms.
        folder: Where the files are written.
    """
    original = folder / "original.onnx"
    x = batches[0][0][:1]
    sizes = {axis: f"size{axis}" for axis in range(2, x.dim())}
    deconvfix.export_onnx(model, original, (x,), dynamic_shapes=(sizes,))
    before = _quantised(original, batches, reduce_range=False)
    files = [Variant("float, original", original), Variant(ORIGINAL, before)]
    for form in FORMS:
        after = _quantised(_corrected(original, form, batches), batches, reduce_range=False)
        files += [
            Variant(f"{form}: quantised, then converted", _corrected(before, form, batches)),
            Variant(f"{form}: converted, then quantised", after),
        ]
    even = before.with_suffix(".equalized.onnx")
    exact = even.with_suffix(".exact.onnx")
    onnx.save(deconvfix.convert(even, verify=False).model, exact)
    files.insert(3, Variant("the same, then in the exact form", exact))
    return files


def grids(
    variants: Sequence[Variant], inputs: Tensor, outputs: Sequence[NDArray[Any]]
) -> list[tuple[str, str, str]]:
    """What is left of the grid: in the layers' weights, on a constant input, and in smooth parts.

    Args:
        variants: The files; the first is the one that the others are compared with.
        inputs: Held-out inputs.
        outputs: Of each file for these.
    """
    original = ir.load(variants[0].path)
    matches = FRONTEND.find(original, None).matches
    # The mean colour of the first input, for the answer to a constant.
    first = {str(original.graph.inputs[0].name): inputs[:1].numpy()}
    found = []
    for each, values in zip(variants, outputs, strict=True):
        layers = deconvfix.inspect(each.path).layers
        ripples = [layer.ripple_db for layer in layers if layer.ripple_db is not None]
        words = ", ".join("none" if r <= LOWEST_DB else f"{r:.0f}" for r in ripples)
        model = ir.load(each.path)
        fidelity, _ = with_runs(fidelity_of({}), FRONTEND, original, model, matches, [first])
        flat = fidelity.network_ripple_db_after
        period = next((output.period for output in fidelity.outputs), None)
        seen = None if period is None else visible_grid(values, period, like=outputs[0])
        found.append(
            (
                words or "no such layer",
                "?" if flat is None else "none" if flat <= LOWEST_DB else f"{flat:.0f} dB",
                "?" if seen is None else f"{max(seen.mean, 0):.2f}",
            )
        )
    return found


def _operators(path: Path) -> str:
    """The convolutions of the graph that ONNX Runtime makes of a file."""
    optimised = path.with_suffix(".optimised")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 4  # it warns that such a file is for this machine
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    counted = Counter(
        node.op_type for node in onnx.load(optimised).graph.node if "Conv" in node.op_type
    )
    return ", ".join(f"{number} {name}" for name, number in sorted(counted.items()))


def measure(
    variants: list[Variant], inputs: Tensor, *, scale: int = 1, rounds: int = 15
) -> list[Measured]:
    """Accuracy on inputs, one at a time, and the time on the first of them, repeated on its axes.

    Args:
        variants: The files; the first is the float one that the others are compared with.
        inputs: Held-out inputs.
        scale: How many times the input is repeated on each axis for the timing.
        rounds: Timed runs of each file, in turns.
    """
    sessions = [open_session(str(each.path), threads=1) for each in variants]
    name = sessions[0].get_inputs()[0].name
    outputs = [
        np.concatenate([s.run(None, {name: x[None]})[0] for x in inputs.numpy()]) for s in sessions
    ]
    feed = {name: np.tile(inputs[:1].numpy(), (1, 1, *[scale] * (inputs.dim() - 2)))}
    times: list[list[float]] = [[] for _ in sessions]
    for turn in range(-1, rounds):
        for session, taken in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            if turn >= 0:  # the first run of each does not count
                taken.append(1e3 * (time.perf_counter() - start))
    medians = [statistics.median(taken) for taken in times]
    slow = medians[[each.name for each in variants].index(ORIGINAL)]
    return [
        Measured(
            each.name, out, _snr_db(outputs[0], out), median, slow / median, _operators(each.path)
        )
        for each, out, median in zip(variants, outputs, medians, strict=True)
    ]


def _snr_db(wanted: NDArray[Any], got: NDArray[Any]) -> float:
    noise = float(np.square(got - wanted, dtype=np.float64).sum())
    signal = float(np.square(wanted, dtype=np.float64).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10(signal / noise))


class _Given(nn.Module):
    """A model whose outputs are known."""

    def __init__(self, outputs: NDArray[Any]) -> None:
        super().__init__()
        self.outputs = torch.from_numpy(outputs)

    def forward(self, *_: Any) -> Tensor:
        """The outputs, whatever the inputs are."""
        return self.outputs


def instructions() -> str:
    """What this CPU has of the instructions that integer kernels use."""
    flags = Path("/proc/cpuinfo")
    words = set(flags.read_text(encoding="utf-8").split()) if flags.exists() else set()
    names = [name for name in ("avx2", "avx_vnni", "avx512f", "avx512_vnni") if name in words]
    return ", ".join(names) or platform.machine()


def network(fixture: str, samples: int, scale: int, rounds: int) -> None:
    """Prints a table for all bits of the weights, and one for 7."""
    case = cases.load(fixture)
    for reduce_range in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            files = written(case.model, case.draw(samples), Path(folder), reduce_range=reduce_range)
            found = measure(files, case.inputs, scale=scale, rounds=rounds)
        print(f"\nreduce_range={reduce_range}\n")
        print(
            f"| file | SNR against float | {case.metric} | time | speed | convolutions that run |"
        )
        print("|---|---|---|---|---|---|")
        for each in found:
            quality = case.evaluate(_Given(each.outputs), case.inputs, case.target)
            print(
                f"| {each.name} | {each.snr_db:.1f} dB | {quality:.2f} | "
                f"{each.milliseconds:.1f} ms | x{each.ratio:.2f} | {each.operators} |"
            )


def forms(fixture: str, samples: int, scale: int, rounds: int) -> None:
    """Prints a table of the forms that remove the grid."""
    case = cases.load(fixture)
    with tempfile.TemporaryDirectory() as folder:
        files = corrected(case.model, case.draw(samples), Path(folder))
        found = measure(files, case.inputs, scale=scale, rounds=rounds)
        left = grids(files, case.inputs, [each.outputs for each in found])
    print(
        "| file | ripples of the layers | on a constant | in smooth parts | PSNR against float | "
        f"{case.metric} | time | convolutions that run |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for each, (ripples, flat, seen) in zip(found, left, strict=True):
        quality = case.evaluate(_Given(each.outputs), case.inputs, case.target)
        match = psnr([found[0].outputs], [each.outputs])
        words = "equal" if match >= -LOWEST_DB else f"{match:.1f} dB"
        print(
            f"| {each.name} | {ripples} | {flat} | {seen} | {words} | {quality:.2f} | "
            f"{each.milliseconds:.1f} ms | {each.operators} |"
        )


def layers(rounds: int) -> None:
    """Prints a table of single layers."""
    print(
        "| layer | float: original, exact | int8: original, exact | speed in int8 | SNR of both |"
    )
    print("|---|---|---|---|---|")
    for name, layer, shape in LAYERS:
        torch.manual_seed(0)
        batches = [(torch.randn(4, *shape[1:]),) for _ in range(4)]
        with tempfile.TemporaryDirectory() as folder:
            files = written(layer.eval(), batches, Path(folder))
            found = measure(files, torch.randn(shape), rounds=rounds)
        original, exact, before, after, _ = found
        print(
            f"| {name} at {'x'.join(map(str, shape[2:]))} | {original.milliseconds:.2f}, "
            f"{exact.milliseconds:.2f} ms | {before.milliseconds:.2f}, {after.milliseconds:.2f} ms | "
            f"x{after.ratio:.2f} | {before.snr_db:.1f}, {after.snr_db:.1f} dB |",
            flush=True,
        )


@click.command(help=__doc__)
@click.option("--fixture", default="photo_autoencoder", type=click.Choice(cases.NAMES))
@click.option("--samples", default=128, help="Inputs to calibrate on.")
@click.option(
    "--scale", default=6, help="Repetitions of a held-out input on each axis, for timing."
)
@click.option("--rounds", default=25, help="Timed runs of each file.")
@click.option("--forms", "fitted", is_flag=True, help="The forms that remove the grid.")
@click.option("--layers", "single", is_flag=True, help="Single layers instead of a network.")
def main(fixture: str, samples: int, scale: int, rounds: int, fitted: bool, single: bool) -> None:
    """Says where it runs, and prints the tables."""
    print(f"ONNX Runtime {onnxruntime.__version__}, {instructions()}, one thread")
    print(f"integer sums saturate: {integers_saturate()}\n")
    if single:
        layers(rounds)
    elif fitted:
        forms(fixture, samples, scale, rounds)
    else:
        network(fixture, samples, scale, rounds)


if __name__ == "__main__":
    main()
