"""What was measured before, in a file that anybody may have damaged."""

import json
import multiprocessing
from dataclasses import replace

import pytest

from deconvfix.runtimes.cache import Cache, Key, cache_path, cpu_model
from deconvfix.runtimes.verdict import Verdict

KEY = Key("onnxruntime", "1.32.0", "a CPU", 1, "2-D k4 s2 64-32 128x96", "axis by axis")
VERDICT = Verdict(1.2, 1.15, 1.25, 0.99, 8)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "timings.jsonl"


def test_what_was_put_is_found_again(path):
    Cache(path).put(KEY, VERDICT)
    again = Cache(path)
    assert again.get(KEY) == VERDICT
    assert len(again.date(KEY)) == len("2026-11-30")
    assert again.notes == []


@pytest.mark.parametrize(
    "other",
    [
        {"runtime": "openvino"}, {"version": "1.33.0"}, {"cpu": "another CPU"}, {"threads": 2},
        {"geometry": "2-D k4 s2 64-32 96x128"}, {"writing": "one convolution per phase"},
    ],
)  # fmt: skip
def test_every_part_of_the_key_counts(path, other):
    cache = Cache(path)
    cache.put(KEY, VERDICT)
    assert cache.get(replace(KEY, **other)) is None
    assert Cache(path).get(replace(KEY, **other)) is None


def test_the_later_one_counts(path):
    cache = Cache(path)
    for ratio in (1.16, 1.24):
        cache.put(KEY, replace(VERDICT, ratio=ratio))
    assert Cache(path).get(KEY).ratio == 1.24


def test_too_few_runs_are_not_remembered(path):
    cache = Cache(path)
    cache.put(KEY, Verdict(1.2, 0.0, float("inf"), 0.99, 3))
    assert cache.get(KEY) is None
    assert not path.exists()


def line(**changes):
    with_one = {**vars(KEY), **vars(VERDICT), "date": "2026-11-30", **changes}
    return json.dumps({name: value for name, value in with_one.items() if value is not None})


DAMAGED = {
    "cut": line()[:40].encode(),
    "no object": b"[1, 2]",
    "text": b"hello",
    "bytes": b"\xff\x00\xfe",
    "deep": b"[" * 100_000,
    "a missing value": line(ratio=None).encode(),
    "a negative ratio": line(low=-1.0).encode(),
    "ends that are swapped": line(low=1.3).encode(),
    "not a number": line(ratio=float("nan")).encode(),
    "infinite": line(high=float("inf")).encode(),
    "threads as text": line(threads="1").encode(),
    "threads as a truth": line(threads=True).encode(),
    "a list as a name": line(writing=["x"]).encode(),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_lines_are_left_out_and_said(path, damage):
    other = replace(KEY, writing="another")
    Cache(path).put(KEY, VERDICT)
    path.write_bytes(path.read_bytes() + b"\n" + DAMAGED[damage])
    cache = Cache(path)
    assert cache.notes == [f"{path}: 1 damaged lines of what was measured before were left out."]
    cache.put(other, VERDICT)
    # It was rebuilt: nothing is damaged any more, and nothing else was lost.
    again = Cache(path)
    assert again.notes == []
    assert set(again.found) == {KEY, other}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_line_that_was_cut_does_not_take_the_next_one_with_it(path):
    cache = Cache(path)
    path.parent.mkdir()
    path.write_bytes(line()[:30].encode())
    cache.put(KEY, VERDICT)
    assert Cache(path).get(KEY) == VERDICT


def test_a_folder_that_cannot_be_written_costs_a_note(tmp_path):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "timings.jsonl")
    for _ in range(2):
        cache.put(KEY, VERDICT)
    assert cache.get(KEY) == VERDICT
    assert sum("cannot be written" in note for note in cache.notes) == 1


def put_many(path, writer):
    cache = Cache(path)
    for number in range(50):
        cache.put(replace(KEY, writing=f"{writer}.{number}"), VERDICT)


def test_several_processes_write_at_once(path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=put_many, args=(path, writer)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    cache = Cache(path)
    assert cache.notes == []
    assert len(cache.found) == 150


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DECONVFIX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_path() == tmp_path / ".cache/deconvfix/timings.jsonl"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_path() == tmp_path / "cache/deconvfix/timings.jsonl"
    monkeypatch.setenv("DECONVFIX_CACHE", str(tmp_path / "own.jsonl"))
    assert cache_path() == tmp_path / "own.jsonl"


def test_the_cpu_has_a_name():
    assert cpu_model() == cpu_model()
    assert len(cpu_model()) > 3
