"""Words of strangers on the terminal: shown, and never obeyed."""

import json
import os
import subprocess
import sys
import unicodedata
import warnings

import onnx
import pytest
import torch
from onnx import helper

from deconvfix.cli import terminal
from deconvfix.errors import printable
from deconvfix.fit.tuning import Progress
from deconvfix.parity.progress import step_by_step
from tests.support.command import INPUT, arch, run, save
from tests.support.forms import arguments_of
from tests.support.onnx_files import net

# Colours, a title, a link, one-byte codes, text that is turned around, a bell, a way back over the line.
HOSTILE = (
    "up\x1b[31mRED\x1b[0m\x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x9b2J\u202egpj.exe\b\r\u2028"
)


def obeyed(text):
    """The characters in it that a terminal obeys."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return sorted(
        ascii(char) for char in set(text) if unicodedata.category(char) in kinds and char != "\n"
    )


def hostile_net(**attributes):
    model = net()
    for node in model.graph.node:
        node.name = f"{node.name}{HOSTILE}"
        if node.op_type == "ConvTranspose":
            node.attribute.extend(helper.make_attribute(*pair) for pair in attributes.items())
    names = {"up1.weight": f"w{HOSTILE}", "a": f"a{HOSTILE}", "x": f"x{HOSTILE}"}
    for tensor in [*model.graph.initializer, *model.graph.input]:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    return model


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "in.onnx"
    onnx.save(hostile_net(), path)
    return path


def assert_quiet(result):
    assert result.output
    assert not obeyed(result.stdout + result.stderr)


def test_hostile_names_are_hostile():
    """The control: what is looked for is in the file."""
    assert len(obeyed(HOSTILE)) == 7


@pytest.mark.parametrize("options", [(), ("--json",), ("--input", "y=1x3x6x5")])
def test_inspect(file, options):
    assert_quiet(run("inspect", file, *options))


@pytest.mark.parametrize("options", [(), ("--json",), ("--dry-run",), arguments_of("equalized")])
def test_convert(file, options):
    assert_quiet(run("convert", file, "-o", file.with_name("out.onnx"), *options))


def test_verify(file):
    run("convert", file, "-o", file.with_name("out.onnx"))
    assert_quiet(run("verify", file, file.with_name("out.onnx")))


def test_refusal(tmp_path):
    onnx.save(hostile_net(pads=[-1, 0, 0, 0]), tmp_path / "in.onnx")
    result = run("convert", tmp_path / "in.onnx", "-o", tmp_path / "out.onnx", "--strict")
    assert result.exit_code == 1
    assert_quiet(result)


def test_entries_of_a_checkpoint(tmp_path):
    torch.save({f"entry{HOSTILE}": torch.ones(2)}, tmp_path / "net.pt")
    assert_quiet(run("inspect", tmp_path / "net.pt", *arch("Net")))


def test_words_of_a_recipe(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({"format": HOSTILE}))
    options = (*arch("Net"), "-o", tmp_path / "out.pt", "--recipe", tmp_path / "recipe.json")
    assert_quiet(run("convert", save(tmp_path), *options))


@pytest.mark.parametrize("name", ["a\x1b[31mb.onnx", "b\u202egpj.pt2", "c\x9b2J.safetensors"])
@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_names_of_files(tmp_path, name, command):
    """Those that the command itself refuses, and those that click does."""
    (tmp_path / name).write_bytes(b"nothing")
    assert_quiet(run(command, tmp_path / name))


def test_names_of_files_that_are_no_text(tmp_path):
    """A name is bytes; what is no UTF-8 in it must not end in a traceback either."""
    path = os.path.join(os.fsencode(tmp_path), b"a\xff\x9b.onnx")
    with open(path, "wb") as file:
        file.write(net().SerializeToString())
    command = [sys.executable, "-m", "deconvfix", "convert", path, "-o", path + b".onnx"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not obeyed((done.stdout + done.stderr).decode())


def warning():
    """A model whose code says something while it is built."""
    from tests.support.command import Net

    warnings.warn(f"said {HOSTILE}", stacklevel=1)
    print(f"printed {HOSTILE}")
    return Net()


@pytest.mark.filterwarnings("default:said")
def test_words_of_code(tmp_path):
    result = run("inspect", save(tmp_path), "--arch", f"{__name__}:warning", *INPUT)
    assert result.exit_code == 0
    assert "printed" in result.stderr
    assert_quiet(result)


def test_what_people_read_is_left_alone():
    text = "µ-law, Ünïcode, 日本語, 🙂: 3 m²\n\tdone"
    assert printable(text) == text
    assert printable("\x1b") == "\\x1b"


def test_colours_of_our_own_are_sent(file, monkeypatch):
    """On a terminal that has colours; only what stands in the file is shown as it is."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = run("convert", file, "-o", file.with_name("out.onnx")).stdout
    assert "\x1b[3" in shown
    assert "\x1b[31mRED" not in shown


def test_a_pipe_is_told_of_long_work_every_two_seconds(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with terminal.working("Converting"):
        for _ in step_by_step("Comparing layers", range(8)):
            clock[0] += 0.9
    told = capsys.readouterr().err.splitlines()
    # At 2.7 s and at 5.4 s; the last step is the end, and no news.
    assert told == [
        "Comparing layers, 3 of 8 (37 %), 4 s left",
        "Comparing layers, 6 of 8 (75 %), 2 s left",
    ]


def test_a_pipe_is_told_of_a_distillation(monkeypatch, capsys):
    """Its time begins where it begins, after other work."""
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with terminal.working("Converting") as progress:
        clock[0] += 30
        for at in range(5):
            progress(Progress(at, at / 4, 0.1, 0.1))
            clock[0] += 1.5
    told = capsys.readouterr().err.splitlines()
    assert told == ["Tuning, 25 of 100 (25 %), 4 s left", "Tuning, 75 of 100 (75 %), 2 s left"]


def test_a_pipe_is_told_nothing_of_short_work(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with terminal.working("Converting"):
        for _ in step_by_step("Comparing layers", range(1000)):
            clock[0] += 0.0015
    assert capsys.readouterr().err == ""
