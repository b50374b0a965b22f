"""Report files, dry runs and recipes."""

import json
import os
import re
import shlex

import pytest

from deconvfix.files import sha256
from tests.support.command import (
    INPUT,
    Net,
    OddlyNamed,
    arch,
    assert_fails_in_words,
    html_report,
    run,
    run_json,
)
from tests.support.forms import arguments_of


def test_report_file_is_the_printed_object(net):
    report = net.with_name("report.json")
    printed = run_json(
        "convert", net, *arch("Net"), "-o", net.with_name("out.pt"), "--report", report
    )
    assert json.loads(report.read_text()) == printed


@pytest.mark.parametrize("to", ["subpixel", "resize"])
def test_html_report_needs_nothing_from_elsewhere(tmp_path, to):
    page = html_report(tmp_path, Net(), "Net", *INPUT, *arguments_of(to))
    assert page.startswith("<!DOCTYPE html>")
    assert [word for word in ("http://", "https://", "<script", "@import") if word in page] == []
    sources = re.findall(r"""(?:src|href)=["']?([^"' >]{0,5})""", page)
    assert set(sources) <= {"data:"}
    assert bool(sources) == (to != "subpixel"), "pictures are drawn for what changes"


def test_report_says_how_to_do_it_again(net):
    output = net.with_name("out.pt")
    arguments = ("convert", net, *arch("Net"), "-o", output, "--json")
    report = json.loads(run(*arguments).stdout)
    assert report["command"] == shlex.join(["deconvfix", *map(str, arguments)])
    assert report["hashes"] == {str(each): sha256(each) for each in (net, output)}


def test_html_report_shows_the_layers(tmp_path):
    page = html_report(tmp_path, Net(), "Net")
    assert [f"<code>{name}</code>" in page for name in ("up1", "up2")] == [True, True]


def test_html_report_escapes_names(tmp_path):
    page = html_report(tmp_path, OddlyNamed(), "OddlyNamed")
    assert "&lt;script&gt;x" in page
    assert "<script" not in page


@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_dry_run_writes_nothing(net, suffix):
    result = run("convert", net, *arch("Net"), "--dry-run", "-o", net.with_name(f"out{suffix}"))
    assert result.exit_code == 0
    assert os.listdir(net.parent) == [net.name]


def test_dry_run_plans(net):
    report = run_json("convert", net, *arch("Net"), "--dry-run", *arguments_of("resize"))
    assert (report["output"], report["parity"]) == (None, None)
    assert [layer["form"] for layer in report["layers"]] == ["resize", "resize"]


def test_recipe_of_a_dry_run_can_be_carried_out(net):
    recipe, output = net.with_name("recipe.json"), net.with_name("out.pt")
    planned = (*arguments_of("resize"), "--exclude", "up2", "--dry-run", "--recipe", recipe)
    assert run("convert", net, *arch("Net"), *planned).exit_code == 0
    report = run_json("convert", net, *arch("Net"), "--recipe", recipe, "-o", output)
    assert [(layer["decision"], layer["form"]) for layer in report["layers"]] == [
        ("replaced", "resize"),
        ("kept", None),
    ]


def test_recipe_is_not_written_over_an_existing_file(net):
    recipe = net.with_name("recipe.json")
    recipe.write_text("mine")
    result = run("convert", net, *arch("Net"), "--dry-run", "--recipe", recipe)
    assert_fails_in_words(result, "the file exists")


@pytest.mark.parametrize("content", [None, "{", "\xff"], ids=["missing", "cut off", "latin-1"])
def test_recipe_that_cannot_be_read_is_an_error(net, content):
    recipe = net.with_name("recipe.json")
    if content is not None:
        recipe.write_text(content, encoding="latin-1")
    options = ("--recipe", recipe, "-o", net.with_name("out.pt"))
    assert_fails_in_words(run("convert", net, *arch("Net"), *options), "recipe")
