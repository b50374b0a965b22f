"""What is never overwritten."""

import json
import os

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.support.command import INPUT, arch, assert_fails_in_words, run


@pytest.mark.parametrize("name", ["out.pt", "out.onnx", "out.safetensors"])
def test_existing_output_is_kept(net, name):
    output = net.with_name(name)
    output.write_text("mine")
    result = run("convert", net, *arch("Net"), *INPUT, "-o", output)
    assert_fails_in_words(result, "the file exists", "--force")
    assert output.read_text() == "mine"


def test_existing_report_is_kept(net):
    report = net.with_name("report.html")
    report.write_text("mine")
    options = ("-o", net.with_name("out.pt"), "--report", report)
    assert_fails_in_words(run("convert", net, *arch("Net"), *options), "the file exists")
    assert sorted(os.listdir(net.parent)) == ["net.safetensors", "report.html"]


def test_force_replaces_existing_files(net):
    output, report = net.with_name("out.safetensors"), net.with_name("report.json")
    output.write_text("old")
    report.write_text("old")
    options = ("-o", output, "--report", report, "--force")
    assert run("convert", net, *arch("Net"), *options).exit_code == 0
    assert "up1.conv.weight" in load_file(output)
    assert json.loads(report.read_text())["ok"]


@pytest.mark.parametrize("command", ["convert", "export"])
def test_input_is_never_the_output(net, command):
    before = net.read_bytes()
    result = run(command, net, *arch("Net"), *INPUT, "-o", net, "--force")
    assert_fails_in_words(result, "the output is also an input")
    assert net.read_bytes() == before


def test_report_is_never_written_over_the_recipe(net):
    recipe = net.with_name("recipe.json")
    run("convert", net, *arch("Net"), "--dry-run", "--recipe", recipe)
    before = recipe.read_text()
    options = ("--recipe", recipe, "--report", recipe, "-o", net.with_name("out.pt"), "--force")
    run("convert", net, *arch("Net"), *options)
    assert recipe.read_text() == before


def test_recipe_and_report_of_a_dry_run_are_two_files(net):
    path = net.with_name("plan.json")
    result = run("convert", net, *arch("Net"), "--dry-run", "--recipe", path, "--report", path)
    assert result.exit_code != 0


def test_export_is_never_written_over_the_inputs_file(net):
    inputs = net.with_name("in.npz")
    np.savez(inputs, x=np.zeros((1, 2, 5, 6), np.float32))
    before = inputs.read_bytes()
    run("export", net, *arch("Net"), "--inputs", inputs, "-o", inputs, "--force")
    assert inputs.read_bytes() == before
