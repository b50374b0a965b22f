"""How many files of the package a conversion enters, and how often it goes from one to another.

    python benchmarks/calls.py [--list] [--json]

A reader who follows a call has to open each of these files. Counted is what runs, not what is imported:

- a file is entered when Python calls a function, method, lambda or generator that stands in it;
- a hop is a pair of files, one of which calls into the other. Calls that come back through other code (a
  torch.nn.Module, a context manager, the method that `dataclass` writes) count as calls from the file of the
  package that is the nearest one up the stack;
- whatever runs while a file of the package is being imported does not count.

Only the thread that converts is counted. List comprehensions are calls up to Python 3.11 and none later; they
stand in the file that runs them, and change neither number.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deconvfix
from deconvfix.__main__ import main as command_line

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(deconvfix.__file__).parent


@dataclass(frozen=True)
class Counted:
    """What a call entered; files as paths inside the package, with slashes.

    Attributes:
        files: Those in which a function ran.
        hops: Pairs of a file that calls and another one that is called.
    """

    files: frozenset[str]
    hops: frozenset[tuple[str, str]]


def count(call: Callable[[], object], package: Path = PACKAGE) -> Counted:
    """Runs a call and counts the files of the package that it enters.

    Args:
        call: What to run, without arguments.
        package: The folder whose files count.
    """
    prefix = f"{package}{os.sep}"
    files: set[str] = set()
    hops: set[tuple[str, str]] = set()

    def named(frame: FrameType) -> str:
        return frame.f_code.co_filename.removeprefix(prefix).replace(os.sep, "/")

    def note(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(prefix):
            return
        stack = [part for part in _outwards(frame) if part.f_code.co_filename.startswith(prefix)]
        if any(part.f_code.co_name == "<module>" for part in stack):
            return  # a file is being imported
        entered = named(frame)
        files.add(entered)
        if len(stack) > 1 and named(stack[1]) != entered:
            hops.add((named(stack[1]), entered))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return Counted(frozenset(files), frozenset(hops))


def _outwards(frame: FrameType) -> Iterator[FrameType]:
    """A frame, the one that called it, and so on."""
    caller: FrameType | None = frame
    while caller is not None:
        yield caller
        caller = caller.f_back


# --- what is counted ----------------------------------------------------------------------------


def two_layers() -> nn.Module:
    """Even overlap and uneven overlap, in one small module."""
    return nn.Sequential(
        nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1),
    ).eval()


def write_onnx(path: Path) -> None:
    """Writes the same two layers as an ONNX file."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (3, 4, 4, 4), "b1": (4,), "w2": (4, 2, 3, 3), "b2": (2,)}
    stored = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    deconv = partial(helper.make_node, "ConvTranspose", strides=[2, 2], pads=[1, 1, 1, 1])
    nodes = [
        deconv(["x", "w1", "b1"], ["features"], name="up1"),
        helper.make_node("Relu", ["features"], ["rectified"]),
        deconv(["rectified", "w2", "b2"], ["y"], name="up2", output_padding=[1, 1]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 32, 32])
    graph = helper.make_graph(nodes, "two_layers", [x], [y], stored)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def typed(*arguments: str) -> None:
    """Runs the command line in this process; what it prints is thrown away.

    Raises:
        RuntimeError: If it fails.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = command_line(arguments, standalone_mode=False)
    if code:
        raise RuntimeError(printed.getvalue())


def calibrated_onnx(folder: Path) -> Callable[[], object]:
    """An ONNX file, fitted to what the original computes, at the command line."""
    write_onnx(folder / "m.onnx")
    fit = ("--to", "equalized", "--init", "calibrated", "--calibration", "normal")
    return partial(typed, "convert", str(folder / "m.onnx"), *fit, "-o", str(folder / "fixed.onnx"))


def module(_: Path) -> Callable[[], object]:
    """A module, to the sub-pixel form."""
    example = (torch.zeros(1, 3, 8, 8),)
    return partial(deconvfix.convert, two_layers(), example_inputs=example)


def program(_: Path) -> Callable[[], object]:
    """An exported program, to the sub-pixel form."""
    exported = torch.export.export(two_layers(), (torch.zeros(1, 3, 8, 8),))
    return partial(deconvfix.convert, exported)


def checkpoint(folder: Path) -> Callable[[], object]:
    """A bundled checkpoint, to the sub-pixel form, at the command line."""
    file = ROOT / "fixtures" / "digits_generator.safetensors"
    arch = ("--arch", "fixtures.models:digits_generator")
    return partial(typed, "convert", str(file), *arch, "-o", str(folder / "fixed.safetensors"))


Case = Callable[[Path], Callable[[], object]]
# What is shown: each makes its call ready, given an empty folder.
CASES: dict[str, Case] = {
    "convert m.onnx --to equalized --init calibrated --calibration normal": calibrated_onnx,
    "deconvfix.convert(module)": module,
    "deconvfix.convert(program)": program,
    "convert net.safetensors --arch ...": checkpoint,
}


def count_case(case: Case) -> Counted:
    """Counts one of the cases, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return count(case(Path(folder)))


@click.command()
@click.option("--list", "show_files", is_flag=True, help="Name the files.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(show_files: bool, as_json: bool) -> None:
    """Count the files that a conversion enters, and the hops between them."""
    torch.set_num_threads(1)
    counted = {name: count_case(case) for name, case in CASES.items()}
    if as_json:
        described: dict[str, Any] = {
            name: {"files": sorted(found.files), "hops": sorted(found.hops)}
            for name, found in counted.items()
        }
        click.echo(json.dumps(described, indent=2))
        return
    console = Console(highlight=False)
    table = Table("Case", "Files", "Hops")
    for name, found in counted.items():
        table.add_row(name, str(len(found.files)), str(len(found.hops)))
    console.print(table)
    if show_files:
        for name, found in counted.items():
            console.print(f"\n{name}", *sorted(found.files), sep="\n  ", markup=False)


if __name__ == "__main__":
    main()
