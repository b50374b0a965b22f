"""Twenty-four layers of published networks, as ConvTranspose and in other writings, timed in a runtime.

    python benchmarks/layers.py --runtime onnxruntime --threads 1 >> table.md

Ratios are the time of the layer itself (`keep`) over that of another writing, so above 1 the writing is
faster, with the interval that holds it in 99 of 100 measurements. `auto` is what `--to auto` chooses, without
what was measured before, and is timed again beside the others. `--layers 0:8` measures a part of them,
`--json FILE` adds what was found to a file, and `--table FILE` prints the table of all that is in it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deconvfix
from deconvfix.errors import DeconvfixError
from deconvfix.runtimes.registry import RUNTIMES
from deconvfix.runtimes.timing import time_in, title_of
from deconvfix.runtimes.verdict import compare
from deconvfix.targets.profile import NO_LIMITS
from deconvfix.targets.writing import Writing

# What the goal is measured by: a layer below this is slower.
SLOWER = 0.97
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """One ConvTranspose, with what its time depends on.

    Attributes:
        name: Of the network, and of the geometry.
        channels: Input and output channels.
        kernel: Its sizes.
        stride: Its strides.
        sizes: Of the input.
        padding: Pixels cropped on both sides of each axis.
        output_padding: Added at the ends of all axes.
        depthwise: One kernel for each channel; the numbers of channels are equal then.
        bilinear: The weight of linear interpolation, from each channel to itself.
    """

    name: str
    channels: tuple[int, int]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    sizes: tuple[int, ...]
    padding: int = 0
    output_padding: int = 0
    depthwise: bool = False
    bilinear: bool = False


def square(
    name: str,
    channels: tuple[int, int],
    kernel: int,
    stride: int,
    size: int,
    *,
    ndim: int = 2,
    **others: Any,
) -> Layer:
    """A layer whose axes are all alike."""
    return Layer(name, channels, (kernel,) * ndim, (stride,) * ndim, (size,) * ndim, **others)


LAYERS = (
    square("hifigan_k16s8_512-256_400", (512, 256), 16, 8, 400, ndim=1, padding=4),
    square("hifigan_k4s2_128-64_6400", (128, 64), 4, 2, 6400, ndim=1, padding=1),
    square("encodec_k10s5_256-128_600", (256, 128), 10, 5, 600, ndim=1),
    square("k4s2_64-32_128", (64, 32), 4, 2, 128, padding=1),
    square("k4s2_128-64_32", (128, 64), 4, 2, 32, padding=1),
    square("k4s2_512-256_8", (512, 256), 4, 2, 8, padding=1),
    square("k4s2_64-3_64", (64, 3), 4, 2, 64, padding=1),
    square("k3s2op1_64-64_80", (64, 64), 3, 2, 80, padding=1, output_padding=1),
    square("k3s2op1_128-64_32", (128, 64), 3, 2, 32, padding=1, output_padding=1),
    square("k2s2_64-64_80", (64, 64), 2, 2, 80),
    square("k2s2_256-128_40", (256, 128), 2, 2, 40),
    square("dw_k4s2_64_80", (64, 64), 4, 2, 80, padding=1, depthwise=True),
    square("fcn_k64s32_21_16", (21, 21), 64, 32, 16, bilinear=True),
    square("fcn_k16s8_21_64", (21, 21), 16, 8, 64, bilinear=True),
    square("fcn_k4s2_21_128", (21, 21), 4, 2, 128, bilinear=True),
    square("k5s2_64-32_64", (64, 32), 5, 2, 64, padding=2, output_padding=1),
    Layer("s21_64-64_40x160", (64, 64), (4, 3), (2, 1), (40, 160), padding=1),
    square("3d_k2s2_32-16_16", (32, 16), 2, 2, 16, ndim=3),
    square("3d_k4s2_32-16_16", (32, 16), 4, 2, 16, ndim=3, padding=1),
    square("3d_k3s2op1_64-32_12", (64, 32), 3, 2, 12, ndim=3, padding=1, output_padding=1),
    square("dwbilinear_k4s2_64_64", (64, 64), 4, 2, 64, padding=1, depthwise=True, bilinear=True),
    square("sam_k2s2_256-64_64", (256, 64), 2, 2, 64),
    square("dpt_k4s4_256-256_24", (256, 256), 4, 4, 24),
    Layer("vitpose_k4s2_256-256_16x12", (256, 256), (4, 4), (2, 2), (16, 12), padding=1),
)  # fmt: skip


def weight_of(layer: Layer) -> Array:
    """(C_in, C_out / groups, *kernel): seeded normal values, or those of linear interpolation."""
    c_in, c_out = layer.channels
    shape = (c_in, 1 if layer.depthwise else c_out, *layer.kernel)
    if not layer.bilinear:
        fan_in = c_in if not layer.depthwise else 1
        normal = np.random.default_rng(0).standard_normal(shape)
        return (normal / math.sqrt(fan_in * math.prod(layer.kernel))).astype(np.float32)
    kernel = np.ones(())
    for size, stride in zip(layer.kernel, layer.stride, strict=True):
        # FCN's own filler: a triangle about the centre of the kernel, of twice the stride.
        triangle = 1 - np.abs(np.arange(size) - (size - 1) / 2) / stride
        kernel = np.multiply.outer(kernel, triangle)
    weight = np.zeros(shape)
    channels = np.arange(c_in)
    weight[channels, 0 if layer.depthwise else channels] = kernel
    return weight.astype(np.float32)


def model_of(layer: Layer) -> onnx.ModelProto:
    """The layer as a file of opset 17, of fixed sizes."""
    ndim, (c_in, c_out) = len(layer.kernel), layer.channels
    stored = {"w": weight_of(layer)}
    if not layer.bilinear:  # those have none in the networks either
        stored["b"] = np.random.default_rng(1).standard_normal(c_out).astype(np.float32)
    node = helper.make_node(
        "ConvTranspose", ["x", *stored], ["y"],
        name="up", kernel_shape=layer.kernel, strides=layer.stride, pads=[layer.padding] * 2 * ndim,
        output_padding=[layer.output_padding] * ndim, group=c_in if layer.depthwise else 1,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        layer.name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, c_in, *layer.sizes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, c_out, *[None] * ndim])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True)


def feed_of(layer: Layer) -> dict[str, Array]:
    """Seeded normal inputs."""
    shape = (1, layer.channels[0], *layer.sizes)
    return {"x": np.random.default_rng(2).standard_normal(shape).astype(np.float32)}


Feed = dict[str, Array]
Writer = Callable[[onnx.ModelProto, Feed], onnx.ModelProto]


def written(writing: Writing) -> Writer:
    """The exact form in one writing."""

    def write(proto: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
        converted: onnx.ModelProto = deconvfix.convert(
            proto, example_inputs=feed, strict=True, verify=False,
            convolution=writing.convolution, shuffle=writing.shuffle,
        ).model  # fmt: skip
        return converted

    return write


def auto(runtime: str, threads: int, seconds: float) -> Writer:
    """What `--to auto` makes of a layer."""

    def write(proto: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
        done = deconvfix.convert(
            proto,
            to=AUTO,
            target=runtime,
            example_inputs=feed,
            threads=threads,
            layer_seconds=seconds,
        )
        [decision] = done.plan.decisions
        settings = decision.settings
        parts = (
            () if settings is None else (settings.structure, settings.convolution, settings.shuffle)
        )
        chosen = "/".join(part for part in parts if part not in (None, "none")) or "keep"
        helper.set_model_props(done.model, {CHOSEN: chosen})
        converted: onnx.ModelProto = done.model
        return converted

    return write


# Every writing by its name. One that raises is not written for that layer. The first one that a target
# without limits has is the exact form as it is written by default.
WRITINGS: dict[str, Writer] = {str(writing): written(writing) for writing in NO_LIMITS.writings(2)}

# The layer against itself: what the noise is.
CONTROL = "keep, again"
AUTO = "auto"
# As the exact form is written by default, in 1-D and 3-D and in 2-D.
DEFAULTS = ("cropped/axes", "cropped/crd")
# So many writings are timed to the end, beside the default, `auto` and the control.
MOST = 4
# The key of an entry of a file that says what `auto` chose.
CHOSEN = "chosen"
# Every writing is loaded once, before some are timed to the end.
FIRST = {"repeats": 1}


@dataclass(frozen=True)
class Found:
    """One writing of a layer.

    Attributes:
        layer: Its name.
        writing: Its name.
        milliseconds: Median of one run; None if it does not run.
        verdict: Against the layer itself; None if one of them does not run.
        words: Why it does not run.
    """

    layer: str
    writing: str
    milliseconds: float | None
    verdict: dict[str, Any] | None
    words: str = ""


def measure(
    layer: Layer, runtime: str, writings: Mapping[str, Writer], **timing: Any
) -> Iterator[Found]:
    """The layer itself, and every writing of it.

    Args:
        layer: What is timed.
        runtime: Where.
        writings: What else it is written as.
        timing: Settings of `time_in`.
    """
    proto, feed = model_of(layer), feed_of(layer)
    with tempfile.TemporaryDirectory() as folder:
        paths = {"keep": Path(folder, "keep.onnx")}
        onnx.save(proto, paths["keep"])
        for number, (name, writer) in enumerate(writings.items()):
            written = Path(folder, f"{number}.onnx")
            try:
                onnx.save(writer(proto, feed), written)
            except DeconvfixError as error:
                yield Found(layer.name, name, None, None, str(error))
                continue
            paths[name] = written
        once = dict(
            zip(paths, time_in(runtime, list(paths.values()), feed, **timing | FIRST), strict=True)
        )
        some = finalists({name: one.times for name, one in once.items()})
        last = time_in(runtime, [paths[name] for name in some], feed, **timing)
        chosen = {name: props_of(path).get(CHOSEN, "") for name, path in paths.items()}
    timed = once | dict(zip(some, last, strict=True))
    for name, one in timed.items():
        ran, keep = bool(one.times.size), (timed if name in some else once)["keep"]
        verdict = compare(keep.times, one.times) if ran and keep.times.size else None
        yield Found(
            layer.name,
            name,
            1e3 * float(np.median(one.times)) if ran else None,
            None if verdict is None or name == "keep" else verdict.to_dict(),
            one.words or chosen[name],
        )


def finalists(once: Mapping[str, NDArray[Any]]) -> list[str]:
    """What is timed to the end: the layer, the fastest writings of one load, and what is no candidate."""
    ran = {name: float(np.median(times)) for name, times in once.items() if times.size}
    fixed = [name for name in ran if name in ("keep", AUTO, CONTROL)]
    default = [name for name in DEFAULTS if name in ran][-1:]
    others = sorted(set(ran) - {*fixed, *default}, key=ran.__getitem__)
    return [*fixed, *default, *others[:MOST]]


def props_of(path: Path) -> dict[str, str]:
    """The entries that were put into a file."""
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def cell(found: Found) -> str:
    """A ratio with its interval, or why there is none."""
    if found.verdict is None:
        return found.words or "-"
    low, high = found.verdict["low"], found.verdict["high"]
    span = "?" if low is None else f"{low:.2f} to {high:.2f}"
    chosen = f" {found.words}" if found.writing == AUTO else ""
    return f"{found.verdict['ratio']:.2f} ({span}){chosen}"


def best_of(row: Mapping[str, Found]) -> tuple[float, str]:
    """The largest ratio of a layer that is more than its noise, and by which writing; 1 for itself."""
    known = [
        (found.verdict["ratio"], name)
        for name, found in row.items()
        if name not in (CONTROL, AUTO)
        and found.verdict is not None
        and (found.verdict["low"] or 0) > 1
    ]
    return max(known, default=(1.0, "keep"))


def table(found: Sequence[Found]) -> Iterator[str]:
    """One row for each layer, then geometric mean, least, and how many are slower, in Markdown."""
    rows: dict[str, dict[str, Found]] = {}
    for one in found:
        rows.setdefault(one.layer, {})[one.writing] = one
    own = [name for name in (AUTO, CONTROL) if any(name in row for row in rows.values())]
    yield f"| layer | keep, ms | exact form | {' | '.join([*own, ''])}best writing | auto / best |"
    yield f"|---|---|---|{'---|' * len(own)}---|---|"
    columns: list[list[float]] = [[] for _ in range(len(own) + 3)]
    for layer, row in rows.items():
        default = next(
            (row[name] for name in reversed(DEFAULTS) if ratio_of(row.get(name)) is not None), None
        )
        shown = [default, *(row.get(name) for name in own)]
        ratio, by = best_of(row)
        chosen = ratio_of(row.get(AUTO))
        of_best = None if chosen is None else chosen / ratio
        for column, value in zip(columns, [*map(ratio_of, shown), ratio, of_best], strict=True):
            column += [] if value is None else [value]
        keep = row["keep"].milliseconds
        cells = ["-" if one is None else cell(one) for one in shown]
        last = "-" if of_best is None else f"{of_best:.2f}"
        first = "-" if keep is None else f"{keep:.3g}"
        yield f"| {layer} | {first} | {' | '.join(cells)} | {ratio:.2f} {by} | {last} |"
    sums = [sums_of(column) for column in columns]
    for title, *cells in zip(("geometric mean", "least", f"below {SLOWER}"), *sums, strict=True):
        yield f"| **{title}** | | {' | '.join(cells)} |"


def ratio_of(found: Found | None) -> float | None:
    """Of a writing that was measured."""
    return None if found is None or found.verdict is None else float(found.verdict["ratio"])


def sums_of(ratios: Sequence[float]) -> tuple[str, str, str]:
    """Geometric mean, least, and how many are slower."""
    if not ratios:
        return "-", "-", "-"
    slower = sum(ratio < SLOWER for ratio in ratios)
    return (
        f"{statistics.geometric_mean(ratios):.2f}",
        f"{min(ratios):.2f}",
        f"{slower} of {len(ratios)}",
    )


def head(runtime: str, threads: int) -> str:
    """What was measured, where and when."""
    on = "one thread" if threads == 1 else f"{threads} threads"
    return (
        f"{title_of(runtime)}, {on}, {platform.system()} {platform.machine()}, "
        f"{datetime.date.today().isoformat()}, deconvfix {deconvfix.__version__}."
    )


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=sorted(RUNTIMES), default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", default=":", help="a part of them, as FROM:TO")
    parser.add_argument("--seconds", type=float, default=20.0, help="for the runs of a layer")
    parser.add_argument("--loads", type=int, help="of each file; by default until all is clear")
    parser.add_argument("--control", action="store_true", help="time each layer against itself")
    parser.add_argument("--json", type=Path, help="a file of lines that what was found is added to")
    parser.add_argument("--table", type=Path, help="only print what is in such a file")
    given = parser.parse_args()
    found: list[Found] = []
    control: dict[str, Writer] = {CONTROL: lambda proto, _: proto} if given.control else {}
    writings = WRITINGS | {AUTO: auto(given.runtime, given.threads, given.seconds)} | control
    os.environ["DECONVFIX_CACHE"] = os.devnull  # what was measured before does not count
    if given.table:
        found = [Found(**json.loads(line)) for line in given.table.read_text().splitlines()]
    else:
        first, _, last = given.layers.partition(":")
        for layer in LAYERS[int(first or 0) : int(last or len(LAYERS))]:
            own = list(
                measure(
                    layer,
                    given.runtime,
                    writings,
                    threads=given.threads,
                    seconds=given.seconds,
                    repeats=given.loads,
                )
            )
            print(layer.name, list(table(own))[2], file=sys.stderr, flush=True)
            found += own
            if given.json:
                with given.json.open("a") as file:
                    file.writelines(json.dumps(asdict(one)) + "\n" for one in own)
    print(head(given.runtime, given.threads), "", *table(found), sep="\n")


if __name__ == "__main__":
    main()
