"""Files timed in turns in other processes: what is counted, what does not run, what is faster."""

import itertools
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deconvfix.errors import OptionError
from deconvfix.runtimes import base, timing
from deconvfix.runtimes.registry import RUNTIMES, runtime_at
from deconvfix.runtimes.timing import Clocks, time_in
from deconvfix.runtimes.verdict import compare
from tests.support import fake_runtimes

FEED = {"x": np.ones((1, 3, 5, 4), np.float32)}


@pytest.fixture(autouse=True)
def one_turn(fakes):
    """All fakes can be named."""


def test_every_load_and_round_is_there_and_in_seconds(files):
    found = time_in("onnxruntime", files, FEED, repeats=3)
    assert [one.name for one in found] == [str(path) for path in files]
    assert [one.words for one in found] == ["", ""]
    for one in found:
        assert one.times.shape == (3, 4)
        assert (one.times > 1e-7).all()
        assert np.median(one.times) < 0.1


def slept(path, milliseconds, tmp_path):
    """The path of a file that the runtime `Sleeps` takes so long for."""
    copy = tmp_path / f"sleeps_{milliseconds}.onnx"
    copy.write_bytes(path.read_bytes())
    return copy


def test_a_slower_file_is_found_and_then_left_out(files, tmp_path):
    paths = [slept(files[0], ms, tmp_path) for ms in (10, 30, 4)]
    fast, slow, faster = time_in("Sleeps", paths, FEED, threads=2, seconds=60)
    assert compare(fast.times, slow.times).high < 0.9
    assert compare(fast.times, faster.times).low > 1.1
    assert len(slow.times) == 8
    assert fast.times.min() >= 10e-3


def test_sleep_is_no_time_of_the_cpu(files, tmp_path):
    [found] = time_in("Sleeps", [slept(files[0], 20, tmp_path)], FEED, threads=1, repeats=1)
    assert np.median(found.times) < 10e-3


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ("DiesOfLayers", "its process was ended by SIGSEGV"),
        ("RefusesLayers", "it does not load the file (opset 17 is too new)"),
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 1), (1, 0, 1)])
def test_a_file_that_does_not_run_is_said_and_loses_no_other(files, runtime, words, order):
    """The original has layers, the converted file has none."""
    found = time_in(runtime, [files[index] for index in order], FEED, repeats=2)
    for index, one in zip(order, found, strict=True):
        assert one.words == (words if index == 0 else "")
        assert one.times.shape == ((0, 4) if index == 0 else (2, 4))


def test_a_file_that_hangs_is_ended(files):
    [found] = time_in("Hangs", files[:1], FEED, limit=2)
    assert found.words == "it did not finish within 2 s"


def test_no_more_loads_than_there_is_time_for(files):
    found = time_in("onnxruntime", files, FEED, seconds=0)
    assert [len(one.times) for one in found] == [1, 1]


@pytest.mark.parametrize(("seconds", "loads"), [(3, 8), (1, 5)])
def test_what_a_first_verdict_needs_may_take_longer(files, monkeypatch, seconds, loads):
    """A second passes with each load, and equal files are told apart by none."""
    monkeypatch.setattr(timing, "_decided", lambda *given: False)
    clock = SimpleNamespace(monotonic=iter(range(100)).__next__)
    monkeypatch.setattr(timing, "time", clock)
    [found] = time_in("Fake", files[:1], FEED, seconds=seconds)
    assert len(found.times) == loads


def test_the_threads_reach_the_runtime(files, monkeypatch):
    asked = []
    monkeypatch.setattr(
        fake_runtimes.Fake, "load", lambda *given: asked.append(given[-1]) or (lambda feed: [])
    )
    clocks = Clocks()
    monkeypatch.setattr(timing.tempfile, "tempdir", timing.tempfile.tempdir)
    clocks.open(fake_runtimes.NAMES["Fake"], 3, FEED, None)
    clocks.load(0, str(files[0]), ("y",))
    assert asked == [3]


def test_warm_runs_do_not_count(monkeypatch):
    ran = []
    clocks = Clocks()
    clocks.clocks = {7: lambda runs: ran.append(runs) or float(runs)}
    clocks.feed = FEED
    assert clocks.sample(7, 5, True) == 5
    assert clocks.sample(7, 5, False) == 5
    assert ran == [1, 5, 5]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_file_stands_at_every_place(count):
    """And, from three on, after every other one as often as before it."""
    orders = [timing._turned(range(count), turn) for turn in range(2 * count)]
    places = [[order.index(number) for order in orders] for number in range(count)]
    assert all(np.bincount(own).tolist() == [2] * count for own in places)
    pairs = [pair for order in orders for pair in itertools.pairwise(order)]
    assert all(pairs.count((b, a)) == pairs.count((a, b)) for a, b in pairs)


def test_the_clock_of_a_function(monkeypatch):
    ticks = iter([10.0, 13.0])
    monkeypatch.setattr(base.time, "perf_counter", lambda: next(ticks))
    ran = []
    assert base.clock_of(lambda: ran.append(1), threads=2)(5) == 3
    assert len(ran) == 5


def test_an_unknown_runtime_is_an_error(files):
    with pytest.raises(OptionError, match="tensorflow"):
        time_in("tensorflow", files, FEED)


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
@pytest.mark.parametrize("threads", [1, 2])
def test_every_runtime_that_is_installed_is_timed(runtime, threads, tmp_path):
    """A stack of four convolutions takes longer than one, whatever a call costs."""
    missing = runtime_at(RUNTIMES[runtime]).missing()
    if missing is not None:
        pytest.skip(missing)
    paths = [stack(depth, tmp_path / f"{depth}.onnx") for depth in (1, 4)]
    x = np.random.default_rng(0).standard_normal((1, 16, 48, 40)).astype(np.float32)
    one, four = time_in(runtime, paths, {"x": x}, threads=threads, repeats=2)
    if runtime in ("iree", "tract") and threads == 2:
        assert one.words.startswith("it does not load the file (its ")
        assert one.words.endswith("on one thread)")
        return
    assert one.words == four.words == ""
    # The least: on a busy machine single samples are far off.
    assert four.times.min() > 1.5 * one.times.min()


def stack(depth, path):
    """A file of this many 5x5 convolutions."""
    rng = np.random.default_rng(1)
    names = ["x", *(f"y{index}" for index in range(depth - 1)), "y"]
    nodes = [
        helper.make_node("Conv", [old, f"w{index}"], [new], pads=[2] * 4)
        for index, (old, new) in enumerate(itertools.pairwise(names))
    ]
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal((16, 16, 5, 5)).astype("f") / 20, f"w{n}")
        for n in range(depth)
    ]
    shape = [1, 16, 48, 40]
    given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph(nodes, "stack", [given], [result], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, path)
    return path
