"""What strangers may give: files of every kind that is read, damaged, and the command that reads each.

Each target is a function of a random.Random and an empty folder that writes a damaged file there and returns
the command that reads it. The command must end with exit code 0, or 1 and a sentence, and write nothing then.
"""

from __future__ import annotations

import functools
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from deconvfix.cli.main import main
from tests.fuzz import onnx_files
from tests.support.command import Net, arch
from tests.support.forms import arguments_of

ODD = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 1.5, float("nan"), float("inf"), 1e308,
    "", "x", "up1", "\x1b[31m", "a" * 3000, [], {}, [1], [[1]], {"a": 1}, ["x"], [2**62] * 4,
)  # fmt: skip


def changed_json(value, rng):
    """A JSON value with one part replaced, removed or added."""
    parts = [[]]

    def walk(inner, path):
        if isinstance(inner, dict):
            for key, below in inner.items():
                parts.append([*path, key])
                walk(below, [*path, key])
        elif isinstance(inner, list):
            for index, below in enumerate(inner[:20]):
                parts.append([*path, index])
                walk(below, [*path, index])

    walk(value, [])
    path = rng.choice(parts)
    if not path:
        return rng.choice(ODD)
    target = functools.reduce(lambda inner, key: inner[key], path[:-1], value)
    choice = rng.random()
    if choice < 0.7:
        target[path[-1]] = rng.choice(ODD)
    elif choice < 0.85:
        del target[path[-1]]
    elif isinstance(target, dict):
        target[rng.choice(["name", "extra", "fitted", "format", "x"])] = rng.choice(ODD)
    else:
        target.append(rng.choice(ODD))
    return value


def changed_bytes(content, rng):
    """Bytes with a few of them changed, removed or repeated."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 50])):
        position = rng.randrange(len(content) or 1)
        choice = rng.random()
        if choice < 0.6 and content:
            content[position] = rng.randrange(256)
        elif choice < 0.8:
            del content[position : position + rng.choice([1, 8, 1000])]
        else:
            content[position:position] = rng.choice([b"\0", b"\xff" * 8, b"PK\3\4", bytes(1000)])
    return bytes(content)


@functools.cache
def _seeds():
    """Sound files, made once."""
    torch.manual_seed(0)
    model = Net().eval()
    state = model.state_dict()
    seeds = {}
    buffer = io.BytesIO()
    torch.save({"epoch": 3, "state_dict": state}, buffer)
    seeds["checkpoint"] = buffer.getvalue()
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        save_file(state, path)
        seeds["safetensors"] = path.read_bytes()
        recipe = Path(folder) / "recipe.json"
        CliRunner().invoke(
            main,
            [
                "convert",
                str(path),
                *arch("Net"),
                "--dry-run",
                *arguments_of("resize"),
                "--recipe",
                str(recipe),
            ],
        )
        seeds["recipe"] = recipe.read_bytes()
        program = Path(folder) / "net.pt2"
        torch.export.save(torch.export.export(model, (torch.randn(1, 2, 5, 6),)), program)
        seeds["program"] = program.read_bytes()
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros((8, 2, 6, 6), np.float32))
    seeds["samples"] = buffer.getvalue()
    return seeds


def onnx_file(rng, folder):
    (folder / "in.onnx").write_bytes(onnx_files.mutated(rng))
    (folder / "w").write_bytes(bytes(4096))
    options = rng.choice([[], arguments_of("equalized"), arguments_of("resize")])
    return ["convert", folder / "in.onnx", "-o", folder / "out.onnx", "--timeout", "10", *options]


def inspected_onnx_file(rng, folder):
    (folder / "in.onnx").write_bytes(onnx_files.mutated(rng))
    return ["inspect", folder / "in.onnx", "--timeout", "10"]


def checkpoint(rng, folder):
    content = changed_bytes(_seeds()["checkpoint"], rng)
    (folder / "in.pt").write_bytes(content)
    return ["convert", folder / "in.pt", *arch("Net"), "-o", folder / "out.pt"]


def odd_tensors(rng, folder):
    """Sound archives whose entries are no ordinary tensors."""
    state = Net().state_dict()
    name = rng.choice([*state])
    value = state[name]
    state[name] = rng.choice([
        lambda: value.to_sparse(), lambda: value.to("meta"), lambda: value.to(torch.complex64),
        lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]), lambda: value.half(),
        lambda: value.to(torch.int64), lambda: value[:0], lambda: value[None], lambda: value * torch.nan,
        lambda: value.to(torch.float8_e4m3fn), lambda: 3, lambda: "text", lambda: [value],
        lambda: torch.ones(1).expand(value.shape), lambda: torch.nn.Parameter(value),
    ])()  # fmt: skip
    torch.save({"net": state}, folder / "in.pt")
    return ["convert", folder / "in.pt", *arch("Net"), "-o", folder / "out.safetensors"]


def safetensors(rng, folder):
    (folder / "in.safetensors").write_bytes(changed_bytes(_seeds()["safetensors"], rng))
    return ["convert", folder / "in.safetensors", *arch("Net"), "-o", folder / "out.pt"]


def recipe(rng, folder):
    data = json.loads(_seeds()["recipe"])
    for _ in range(rng.choice([1, 1, 2])):
        data = changed_json(data, rng)
    (folder / "recipe.json").write_text(json.dumps(data))
    (folder / "in.safetensors").write_bytes(_seeds()["safetensors"])
    options = ["-o", folder / "out.pt", "--recipe", folder / "recipe.json"]
    return ["convert", folder / "in.safetensors", *arch("Net"), *options]


def program(rng, folder):
    """The JSON in the archive, or the bytes of the whole."""
    content = _seeds()["program"]
    if rng.random() < 0.3:
        (folder / "in.pt2").write_bytes(changed_bytes(content, rng))
    else:
        with (
            zipfile.ZipFile(io.BytesIO(content)) as old,
            zipfile.ZipFile(folder / "in.pt2", "w") as new,
        ):
            described = [name for name in old.namelist() if name.endswith(".json")]
            chosen = rng.choice(described)
            for name in old.namelist():
                data = old.read(name)
                if name == chosen:
                    data = json.dumps(changed_json(json.loads(data), rng)).encode()
                new.writestr(name, data)
    return ["inspect", folder / "in.pt2"]


def samples(rng, folder):
    (folder / "x.npz").write_bytes(changed_bytes(_seeds()["samples"], rng))
    (folder / "in.safetensors").write_bytes(_seeds()["safetensors"])
    fit = ["--to", "equalized", "--init", "calibrated", "--calibration", folder / "x.npz"]
    options = ["--input", "x=1x2x6x6", "-o", folder / "out.pt"]
    return ["convert", folder / "in.safetensors", *arch("Net"), *fit, *options]


TARGETS = (
    onnx_file, inspected_onnx_file, checkpoint, odd_tensors, safetensors, recipe, program, samples,
)  # fmt: skip


def check(target, rng, folder):
    """Runs one case.

    Raises:
        AssertionError: If it ends in another way than with a result or a sentence.
    """
    command = [str(part) for part in target(rng, folder)]
    before = {name: (folder / name).stat().st_size for name in sorted(os.listdir(folder))}
    result = CliRunner().invoke(main, command)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1), result.output
    after = {name: (folder / name).stat().st_size for name in sorted(os.listdir(folder))}
    if result.exit_code == 1:
        assert after == before, "something was written"
        assert result.stderr.startswith("Error: ") or result.stdout, result.output
    else:
        assert before.items() <= after.items()
