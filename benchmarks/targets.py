"""What other runtimes make of single transposed convolutions, and of what deconvfix writes for them.

    python benchmarks/targets.py --write docs/targets.md

Each geometry is an ONNX file of one ConvTranspose, with fixed and with open sizes, and is converted into the
exact form as it is written for a runtime (`convert --target`). Both files run in every runtime that is
installed (`deconvfix verify --runtime`), against the original in ONNX Runtime. Packages: pip install
'deconvfix[mnn,ncnn,opencv,openvino,tract]'; onnxruntime-web is found where `npm install onnxruntime-web` was
run, in the working directory or above it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deconvfix
from deconvfix.errors import OptionError
from deconvfix.parity.runtime import isolated
from deconvfix.runtimes.proof import Fared, RuntimeReport, prove_in
from deconvfix.runtimes.registry import RUNTIMES, runtime_named

SECONDS = 60.0
# The line of the page below which this script writes.
MARK = "<!-- below: python benchmarks/targets.py --write docs/targets.md -->"
SIZES = {1: (23,), 2: (9, 7), 3: (5, 4, 6)}
C_IN, C_OUT = 8, 6
# The target of a runtime is called like it, but for these.
PROFILES = {"onnxruntime-web": "onnxruntime"}


@dataclass(frozen=True)
class Layer:
    """One ConvTranspose.

    Attributes:
        name: For the table.
        kernel: Its sizes.
        attributes: Of the node, as ONNX has them; kernel_shape is the kernel.
        c_out: Output channels.
    """

    name: str
    kernel: tuple[int, ...]
    attributes: dict[str, Any]
    c_out: int = C_OUT


def layer(ndim: int, name: str, kernel: int, stride: int, **attributes: Any) -> Layer:
    """A layer with equal sizes along all axes; `pad` stands for equal pads."""
    pad = attributes.pop("pad", 0)
    chosen = {"strides": [stride] * ndim, **attributes}
    if pad:
        chosen["pads"] = [pad] * (2 * ndim)
    c_out = C_IN if chosen.get("group") == C_IN else C_OUT
    return Layer(f"{ndim}-D {name}", (kernel,) * ndim, chosen, c_out)


LAYERS: tuple[Layer, ...] = (
    layer(1, "k4 s2 p1", 4, 2, pad=1),
    layer(1, "k16 s8 p4", 16, 8, pad=4),
    layer(1, "k3 s2 p1, output_padding 1", 3, 2, pad=1, output_padding=[1]),
    layer(1, "k2 s3 (kernel below stride)", 2, 3),
    layer(1, "k4 s2 p1, depthwise", 4, 2, pad=1, group=C_IN),
    layer(1, "k4 s2, pads 0 and 3", 4, 2, pads=[0, 3]),
    layer(2, "k4 s2 p1", 4, 2, pad=1),
    layer(2, "k3 s2 p1, output_padding 1", 3, 2, pad=1, output_padding=[1, 1]),
    layer(2, "k2 s2", 2, 2),
    layer(2, "k5 s3 p1, output_padding 2", 5, 3, pad=1, output_padding=[2, 2]),
    layer(2, "k16 s8 p4", 16, 8, pad=4),
    layer(2, "k3 s1 p1", 3, 1, pad=1),
    layer(2, "k1 s2 (kernel below stride)", 1, 2),
    layer(2, "k2 s3, output_padding 1 (kernel below stride)", 2, 3, output_padding=[1, 1]),
    Layer("2-D k3x4 s1x2, pads 1, 0 and 1, 2", (3, 4), {"strides": [1, 2], "pads": [1, 1, 0, 2]}),
    layer(2, "k4 s2, auto_pad SAME_UPPER", 4, 2, auto_pad="SAME_UPPER"),
    layer(2, "k3 s2, auto_pad SAME_UPPER", 3, 2, auto_pad="SAME_UPPER"),
    layer(2, "k3 s2, auto_pad SAME_LOWER", 3, 2, auto_pad="SAME_LOWER"),
    layer(2, "k3 s2, auto_pad VALID", 3, 2, auto_pad="VALID"),
    layer(2, "k4 s2, output_shape 18x14", 4, 2, output_shape=[18, 14]),
    layer(2, "k3 s2, output_shape 18x14", 3, 2, output_shape=[18, 14]),
    layer(2, "k4 s2 p1, 2 groups", 4, 2, pad=1, group=2),
    layer(2, "k4 s2 p1, depthwise", 4, 2, pad=1, group=C_IN),
    layer(2, "k3 s2 p1, dilation 2", 3, 2, pad=1, dilations=[2, 2]),
    layer(2, "k3 s3 p2, dilation 2", 3, 3, pad=2, dilations=[2, 2]),
    layer(3, "k4 s2 p1", 4, 2, pad=1),
    layer(3, "k2 s2", 2, 2),
    layer(3, "k3 s2 p1, output_padding 1", 3, 2, pad=1, output_padding=[1, 1, 1]),
    layer(3, "k4 s2 p1, depthwise", 4, 2, pad=1, group=C_IN),
    Layer("3-D k3x4x4 s1x2x2 p1", (3, 4, 4), {"strides": [1, 2, 2], "pads": [1] * 6}),
)  # fmt: skip


def model_of(made: Layer, *, is_open: bool) -> onnx.ModelProto:
    """The layer as a file of opset 17, with seeded normal weights."""
    rng = np.random.default_rng(0)
    groups = made.attributes.get("group", 1)
    weight = rng.standard_normal((C_IN, made.c_out // groups, *made.kernel))
    stored = {"w": weight, "b": rng.standard_normal(made.c_out)}
    node = helper.make_node(
        "ConvTranspose", ["x", "w", "b"], ["y"],
        name="up", kernel_shape=made.kernel, **made.attributes,
    )  # fmt: skip
    ndim = len(made.kernel)
    sizes = "DHW"[-ndim:] if is_open else SIZES[ndim]
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, C_IN, *sizes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, made.c_out, *[None] * ndim])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in stored.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return proto if is_open else onnx.shape_inference.infer_shapes(proto)


@dataclass(frozen=True)
class Found:
    """One layer in one runtime."""

    layer: str
    sizes: str
    runtime: str
    report: RuntimeReport
    written: bool


def measure(layers: Sequence[Layer], runtimes: Sequence[str]) -> Iterator[Found]:
    """Every layer, with fixed and with open sizes, in every runtime."""
    with tempfile.TemporaryDirectory() as name, isolated(SECONDS):
        paths = Path(name, "before.onnx"), Path(name, "after.onnx")
        for sizes in ("fixed", "open"):
            for made in layers:
                before = model_of(made, is_open=sizes == "open")
                onnx.save(before, paths[0])
                x = np.random.default_rng(1).standard_normal(
                    (1, C_IN, *SIZES[len(made.kernel)])
                )  # fmt: skip
                feed = {"x": x.astype(np.float32)}
                for runtime in runtimes:
                    target = PROFILES.get(runtime, runtime)
                    done = deconvfix.convert(before, example_inputs=feed, target=target)
                    onnx.save(done.model, paths[1])
                    report = prove_in(runtime, *paths, [feed], SECONDS)
                    written = not done.plan.refused
                    words = report.verdict() if written else done.plan.refused[0].reason
                    print(f"{made.name}, {sizes}, {runtime}: {words}", file=sys.stderr, flush=True)
                    yield Found(made.name, sizes, runtime, report, written)


def word(fared: Fared) -> str:
    """How a file fared, in a word or two; what is wrong without an error stands out."""
    if fared.status == "wrong":
        return "**wrong size**" if "another size" in fared.words else "**wrong values**"
    return fared.status


def cell(found: Found) -> str:
    """Original and converted file; one word where both fared alike."""
    before, after = word(found.report.before), word(found.report.after)
    after = after if found.written else "not written"
    return before if before == after else f"{before} → {after}"


def tables(found: Sequence[Found]) -> Iterator[str]:
    """Sums, then one table for fixed and one for open sizes, in Markdown."""
    runtimes = list(dict.fromkeys(one.runtime for one in found))
    title = {one.runtime: one.report.runtime for one in found}
    yield "| runtime | original: right | wrong | refused | converted: right | wrong | refused | not written |"
    yield "|---|---|---|---|---|---|---|---|"
    for runtime in runtimes:
        own = [one for one in found if one.runtime == runtime]
        written = [one.report.after for one in own if one.written]
        counts = [
            sum(fared.status in statuses for fared in fareds)
            for fareds in ([one.report.before for one in own], written)
            for statuses in (("right",), ("wrong", "unproven"), ("refused", "died", "late"))
        ]
        counts.append(len(own) - len(written))
        yield f"| {title[runtime]} | {' | '.join(map(str, counts))} |"
    for sizes in dict.fromkeys(one.sizes for one in found):
        yield ""
        yield f"## Inputs of {sizes} sizes"
        yield ""
        yield f"| layer | {' | '.join(runtimes)} |"
        yield f"|---|{'---|' * len(runtimes)}"
        for name in dict.fromkeys(one.layer for one in found):
            cells = {
                one.runtime: cell(one) for one in found if (one.layer, one.sizes) == (name, sizes)
            }
            yield f"| {name} | {' | '.join(cells[runtime] for runtime in runtimes)} |"


def section(found: Sequence[Found]) -> str:
    """What stands below the mark of the page."""
    right = [
        fared.error_ratio or 0.0
        for one in found
        for fared in (one.report.before, one.report.after)
        if fared.status == "right"
    ]
    head = (
        f"Made on {datetime.date.today().isoformat()} on {platform.system()} {platform.machine()} by "
        "`python benchmarks/targets.py --write docs/targets.md`,\n"
        f"with {len({one.layer for one in found})} layers and deconvfix {deconvfix.__version__}. The largest "
        f"difference that counts as right was {max(right, default=0.0):.2g} times\nthe rounding bound, whose "
        "limit is 10."
    )
    return "\n".join([head, "", *tables(found)]) + "\n"


def written(page: str, text: str) -> str:
    """A page with everything below its mark replaced."""
    head, mark, _ = page.partition(MARK)
    if not mark:
        raise SystemExit(f"The page has no line {MARK}")
    return f"{head}{mark}\n\n{text}"


def installed(names: Sequence[str]) -> Iterator[str]:
    """Those runtimes that are there; the others are named."""
    for name in names:
        try:
            runtime_named(name)
        except OptionError as error:
            print(f"Left out: {error}", file=sys.stderr)
            continue
        yield name


def main() -> None:
    """Prints the tables, or writes them into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtimes", nargs="*", default=sorted(RUNTIMES), help="which; all")
    parser.add_argument("--layers", default="", help="only layers with this in their name")
    parser.add_argument(
        "--write", type=Path, help="the page whose tables are replaced; stdout without"
    )
    parser.add_argument("--json", type=Path, help="a file for everything that was found")
    given = parser.parse_args()
    layers = [made for made in LAYERS if given.layers in made.name]
    found = list(measure(layers, list(installed(given.runtimes))))
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found], indent=1, default=str))
    text = section(found)
    if given.write:
        page = given.write.read_text(encoding="utf-8")
        given.write.write_text(written(page, text), encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
