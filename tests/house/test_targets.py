"""The benchmark of other runtimes in short: its layers, its words, and the page that it writes."""

import re
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from benchmarks import targets
from deconvfix.runtimes.registry import RUNTIMES

PAGE = Path(__file__).parents[2] / "docs/targets.md"


@pytest.fixture(scope="module")
def found():
    """One layer in ONNX Runtime alone."""
    [made] = [made for made in targets.LAYERS if made.name == "2-D k2 s2"]
    return list(targets.measure([made], ["onnxruntime"]))


@pytest.mark.parametrize("made", targets.LAYERS, ids=lambda made: made.name)
def test_every_layer_is_a_valid_file(made):
    for is_open in (False, True):
        onnx.checker.check_model(targets.model_of(made, is_open=is_open), full_check=True)


def test_a_row_says_what_was_found(found):
    assert [(one.layer, one.sizes) for one in found] == [
        ("2-D k2 s2", "fixed"),
        ("2-D k2 s2", "open"),
    ]
    text = targets.section(found)
    assert "| ONNX Runtime 1." in text
    assert text.count("| 2-D k2 s2 | right |") == 2


def test_what_is_wrong_stands_out(found):
    one, report = found[0], found[0].report
    size = replace(report.before, status="wrong", words="y has another size on the inputs")
    values = replace(report.after, status="wrong", words="y differs by 3")
    assert (
        targets.cell(replace(one, report=replace(report, before=size))) == "**wrong size** → right"
    )
    assert (
        targets.cell(replace(one, report=replace(report, after=values)))
        == "right → **wrong values**"
    )
    assert (
        targets.cell(replace(one, report=replace(report, before=values, after=values)))
        == "**wrong values**"
    )
    assert targets.cell(replace(one, written=False)) == "right → not written"
    assert "| 1 | 1 | 0 | 2 | 0 | 0 | 0 |" in targets.section(
        [replace(found[0], report=replace(report, before=size)), found[1]]
    )


def test_the_page_is_replaced_below_its_mark():
    assert targets.written(f"a\n{targets.MARK}\nold", "new") == f"a\n{targets.MARK}\n\nnew"
    with pytest.raises(SystemExit):
        targets.written("a", "new")


def test_the_page_has_every_layer_and_runtime():
    """As they are now: a layer or a runtime that was added is to be measured."""
    text = PAGE.read_text(encoding="utf-8")
    for made in targets.LAYERS:
        assert text.count(f"| {made.name} |") == 2, made.name
    for name in RUNTIMES:
        assert f"| `{name}` |" in text
    assert len(re.findall(r"^\| layer \|", text, re.MULTILINE)) == 2
