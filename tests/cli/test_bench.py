"""Two models timed in turns: the arithmetic, and the command for each kind of file."""

import itertools
import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import deconvfix
from deconvfix.cli import bench, text
from deconvfix.cli.bench import Runner
from deconvfix.cli.main import main
from deconvfix.frontends.program import file as program_file
from deconvfix.runtimes.registry import RUNTIMES
from tests.support import fake_runtimes
from tests.support.command import Net, run_json

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


@pytest.mark.parametrize(
    ("factor", "words"),
    [(0.8, "faster by 25 %"), (1.25, "slower by 20 %"), (1, "no difference measurable")],
)
def test_the_verdict_knows_its_noise(monkeypatch, factor, words):
    """The first two runs of each do not count. All of a round are slowed by the same."""
    shared = [9, 9, 8, 30, 6, 12, 40, 8, 11, 7]
    clock(monkeypatch, itertools.chain.from_iterable((one, factor * one) for one in shared))
    pair = (Runner("one", lambda: None, {"x": (1, 2, 5, 6)}), Runner("two", lambda: None))
    report = bench.bench(*pair, repeats=8, threads=1)
    assert report.verdict.words() == words
    lines = " ".join(line for line in text.bench(report) if isinstance(line, str))
    assert f"At inputs x 1x2x5x6: {words}" in lines
    assert "99 % confidence" in lines


@pytest.fixture
def fakes(monkeypatch):
    for name, home in fake_runtimes.NAMES.items():
        monkeypatch.setitem(RUNTIMES, name, home)


@pytest.mark.usefixtures("fakes")
def test_in_a_runtime(files, tmp_path):
    for milliseconds in (30, 10):
        shutil.copy(files / "before.onnx", tmp_path / f"sleeps_{milliseconds}.onnx")
    paths = [str(tmp_path / f"sleeps_{milliseconds}.onnx") for milliseconds in (30, 10)]
    named = ("--runtime", "Sleeps", "--threads", "2")
    told = run_json("bench", *paths, *named, "--repeats", "8")
    assert told["format"] == "deconvfix.bench/1"
    assert [told[each]["runtime"] for each in ("before", "after")] == ["Fake 1.2"] * 2
    assert 1 < told["verdict"]["low"] < told["verdict"]["ratio"] < told["verdict"]["high"]
    assert told["before"]["median_ms"] > told["after"]["median_ms"] >= 10
    assert told["inputs"] == {"x": [1, 2, 5, 6]}
    assert (told["threads"], told["repeats"]) == (2, 32)
    result = CliRunner().invoke(main, ["bench", *paths[:1], *paths[:1], *named])
    assert result.exit_code == 0, result.output
    assert "At inputs x 1x2x5x6:" in " ".join(result.stdout.split())


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--runtime", "Refuses"), "opset 17 is too new"),
        (("--runtime", "NotInstalled"), "there_is_no_such_package"),
        (("--runtime", "tensorflow"), "'tensorflow'"),
        (("--runtime", "Fake", "--repeats", "0"), "1 or more runs are needed"),
    ],
)
def test_errors_of_runtimes(files, arguments, words):
    result = run(files, "onnx", "onnx", *arguments)
    assert result.exit_code == 1
    assert words in " ".join(result.stderr.split())


def test_only_onnx_files_run_in_runtimes(files):
    assert run(files, "pt2", "onnx", "--runtime", "onnxruntime").exit_code == 2


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
    [shape] = told["inputs"].values()
    assert shape == [1, 2, 5, 6]
    assert told["verdict"]["words"] == "no difference measurable"
    assert told["verdict"]["low"] is None


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
