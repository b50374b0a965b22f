"""How many files a reader opens to follow a conversion: it may become fewer, and never more."""

import functools
import importlib
import json
import sys

import pytest
from click.testing import CliRunner

import deconvfix
from benchmarks import calls

# At most so many files are entered, and so many pairs of files call each other.
CALIBRATED_ONNX = (77, 196)
MODULE = (30, 80)


@functools.cache
def sizes(case):
    counted = calls.count_case(case)
    return len(counted.files), len(counted.hops)


@pytest.mark.parametrize(
    ("case", "bound"), [(calls.calibrated_onnx, CALIBRATED_ONNX), (calls.module, MODULE)]
)
def test_a_conversion_enters_few_files(case, bound):
    files, hops = sizes(case)
    assert files <= bound[0]
    assert hops <= bound[1]


def test_a_conversion_that_enters_more_files_is_seen(tmp_path):
    convert = calls.module(tmp_path)

    def convert_and_inspect():
        deconvfix.inspect(convert().model)

    files, hops = sizes(calls.module)
    counted = calls.count(convert_and_inspect)
    assert len(counted.files) > files
    assert len(counted.hops) > hops


PLANTED = {
    "__init__.py": "",
    "one.py": (
        "import functools\n"
        "from planted.two import base\n"
        "def direct():\n"
        "    return base()\n"
        "def through_others():\n"
        "    from planted import four\n"  # imported here: what it runs then does not count
        "    return functools.reduce(four.add, map(four.same, [1, 2]))\n"
        "def alone():\n"
        "    return [number for number in range(3)]\n"
    ),
    "two.py": "from planted.three import constant\ndef base():\n    return constant()\n",
    "three.py": "def constant():\n    return 1\n",
    "four.py": (
        "from planted.three import constant\n"
        "class Kept:\n"
        "    value = constant()\n"
        "def add(a, b):\n"
        "    return a + b\n"
        "same = lambda value: value\n"
    ),
}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A package of known calls."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for name, source in PLANTED.items():
        (folder / name).write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield functools.partial(calls.count, package=folder), importlib.import_module("planted.one")
    for name in [name for name in sys.modules if name.partition(".")[0] == "planted"]:
        del sys.modules[name]


def test_files_and_hops_of_known_calls(planted):
    count, one = planted
    direct = count(one.direct)
    assert direct.files == {"one.py", "two.py", "three.py"}
    assert direct.hops == {("one.py", "two.py"), ("two.py", "three.py")}
    assert count(one.alone) == calls.Counted(frozenset({"one.py"}), frozenset())


def test_what_an_import_runs_does_not_count(planted):
    count, one = planted
    first, again = count(one.through_others), count(one.through_others)
    assert first == again
    assert first.files == {"one.py", "four.py"}
    assert first.hops == {("one.py", "four.py")}


def test_the_profile_of_others_comes_back(planted):
    count, _ = planted
    before = sys.getprofile()

    def fail():
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        count(fail)
    assert sys.getprofile() is before


def test_the_script_prints_every_case(monkeypatch):
    monkeypatch.setattr(calls, "CASES", {"a module": calls.module})
    counted = json.loads(CliRunner().invoke(calls.main, ["--json"]).stdout)["a module"]
    assert (len(counted["files"]), len(counted["hops"])) == sizes(calls.module)
    shown = CliRunner().invoke(calls.main, ["--list"]).stdout
    assert "a module" in shown
    assert all(file in shown for file in counted["files"])
