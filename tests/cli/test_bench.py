"""Two models timed in turns: the arithmetic, and the command for each kind of file."""

import itertools
import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import deconvfix
from deconvfix.cli import bench
from deconvfix.cli.bench import Runner
from deconvfix.cli.main import main
from deconvfix.frontends.program import file as program_file
from tests.support.command import Net

ARCH = "tests.support.command:Net"

INPUT = ("--input", "x=1x2x5x6")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same network, before and after, in all kinds of files."""
    folder = tmp_path_factory.mktemp("bench")
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(1, 2, 5, 6)
    after = deconvfix.convert(net)
    save_file(net.state_dict(), folder / "before.safetensors")
    arguments = [str(folder / f"{name}.safetensors") for name in ("before", "after")]
    made = CliRunner().invoke(main, ["convert", arguments[0], "-o", arguments[1], "--arch", ARCH])
    assert made.exit_code == 0, made.output
    for name, module in (("before", net), ("after", after.model)):
        deconvfix.export_onnx(module, folder / f"{name}.onnx", (x,), verify=False)
        program_file.write(torch.export.export(module, (x,)), folder / f"{name}.pt2")
    return folder


def run(files, before, after, *arguments):
    arch = ("--arch", ARCH) if before == "safetensors" else ()
    names = [str(files / f"{name}.{kind}") for name, kind in (("before", before), ("after", after))]
    return CliRunner().invoke(main, ["bench", *names, *arch, *arguments])


def clock(monkeypatch, milliseconds):
    """A clock on which the runs take these times, one after the other."""
    ticks = itertools.accumulate(
        itertools.chain.from_iterable((0.0, each / 1e3) for each in milliseconds)
    )
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(ticks))


def test_medians_and_their_ratio(monkeypatch):
    """Runs alternate, and the first two of each, which are slow here, do not count."""
    before, after = [900, 900, 8, 10, 6, 12, 40], [900, 900, 4, 5, 3, 4, 5]
    clock(monkeypatch, itertools.chain.from_iterable(zip(before, after, strict=True)))
    ran = []
    pair = (Runner("one", lambda: ran.append("one")), Runner("two", lambda: ran.append("two")))
    report = bench.bench(*pair, repeats=5, threads=3)
    assert ran == ["one", "two"] * 7
    assert report.before.median_ms == pytest.approx(10)
    assert report.before.quartiles_ms == pytest.approx((8, 12))
    assert report.after.median_ms == pytest.approx(4)
    assert report.ratio == pytest.approx(2.5)
    # Of 2, 2, 2, 3 and 8.
    assert report.ratio_quartiles == pytest.approx((2, 3))
    assert (report.repeats, report.threads) == (5, 3)
    assert (report.before.runtime, report.after.runtime) == ("one", "two")


@pytest.mark.parametrize("before", ["onnx", "pt2", "safetensors"])
@pytest.mark.parametrize("after", ["same", "onnx"])
def test_command(files, before, after):
    kind = before if after == "same" else after
    result = run(files, before, kind, *INPUT, "--repeats", "3", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["format"] == "deconvfix.bench/1"
    runtimes = ["ONNX Runtime" if each == "onnx" else "torch" for each in (before, kind)]
    assert [told["before"]["runtime"], told["after"]["runtime"]] == runtimes
    medians = [told[each]["median_ms"] for each in ("before", "after")]
    assert told["ratio"] == pytest.approx(medians[0] / medians[1])
    assert min(medians) > 0
    assert told["repeats"] == 3


def test_text(files):
    result = run(files, "safetensors", "onnx", *INPUT, "--repeats", "2")
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "above 1, the converted model is faster" in words
    assert "1 thread" in words
    assert "The two models run in different runtimes" in words


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_inputs_are_found_where_the_file_has_them(files, kind):
    assert run(files, kind, kind, "--repeats", "2").exit_code == 0


def test_threads_are_those_that_were_asked_for(files, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert run(files, "pt2", "pt2", "--repeats", "2", "--threads", "2").exit_code == 0
    assert asked == [2, 2]


@pytest.mark.parametrize(
    ("before", "after", "arguments", "words"),
    [
        ("safetensors", "safetensors", (), "no example inputs are given"),
        ("onnx", "safetensors", INPUT, "an ONNX file is compared with an ONNX file"),
        ("onnx", "onnx", (*INPUT, "--repeats", "1"), "2 or more runs are needed"),
        ("onnx", "onnx", ("--input", "y=1x2x5x6"), "missing: 'x'"),
        ("pt2", "onnx", ("--input", "x=1x3x5x6"), "cannot be run on inputs"),
        ("onnx", "missing.onnx", (), "No such file or directory"),
    ],
)
def test_errors(files, before, after, arguments, words):
    result = run(files, before, after, *arguments)
    assert result.exit_code == 1
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
