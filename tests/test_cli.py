"""The command line: what it prints, what it writes, and the codes it ends with."""

import gc
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from onnx import numpy_helper
from rich.cells import cell_len
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import deconvfix
from deconvfix.cli.main import main
from deconvfix.files import sha256

ROOT = Path(__file__).parent.parent
SUFFIXES = [".safetensors", ".pt", ".pth", ".ckpt"]
INPUT = ("--input", "x=1x2x5x6")


class Net(nn.Module):
    """Even overlap in `up1`, uneven overlap in `up2`."""

    def __init__(self, width=3):
        super().__init__()
        self.head = nn.Conv2d(2, width, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(width, 5, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(5, 2, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x):
        return torch.tanh(self.up2(torch.relu(self.up1(self.head(x)))))


class OddlyNamed(nn.Module):
    """Names that a terminal's markup, an emoji table or HTML would give a meaning to."""

    names = ("[red]", "[/]", "a:b:c", "<script>x", "\\[bold]")

    def __init__(self):
        super().__init__()
        self.ups = nn.ModuleDict({name: nn.ConvTranspose1d(2, 2, 2, 2) for name in self.names})

    def forward(self, x):
        for up in self.ups.values():
            x = up(x)
        return x


class LongNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"a_long_name_of_a_block_" * 6: nn.ConvTranspose1d(2, 2, 2, 2)})

    def forward(self, x):
        for up in self.inner.values():
            x = up(x)
        return x


class Functional(nn.Module):
    """A call whose weight is computed while it runs: no form but the exact one is possible."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(2, 3, 4, 4))
        self.up = nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1)

    def forward(self, x):
        return self.up(F.conv_transpose2d(x, self.kernel, stride=2, padding=1))


def talkative():
    print("Building the network ...")
    return Net()


def not_a_module():
    return {"not": "a module"}


def arch(name):
    return ("--arch", f"{__name__}:{name}")


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def run_json(*arguments):
    result = run(*arguments, "--json")
    return json.loads(result.stdout)


def save(folder, model=None, name="net.safetensors"):
    torch.manual_seed(0)
    save_file((model or Net()).state_dict(), folder / name)
    return folder / name


@pytest.fixture
def net(tmp_path):
    return save(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The net, and what `convert` makes of it; made once, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    source = save(folder)
    for name in ("out.safetensors", "out.pt", "out.onnx"):
        dynamic = ("--dynamic", "x=0,2,3") if name.endswith(".onnx") else ()
        result = run("convert", source, *arch("Net"), *INPUT, *dynamic, "-o", folder / name)
        assert result.exit_code == 0, result.output
    return folder


def assert_fails_in_words(result, *fragments):
    """One message of four parts on stderr, exit code 1, and no traceback."""
    assert (result.exit_code, result.stdout, type(result.exception)) == (1, "", SystemExit)
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    # where: found; needed. todo.
    assert result.stderr.index(": ") < result.stderr.index("; ") < result.stderr.rindex(". ")
    assert all(fragment in result.stderr for fragment in fragments)


# --- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_with_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: deconvfix {command}" in result.stdout


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_option_has_help(command):
    options = [each for each in main.commands[command].params if each.param_type_name == "option"]
    bare = {each.name for each in options if not each.help}
    assert bare == set()


def test_help_lists_the_commands():
    assert set(main.commands) >= {"inspect", "convert", "verify", "export"}
    assert all(command in run("-h").stdout for command in main.commands)


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_module_is_the_command():
    done = python("-m", "deconvfix", "--version")
    assert (done.returncode, done.stdout) == (0, f"deconvfix, version {deconvfix.__version__}\n")


def test_launcher_is_the_command():
    done = python("cli.py", "--help")
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["Usage:", "deconvfix"])


def test_help_needs_no_torch():
    """Help comes at once: what is slow to import is imported when it is needed."""
    code = (
        "import sys; from deconvfix.cli.main import main; main(['--help'], standalone_mode=False);"
        "sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    )
    assert python("-c", code).returncode == 0


# --- inspect ------------------------------------------------------------------------------------

LAYER_KEYS = {
    "name",
    "ndim",
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "output_padding",
    "dilation",
    "groups",
    "uneven_overlap",
    "ripple_db",
    "refusal",
}


def test_inspect_prints_an_object_with_format_and_layers(net):
    found = run_json("inspect", net, *arch("Net"))
    assert found["format"].startswith("deconvfix.inspection/")
    assert [layer["name"] for layer in found["layers"]] == ["up1", "up2"]


def test_inspected_layers_have_the_promised_keys(net):
    layers = run_json("inspect", net, *arch("Net"))["layers"]
    assert all(layer.keys() >= LAYER_KEYS for layer in layers)


def test_inspected_layer_shows_its_geometry(net):
    _, layer = run_json("inspect", net, *arch("Net"))["layers"]
    assert {key: layer[key] for key in LAYER_KEYS - {"ripple_db"}} == {
        "name": "up2",
        "ndim": 2,
        "in_channels": 5,
        "out_channels": 2,
        "kernel_size": [3, 3],
        "stride": [2, 2],
        "padding": [[1, 1], [1, 1]],
        "output_padding": [1, 1],
        "dilation": [1, 1],
        "groups": 1,
        "uneven_overlap": True,
        "refusal": None,
    }


def test_inspect_sees_calls_on_example_inputs(tmp_path):
    path = save(tmp_path, Functional())
    layers = run_json("inspect", path, *arch("Functional"), *INPUT)["layers"]
    assert [(layer["name"], layer["calls"]) for layer in layers] == [
        ("conv_transpose2d", 1),
        ("up", 1),
    ]


def test_inspect_takes_inputs_from_a_file(tmp_path):
    path = save(tmp_path, Functional())
    np.savez(tmp_path / "in.npz", x=np.zeros((1, 2, 3, 7), np.float32))
    layers = run_json("inspect", path, *arch("Functional"), "--inputs", tmp_path / "in.npz")[
        "layers"
    ]
    assert layers[0]["input_sizes"] == [[3, 7]]


def test_inspect_prints_a_table(net):
    result = run("inspect", net, *arch("Net"))
    assert result.exit_code == 0
    assert [word in result.stdout for word in ("up1", "5->2", "uneven", "dB")] == [True] * 4


def test_inspect_of_a_network_without_such_layers_says_so(tmp_path):
    path = save(tmp_path, nn.Conv1d(2, 3, 1))
    options = ("--arch", "torch.nn:Conv1d", "--arch-kwargs")
    result = run(
        "inspect", path, *options, '{"in_channels": 2, "out_channels": 3, "kernel_size": 1}'
    )
    assert "No transposed convolution found." in result.stdout


def test_architecture_takes_arguments(tmp_path):
    path = save(tmp_path, Net(width=7))
    layers = run_json("inspect", path, *arch("Net"), "--arch-kwargs", '{"width": 7}')["layers"]
    assert layers[0]["in_channels"] == 7


def test_architecture_is_found_where_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.chdir(tmp_path)
    Path("network_of_the_user.py").write_text("from torch.nn import ConvTranspose1d as Net\n")
    path = save(tmp_path, nn.ConvTranspose1d(2, 3, 4))
    options = '{"in_channels": 2, "out_channels": 3, "kernel_size": 4}'
    result = run("inspect", path, "--arch", "network_of_the_user:Net", "--arch-kwargs", options)
    sys.modules.pop("network_of_the_user", None)
    assert result.exit_code == 0


def test_state_key_chooses_the_weights(tmp_path):
    torch.save({"a": Net().state_dict(), "b": Net(width=4).state_dict()}, tmp_path / "two.pt")
    options = (*arch("Net"), "--arch-kwargs", '{"width": 4}', "--state-key", "b")
    assert run("inspect", tmp_path / "two.pt", *options).exit_code == 0


def test_what_is_left_out_of_the_checkpoint_is_told(tmp_path):
    torch.save({"model": Net().state_dict(), "optimizer": {"lr": 0.1}}, tmp_path / "net.pt")
    notes = run_json("inspect", tmp_path / "net.pt", *arch("Net"))["notes"]
    assert "Ignored entries of the checkpoint: optimizer." in notes


# --- convert: what is written -------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_converted_checkpoint_is_written_and_can_be_loaded(net, suffix):
    output = net.with_name(f"out{suffix}")
    assert run("convert", net, *arch("Net"), "-o", output).exit_code == 0
    loaded = deconvfix.load(output, Net())
    x = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    original = Net()
    original.load_state_dict(load_file(net))
    assert deconvfix.verify(original.eval(), loaded.eval(), (x,)).ok


def test_source_stays_as_it_was(net):
    before = net.read_bytes()
    run("convert", net, *arch("Net"), "-o", net.with_name("out.safetensors"))
    assert net.read_bytes() == before


def test_onnx_file_has_no_transposed_convolution(finished):
    graph = onnx.load(finished / "out.onnx").graph
    assert "ConvTranspose" not in {node.op_type for node in graph.node}


def test_onnx_file_has_the_axes_that_may_change(finished):
    (x,) = onnx.load(finished / "out.onnx").graph.input
    sizes = [each.dim_param or each.dim_value for each in x.type.tensor_type.shape.dim]
    assert (x.name, sizes) == ("x", ["batch", 2, "x_2", "x_3"])


def test_onnx_file_carries_its_recipe(finished):
    found = {each.key: each.value for each in onnx.load(finished / "out.onnx").metadata_props}
    recipe = json.loads(found["deconvfix.recipe"])
    assert [each["name"] for each in recipe["decisions"]] == ["up1", "up2"]


def test_onnx_file_carries_the_version(finished):
    found = {each.key: each.value for each in onnx.load(finished / "out.onnx").metadata_props}
    assert found["deconvfix.version"] == deconvfix.__version__


@pytest.mark.parametrize(
    ("pattern", "decisions"),
    [
        (("--include", "up1"), ["replaced", "kept"]),
        (("--exclude", "up1"), ["kept", "replaced"]),
        (("--include", "up*", "--exclude", "*2"), ["replaced", "kept"]),
    ],
    ids=["include", "exclude", "both"],
)
def test_layers_can_be_selected(net, pattern, decisions):
    report = run_json("convert", net, *arch("Net"), *pattern, "-o", net.with_name("out.pt"))
    assert [layer["decision"] for layer in report["layers"]] == decisions


def test_converted_checkpoint_can_be_exported(finished, tmp_path):
    result = run(
        "export", finished / "out.safetensors", *arch("Net"), *INPUT, "-o", tmp_path / "net.onnx"
    )
    assert result.exit_code == 0
    assert "ConvTranspose" not in {n.op_type for n in onnx.load(tmp_path / "net.onnx").graph.node}


# --- convert: what is printed -------------------------------------------------------------------


def test_report_of_an_exact_form_has_the_promised_keys(net):
    output = net.with_name("out.pt")
    report = run_json("convert", net, *arch("Net"), *INPUT, "-o", output)
    assert (report["input"], report["output"], report["to"], report["fidelity"]) == (
        str(net),
        str(output),
        "subpixel",
        None,
    )
    assert [layer["form"] for layer in report["layers"]] == ["subpixel", "subpixel"]
    assert all(layer.keys() >= {"name", "decision", "form", "reason"} for layer in report["layers"])
    assert report["parity"].keys() >= {"ok", "max_abs", "max_error_ratio"}
    assert (report["ok"], report["parity"]["ok"]) == (True, True)


@pytest.mark.parametrize("to", ["resize", "equalized", "notch"])
def test_report_of_a_fitted_form_tells_its_fidelity(net, to):
    options = ("--to", to, *INPUT, "-o", net.with_name("out.pt"))
    fidelity = run_json("convert", net, *arch("Net"), *options)["fidelity"]
    assert fidelity.keys() >= {"psnr_db", "ripple_db_before", "ripple_db_after"}
    # Free of a checkerboard: -60 dB is a thousandth of the level.
    assert fidelity["ripple_db_after"] < -60 < fidelity["ripple_db_before"]


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "{net}"),
        ("convert", "{net}", "-o", "{folder}/out.pt"),
        ("convert", "{net}", "--dry-run"),
        ("verify", "{net}", "{finished}/out.pt"),
    ],
    ids=["inspect", "convert", "dry run", "verify"],
)
def test_json_is_all_there_is_on_stdout(net, finished, command):
    places = {"net": net, "folder": net.parent, "finished": finished}
    result = run(*(each.format(**places) for each in command), *arch("Net"), *INPUT, "--json")
    assert result.exit_code == 0
    assert isinstance(json.loads(result.stdout), dict)


def test_json_stays_alone_when_the_model_code_prints(net):
    result = run("inspect", net, *arch("talkative"), "--json")
    assert isinstance(json.loads(result.stdout), dict)


def test_text_tells_what_happened(net):
    output = net.with_name("out.pt")
    lines = run("convert", net, *arch("Net"), *INPUT, "-o", output).stdout.splitlines()
    assert lines[-1] == "2 transposed convolutions found: 2 replaced; verified."


@pytest.mark.parametrize(
    "command",
    [("inspect",), ("convert", "--dry-run"), ("convert", "--dry-run", "--to", "resize")],
    ids=["inspect", "convert", "resize"],
)
def test_text_fits_eighty_columns(tmp_path, command):
    path = save(tmp_path, LongNames())
    result = run(command[0], path, *arch("LongNames"), *command[1:])
    assert result.exit_code == 0
    assert max(map(cell_len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    "name",
    OddlyNamed.names,
)
@pytest.mark.parametrize(
    "command", [("inspect",), ("convert", "--dry-run")], ids=["inspect", "convert"]
)
def test_names_are_printed_as_they_are(tmp_path, command, name):
    path = save(tmp_path, OddlyNamed())
    result = run(command[0], path, *arch("OddlyNamed"), *command[1:])
    assert f"ups.{name} " in result.stdout


def test_names_in_errors_are_printed_as_they_are(tmp_path):
    path = save(tmp_path, OddlyNamed())
    result = run("convert", path, *arch("OddlyNamed"), "--include", "[bold]x", "--dry-run")
    assert_fails_in_words(result, "'[bold]x'", "ups.[red], ups.[/]")


# --- convert: report files, dry runs and recipes ------------------------------------------------


def test_report_file_is_the_printed_object(net):
    report = net.with_name("report.json")
    printed = run_json(
        "convert", net, *arch("Net"), "-o", net.with_name("out.pt"), "--report", report
    )
    assert json.loads(report.read_text()) == printed


def html_report(tmp_path, model, name, *options):
    path = save(tmp_path, model)
    report = tmp_path / "report.html"
    result = run(
        "convert", path, *arch(name), "-o", tmp_path / "out.pt", "--report", report, *options
    )
    assert result.exit_code == 0, result.output
    return report.read_text(encoding="utf-8")


@pytest.mark.parametrize("to", ["subpixel", "resize"])
def test_html_report_needs_nothing_from_elsewhere(tmp_path, to):
    page = html_report(tmp_path, Net(), "Net", *INPUT, "--to", to)
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
    report = run_json("convert", net, *arch("Net"), "--dry-run", "--to", "resize")
    assert (report["output"], report["parity"]) == (None, None)
    assert [layer["form"] for layer in report["layers"]] == ["resize", "resize"]


def test_recipe_of_a_dry_run_can_be_carried_out(net):
    recipe, output = net.with_name("recipe.json"), net.with_name("out.pt")
    planned = ("--to", "resize", "--exclude", "up2", "--dry-run", "--recipe", recipe)
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


# --- what is never overwritten ------------------------------------------------------------------


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


# --- verify -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt", "out.onnx"])
def test_verify_accepts_a_good_conversion(finished, name):
    result = run("verify", finished / "net.safetensors", finished / name, *arch("Net"), *INPUT)
    assert result.exit_code == 0
    assert "in agreement" in result.stdout


def swap_phases(path, target):
    """A converted checkpoint in which two phases of one layer have changed places."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    weight = state["up1.conv.weight"]
    weight[[0, 1]] = weight[[1, 0]]
    save_file(state, target, metadata=metadata)
    return target


@pytest.mark.parametrize("inputs", [(), INPUT], ids=["without inputs", "with inputs"])
def test_verify_finds_swapped_phases(finished, tmp_path, inputs):
    bad = swap_phases(finished / "out.safetensors", tmp_path / "bad.safetensors")
    result = run("verify", finished / "net.safetensors", bad, *arch("Net"), *inputs)
    assert result.exit_code == 1
    assert "NOT in agreement" in result.stdout


def test_verify_names_the_layer_that_departs(finished, tmp_path):
    bad = swap_phases(finished / "out.safetensors", tmp_path / "bad.safetensors")
    report = run_json("verify", finished / "net.safetensors", bad, *arch("Net"), *INPUT)
    assert (report["ok"], report["first_departure"]) == (False, "up1")


def test_verify_finds_a_changed_onnx_file(finished, tmp_path):
    proto = onnx.load(finished / "out.onnx")
    stored = next(each for each in proto.graph.initializer if "up1" in each.name)
    changed = numpy_helper.to_array(stored).copy()
    changed[[0, 1]] = changed[[1, 0]]
    stored.CopyFrom(numpy_helper.from_array(changed, stored.name))
    onnx.save(proto, tmp_path / "bad.onnx")
    options = (*arch("Net"), *INPUT)
    result = run("verify", finished / "net.safetensors", tmp_path / "bad.onnx", *options)
    assert result.exit_code == 1


def test_verify_does_not_accept_a_changed_function(net):
    output = net.with_name("out.pt")
    run("convert", net, *arch("Net"), "--to", "resize", "-o", output)
    assert run("verify", net, output, *arch("Net"), *INPUT).exit_code == 1


def test_verify_without_inputs_does_not_accept_a_changed_function(net):
    output = net.with_name("out.pt")
    run("convert", net, *arch("Net"), "--to", "resize", "-o", output)
    assert run("verify", net, output, *arch("Net")).exit_code == 1


def test_verify_of_onnx_needs_inputs(finished):
    result = run("verify", finished / "net.safetensors", finished / "out.onnx", *arch("Net"))
    assert_fails_in_words(result, "no example inputs")


# --- export -------------------------------------------------------------------------------------


def test_export_keeps_the_model_as_it_is(net):
    output = net.with_name("net.onnx")
    report = run_json("export", net, *arch("Net"), *INPUT, "--opset", "19", "-o", output)
    assert (report["opset"], report["operators"]["ConvTranspose"]) == (19, 2)
    assert report["parity"]["ok"]


def test_export_needs_inputs(net):
    result = run("export", net, *arch("Net"), "-o", net.with_name("net.onnx"))
    assert_fails_in_words(result, "no example inputs", "--input x=")


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect",),
        ("inspect", "net.safetensors"),
        ("convert", "net.safetensors", *arch("Net")),
        ("export", "net.safetensors", *arch("Net")),
        ("verify", "net.safetensors", *arch("Net")),
        ("convert", "net.safetensors", *arch("Net"), "--unknown"),
        ("convert", "net.safetensors", *arch("Net"), "-o", "o.onnx", "--opset", "new"),
        ("convert", "net.safetensors", *arch("Net"), "-o", "o.pt", "--report", "r.txt"),
        ("convert", "net.safetensors", *arch("Net"), "--dry-run", "--samples-curve"),
        ("polish", "net.safetensors"),
    ],
    ids=[
        "no model",
        "no arch",
        "no output",
        "export without output",
        "one file to verify",
        "unknown option",
        "opset no number",
        "report suffix",
        "curve of a dry run",
        "unknown command",
    ],
)
def test_wrong_usage_ends_with_two(net, monkeypatch, arguments):
    monkeypatch.chdir(net.parent)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage:" in result.stderr
    assert os.listdir(net.parent) == [net.name]


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (("--include", "down*"), ("'down*' matches none of the 2 layers", "up1, up2")),
        (("--arch-kwargs", "[1]"), ("arch-kwargs", "a JSON object is needed")),
        (("--arch-kwargs", '{"depth": 2}'), ("building the model fails (TypeError",)),
        (("--arch-kwargs", '{"width": 4}'), ("other shapes", "(3, 2, 3, 3) instead of (4, 2")),
        (("--arch", "torch.nn"), ("'module:callable' is needed",)),
        (("--arch", "absent_module:Net"), ("ModuleNotFoundError",)),
        (arch("absent"), ("AttributeError",)),
        (arch("not_a_module"), ("it returns a dict", "a torch.nn.Module is needed")),
        (("--input", "image=1x2x5x6"), ("no argument 'image'", "the names", ": x")),
        (("--input", "x=1x2x5xsix"), ("NAME=1x3x64x64",)),
        (("--input", "x=1x2x5x6:float33"), ("NAME=1x3x64x64",)),
        (("--input", "x=1x9x5x6"), ("cannot be run on inputs of shapes [(1, 9, 5, 6)]",)),
        (("--inputs", "absent.npz"), ("absent.npz: it cannot be read",)),
        (("--state-key", "ema"), ()),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else None,
)
def test_failures_are_told_in_words(tmp_path, monkeypatch, options, fragments):
    monkeypatch.chdir(tmp_path)
    torch.save(Net().state_dict(), tmp_path / "net.pt")
    result = run("convert", "net.pt", *arch("Net"), *options, "-o", "out.pt")
    assert_fails_in_words(result, *fragments)
    assert os.listdir(tmp_path) == ["net.pt"]


@pytest.mark.parametrize("name", ["absent.pt", "net.h5", "bad.safetensors"])
def test_unreadable_model_is_told_in_words(tmp_path, name):
    (tmp_path / "net.h5").write_text("")
    (tmp_path / "bad.safetensors").write_text("hello" * 20)
    assert_fails_in_words(run("inspect", tmp_path / name, *arch("Net")), name)


@pytest.mark.parametrize("output", ["out.txt", "out", "absent/out.pt"])
def test_impossible_output_is_told_in_words(net, output):
    result = run("convert", net, *arch("Net"), "-o", net.parent / output)
    assert_fails_in_words(result, output)


def test_export_writes_onnx_files_only(net):
    result = run("export", net, *arch("Net"), *INPUT, "-o", net.with_name("out.pt"))
    assert_fails_in_words(result, "suffix")


@pytest.mark.parametrize(
    "option",
    [("--inputs", "empty.npz"), ("--input", "x=1x²"), ("--input", "x=999999999999999")],
    ids=["empty", "superscript", "too large"],
)
def test_impossible_inputs_are_told_in_words(net, monkeypatch, option):
    monkeypatch.chdir(net.parent)
    Path("empty.npz").write_bytes(b"")
    assert_fails_in_words(run("inspect", net, *arch("Net"), *option))


# numpy.load leaves a file open that begins like a .npz file and is none.
@pytest.mark.filterwarnings("ignore:.*cut.npz:pytest.PytestUnraisableExceptionWarning")
def test_inputs_file_that_was_cut_off_is_told_in_words(net):
    inputs = net.with_name("cut.npz")
    inputs.write_bytes(b"PK\x03\x04 and no more")
    message = run("inspect", net, *arch("Net"), "--inputs", inputs).stderr
    gc.collect()
    assert message.startswith(f"Error: {inputs}: it cannot be read")


def test_refusal_is_told_and_the_rest_converted(tmp_path):
    path = save(tmp_path, Functional())
    options = (*arch("Functional"), *INPUT, "--to", "resize", "-o", tmp_path / "out.pt")
    report = run_json("convert", path, *options)
    assert [layer["decision"] for layer in report["layers"]] == ["refused", "replaced"]


def test_strict_makes_a_refusal_an_error(tmp_path):
    path = save(tmp_path, Functional())
    options = (*arch("Functional"), *INPUT, "--to", "resize", "-o", tmp_path / "out.pt")
    result = run("convert", path, *options, "--strict")
    assert_fails_in_words(result, "conv_transpose2d", "`strict` allows none")
    assert os.listdir(tmp_path) == [path.name]


def test_code_in_a_checkpoint_is_not_executed(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'marker'}",)

    torch.save({"state_dict": Net().state_dict(), "hyper": Runs()}, tmp_path / "net.pt")
    result = run("inspect", tmp_path / "net.pt", *arch("Net"))
    assert_fails_in_words(result, "nothing else is executed")
    assert os.listdir(tmp_path) == ["net.pt"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--to", "magic"),
        ("--interpolation", "cubic"),
        ("--padding-mode", "wrap"),
        ("--init", "luck"),
        ("--seed", "many"),
        ("--unknown",),
    ],
    ids=" ".join,
)
def test_values_that_do_not_exist_are_usage_errors(tmp_path, arguments):
    path = save(tmp_path, Net())
    result = run("convert", path, *arch("Net"), "-o", tmp_path / "new.pt", *arguments)
    assert result.exit_code == 2
    assert not (tmp_path / "new.pt").exists()
