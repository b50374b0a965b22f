"""Kills and interrupts conversions at random moments, and says what they left.

python -m tests.fuzz.kills [--kills 200] [--interrupts 60] [--seed 0]

After each one the inputs must be what they were, and under the output's name there must be nothing, or a
whole file: the one that was there before, or a new one, whose weights belong to it. After the next run no
working folder may be left.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import click
import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from deconvfix.cli.main import main as command


def network() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(8, 12, 4, 2, 1), nn.ReLU(), nn.Conv2d(12, 3, 3))


def _onnx_file(path: Path, seed: int, *, beside: bool) -> None:
    weight = np.random.default_rng(seed).standard_normal((32, 40, 8, 8)).astype(np.float32)
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", strides=[2, 2])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 32, 5, 4])],
        [helper.make_tensor_value_info("y", 1, [1, 40, "h", "w"])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    name = f"{path.name}.data"
    onnx.save(model, path, save_as_external_data=beside, location=name, size_threshold=0)


def _prepare(kind: str, folder: Path, seed: int) -> list[str]:
    """The inputs of a conversion, and its arguments."""
    torch.manual_seed(seed)
    if kind in ("onnx", "onnx with data"):
        _onnx_file(folder / "in.onnx", seed, beside=kind != "onnx")
        return ["convert", str(folder / "in.onnx"), "-o", str(folder / "out.onnx")]
    if kind == "program":
        program = torch.export.export(network().eval(), (torch.randn(1, 8, 6, 7),))
        torch.export.save(program, folder / "in.pt2")
        return ["convert", str(folder / "in.pt2"), "-o", str(folder / "out.pt2")]
    torch.save(network().state_dict(), folder / "in.pt")
    arguments = ["convert", str(folder / "in.pt"), "--arch", "tests.fuzz.kills:network"]
    return [*arguments, "-o", str(folder / "out.pt"), "--input", "input=1x8x6x7"]


def _run(arguments: list[str], after: float | None, how: signal.Signals) -> tuple[int, float]:
    """Runs the command in a child; it gets the signal after so many seconds. Status and duration."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            command(arguments, standalone_mode=True)
        except SystemExit as ended:
            os._exit(int(ended.code or 0))
        except BaseException:
            os._exit(99)  # a traceback
        os._exit(0)
    if after is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, how)
    _, status = os.waitpid(child, 0)
    return status, time.monotonic() - start


def _content(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


def _read(kind: str, folder: Path) -> None:
    """Reads the output, which raises where it is not whole."""
    if kind.startswith("onnx"):
        onnx.checker.check_model(str(folder / "out.onnx"))
        onnx.load(folder / "out.onnx")
    elif kind == "program":
        torch.export.load(folder / "out.pt2")
    else:
        torch.load(folder / "out.pt", weights_only=True)


def _case(kind: str, how: signal.Signals, rng: random.Random, duration: float) -> list[str]:
    """What is wrong after one run that is ended at a random moment."""
    problems = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = _prepare(kind, folder, rng.randrange(1000))
        inputs = _content(folder)
        if rng.random() < 0.5:
            # Over the output of an earlier run.
            _run(arguments, None, how)
            arguments.append("--force")
        earlier = _content(folder)
        status, _ = _run(arguments, rng.uniform(0, duration), how)
        now = _content(folder)
        problems += [f"{file} has changed" for file in inputs if now.get(file) != inputs[file]]
        output = arguments[arguments.index("-o") + 1]
        if os.path.exists(output):
            try:
                _read(kind, folder)
            except Exception as error:
                problems.append(f"the output is not whole ({type(error).__name__})")
        if any(file.startswith("out") for file in earlier) and not os.path.exists(output):
            problems.append("the earlier output is gone")
        hidden = [path for path in folder.iterdir() if path.name.startswith(".")]
        if how == signal.SIGINT:
            problems += [f"an interrupt leaves {path.name[:12]}" for path in hidden]
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 99:
                problems.append("an interrupt ends in a traceback")
        for path in hidden:
            # As old as what the next run takes for abandoned.
            os.utime(path, (time.time() - 60,) * 2)
        again = [argument for argument in arguments if argument != "--force"] + ["--force"]
        status, _ = _run(again, None, how)
        if status != 0:
            problems.append(f"the next run fails ({status})")
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        problems += ["the next run leaves a working folder" for _ in left]
        return [f"{kind}, {how.name}: {problem}" for problem in problems]


KINDS = ("onnx", "onnx with data", "program", "checkpoint")


@click.command()
@click.option("--kills", default=200, help="How often a run is killed.")
@click.option("--interrupts", default=60, help="How often one is interrupted.")
@click.option("--seed", default=0, help="Of the moments.")
def main(kills: int, interrupts: int, seed: int) -> None:
    """End conversions at random moments, and look at what they leave."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # threads do not survive a fork
    durations = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as name:
            arguments = _prepare(kind, Path(name), seed)
            status, durations[kind] = _run(arguments, None, signal.SIGKILL)
            assert status == 0, (kind, status)
    click.echo({kind: round(seconds, 2) for kind, seconds in durations.items()})
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    for number in range(kills + interrupts):
        how = signal.SIGKILL if number < kills else signal.SIGINT
        kind = KINDS[number % len(KINDS)]
        found.update(_case(kind, how, rng, durations[kind]))
    for what, times in found.most_common():
        click.echo(f"{times:5} {what}")
    click.echo(f"{kills} kills, {interrupts} interrupts, {sum(found.values())} problems")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
