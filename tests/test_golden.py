"""Golden files: what users and their files see of deconvfix, as it is today.

Public names and signatures, the options of the command line, the shape of every JSON report, recipes, and
what is written into files stand in `tests/golden/`, one JSON file for each function in `GOLDEN`. They hold no
help texts and no reasons, which may be worded better at any time.

A difference is a change that somebody outside will notice. If it is wanted, write the files anew, and look at
what git shows:

    python -m tests.test_golden

Nothing but public names is imported here, so that files of the package may move.
"""

import contextlib
import copy
import difflib
import importlib
import inspect
import json
import re
import tempfile
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import deconvfix
from deconvfix.__main__ import main
from tests.support.forms import arguments_of, options_of
from tests.support.project import project

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "golden"
HOW_TO_UPDATE = "If this change is wanted, run `python -m tests.test_golden` and commit the files."
# Residuals of fits to weights, in float64: other BLAS libraries sum in another order.
DIGITS_OF_RESIDUALS = 9
# Weights are stored in float32.
DIGITS_OF_WEIGHTS = 4
# Both, of fits to what the model computes in float32, which other processors round differently.
DIGITS_OF_CALIBRATED = 3
# Lists of at most so many characters stand on one line in the files.
SHORT = 50
# Objects in the JSON reports whose keys are data, here: what stands for the keys.
KEYS_ARE_DATA = {"hashes": "<file>", "operators": "<operator>"}


# --- public names -------------------------------------------------------------------------------


def parameters_of(function):
    """One line for each parameter, in order; types are left out, since their modules may move."""
    lines = []
    for parameter in inspect.signature(function).parameters.values():
        default = parameter.default
        written = "" if default is inspect.Parameter.empty else f" = {default!r}"
        usual = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        kind = "" if usual else f" ({parameter.kind.description})"
        lines.append(f"{parameter.name}{written}{kind}")
    return lines


def field_of(field):
    if field.default is not MISSING:
        return f"{field.name} = {field.default!r}"
    if field.default_factory is not MISSING:
        return f"{field.name} = {field.default_factory.__name__}()"
    return field.name


def class_of(cls):
    members = {}
    for name in dir(cls):
        value = inspect.getattr_static(cls, name)
        is_field = is_dataclass(cls) and name in {field.name for field in fields(cls)}
        if name.startswith("_") or is_field or hasattr(Exception, name):
            continue
        if isinstance(value, property):
            members[name] = "property"
        elif callable(getattr(cls, name)):
            members[name] = parameters_of(getattr(cls, name))
    described = {"bases": [base.__name__ for base in cls.__bases__], "members": members}
    if is_dataclass(cls):
        described["fields"] = [field_of(field) for field in fields(cls)]
        described["frozen"] = cls.__dataclass_params__.frozen
    else:
        described["parameters"] = parameters_of(cls)
    return described


def public_names():
    described = {}
    for module_name in ("deconvfix", "deconvfix.fx", "deconvfix.onnx"):
        module = importlib.import_module(module_name)
        values = {name: getattr(module, name) for name in module.__all__}
        described[module_name] = {
            name: class_of(value) if inspect.isclass(value) else parameters_of(value)
            for name, value in values.items()
        }
    return described


# --- the command line ---------------------------------------------------------------------------


# What is not written into the golden file: an option is mostly so.
USUAL_OPTION = {
    "default": None,
    "is_flag": False,
    "metavar": None,
    "multiple": False,
    "nargs": 1,
    "required": False,
}
# The same of a type; a path is mostly one of anything that can be read.
USUAL_TYPE = {
    **dict.fromkeys(("allow_dash", "clamp", "executable", "exists", "max_open", "min_open"), False),
    **dict.fromkeys(("resolve_path", "writable"), False),
    **dict.fromkeys(("dir_okay", "file_okay", "readable", "case_sensitive"), True),
    **dict.fromkeys(("max", "min"), None),
}


def unusual(described, usual):
    return {
        key: value for key, value in described.items() if key not in usual or value != usual[key]
    }


def type_of(kind):
    """A parameter's type: its name, and what limits it."""
    limits = kind.to_info_dict()
    name = limits.pop("name")
    del limits["param_type"]
    if isinstance(kind, click.Tuple):
        limits["types"] = [part.name for part in kind.types]
    limits = unusual(limits, USUAL_TYPE)
    return {"name": name, **limits} if limits else name


def parameter_of(parameter):
    described = {
        "default": parameter.to_info_dict()["default"],
        "flags": [*parameter.opts, *parameter.secondary_opts],
        "is_flag": getattr(parameter, "is_flag", False),
        "metavar": parameter.metavar,
        "multiple": parameter.multiple,
        "nargs": parameter.nargs,
        "required": parameter.required,
        "type": type_of(parameter.type),
    }
    return unusual(described, USUAL_OPTION)


def parameters_of_command(command):
    described = {"arguments": [], "options": {}}
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            described["arguments"].append({"name": parameter.name, **parameter_of(parameter)})
        else:
            described["options"][parameter.opts[-1]] = parameter_of(parameter)
    return described


def command_line():
    """What can be typed. Help texts are left out, and what is usual."""
    return {
        "commands": {
            name: parameters_of_command(command) for name, command in main.commands.items()
        },
        "deconvfix": parameters_of_command(main),
        "help": main.context_settings["help_option_names"],
    }


# --- JSON reports -------------------------------------------------------------------------------


def type_name(path, value):
    """The JSON type; of a report's format the value itself."""
    if path == "format":
        return value
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return "null" if value is None else names[type(value)]


def leaves(value, path=""):
    """All values without parts inside a JSON value, as pairs of a path and the name of a type."""
    if isinstance(value, dict) and value:
        placeholder = KEYS_ARE_DATA.get(path.rpartition(".")[2])
        for key, part in value.items():
            yield from leaves(part, f"{path}.{placeholder or key}".removeprefix("."))
    elif isinstance(value, list) and value:
        for part in value:
            yield from leaves(part, f"{path}[]")
    elif isinstance(value, dict | list):
        yield path, "empty object" if isinstance(value, dict) else "empty list"
    else:
        yield path, type_name(path, value)


def shape_of(value):
    """Each path to a value without parts, and the types that it has there: {"layers[].name": "string"}."""
    types = {}
    for path, name in leaves(value):
        types.setdefault(path, set()).add(name)
    return {path: " or ".join(sorted(names)) for path, names in types.items()}


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, f"{arguments}: {result.output}"
    return result.stdout


def printed(*arguments):
    """The JSON that a command prints."""
    return json.loads(run(*arguments, "--json"))


def checkpoint(file, arch, inputs):
    """A checkpoint with the options that name its model, and an input of it."""
    return (file, "--arch", arch, "--input", inputs)


def bundled(name, inputs):
    return checkpoint(ROOT / f"fixtures/{name}.safetensors", f"fixtures.models:{name}", inputs)


DIGITS = bundled("digits_generator", "z=1x32x1x1")
PHOTO = bundled("photo_autoencoder", "image=1x3x48x48")
AUDIO = bundled("audio_upsampler", "spectrum=1x48x16")


@contextlib.contextmanager
def written_files():
    """A folder with the same layers as a checkpoint, program and ONNX file, and what `convert` writes."""
    model, example = Small().eval(), (integers(1, 3, 6, 5),)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(model.state_dict(), folder / "net.safetensors")
        torch.export.save(torch.export.export(model, example), folder / "net.pt2")
        net = small(folder)
        run("export", *net, "-o", folder / "net.onnx")
        for target in ("fixed.safetensors", "fixed.pt", "from_checkpoint.onnx"):
            run("convert", *net, "-o", folder / target)
        for target in ("fixed.pt2", "from_program.onnx"):
            run("convert", folder / "net.pt2", "-o", folder / target)
        run("convert", folder / "net.onnx", "-o", folder / "fixed.onnx")
        yield folder


def small(folder):
    return checkpoint(folder / "net.safetensors", "tests.test_golden:Small", "x=1x3x6x5")


def reports(folder):
    """Every JSON report, of every kind of model: command, case, and what was printed."""
    net, program = small(folder), folder / "net.pt2"
    graph, fixed = folder / "net.onnx", folder / "fixed.onnx"
    without_inputs = net[:3]

    def converted(*arguments, suffix=".safetensors"):
        return printed("convert", *arguments, "-o", folder / f"out{suffix}", "--force")

    yield "inspect", "checkpoint", printed("inspect", *without_inputs)
    yield "inspect", "checkpoint, with inputs", printed("inspect", *PHOTO)
    sound = printed("inspect", *AUDIO, "--sample-rate", "8000")
    yield "inspect", "checkpoint, with inputs and a sample rate", sound
    yield "inspect", "ONNX", printed("inspect", graph)
    yield "inspect", "program", printed("inspect", program)

    yield "convert", "exact, checkpoint", converted(*DIGITS)
    exported = converted(*net, "--dynamic", "x=0", suffix=".onnx")
    yield "convert", "exact, checkpoint to ONNX", exported
    yield "convert", "exact, ONNX", converted(graph, suffix=".onnx")
    yield "convert", "exact, program", converted(program, suffix=".pt2")
    yield "convert", "dry run", printed("convert", *without_inputs, "--dry-run")
    yield "convert", "fitted to weights, checkpoint", converted(*PHOTO, *arguments_of("resize"))
    sound = converted(*AUDIO, *arguments_of("notch"), "--sample-rate", "8000")
    yield "convert", "fitted to weights, with a sample rate", sound
    normal = ("--to", "equalized", "--init", "calibrated", "--calibration", "normal")
    normal += ("--samples", "8")
    yield "convert", "calibrated, checkpoint", converted(*net, *normal)
    yield "convert", "calibrated, ONNX", converted(graph, *normal, suffix=".onnx")
    yield "convert", "calibrated, program", converted(program, *normal, suffix=".pt2")
    yield "convert", "calibrated, with --curve", converted(*net, *normal, "--curve")
    yield "convert", "calibrated, with --samples-curve", converted(*net, *normal, "--samples-curve")

    before, *named = net
    after = folder / "fixed.safetensors"
    yield "verify", "checkpoint", printed("verify", before, after, *named)
    yield "verify", "ONNX", printed("verify", graph, fixed)
    in_runtime = printed("verify", graph, fixed, "--runtime", "onnxruntime")
    yield "verify", "ONNX, in a runtime", in_runtime
    yield "verify", "program", printed("verify", program, folder / "fixed.pt2")

    twice = ("--repeats", "2")
    yield "bench", "checkpoint", printed("bench", before, after, *named, *twice)
    yield "bench", "ONNX", printed("bench", graph, fixed, "--repeats", "8")
    in_runtime = printed("bench", graph, fixed, "--repeats", "8", "--runtime", "onnxruntime")
    yield "bench", "ONNX, in a runtime", in_runtime

    target = ("-o", folder / "out.onnx", "--force")
    yield "export", "checkpoint", printed("export", *net, *target)
    yield "export", "program", printed("export", program, *target)


def json_reports():
    """The shape of every JSON report."""
    shapes = {}
    with written_files() as folder:
        for command, case, report in reports(folder):
            shapes.setdefault(command, {})[case] = shape_of(report)
    return shapes


# --- recipes, and the weights they stand for ----------------------------------------------------


def integers(*shape, modulus=13):
    """Small integers without a pattern that a stride could hit, the same on every machine."""
    numbers = torch.arange(int(np.prod(shape))).reshape(shape)
    return ((numbers * 7919 + numbers**2) % modulus - modulus // 2).float()


class Small(nn.Module):
    """Even and uneven overlap, groups, a layer without a bias, and one that makes no grid."""

    def __init__(self):
        super().__init__()
        self.even = nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1)
        self.uneven = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.oblong = nn.ConvTranspose2d(4, 2, (3, 2), stride=(1, 2), bias=False)
        self.dense = nn.ConvTranspose2d(2, 2, 3, padding=1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(integers(*parameter.shape) / 8)

    def forward(self, x):
        features = torch.relu(self.uneven(torch.relu(self.even(x))))
        return self.dense(self.oblong(features))


def rounded(value, digits):
    """Floats to so many significant digits; what a person words is left out."""
    if isinstance(value, dict):
        return {
            key: "<words>" if key == "reason" else rounded(part, digits)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [rounded(part, digits) for part in value]
    return float(f"{value:.{digits - 1}e}") if isinstance(value, float) else value


def weights_of(module, digits):
    """Names, shapes and sizes of what a checkpoint of the module holds."""
    described = {}
    for name, value in module.state_dict().items():
        rms = value.double().square().mean().sqrt().item()
        shape = "x".join(map(str, value.shape))
        described[name] = f"{shape}, rms {rms:.{digits - 1}e}"
    return described


def recipes():
    """Of a small module: for each form the recipe, and the weights of the converted module."""
    images = [(integers(4, 3, 6, 5) / 8,), (integers(4, 3, 6, 5, modulus=11) / 8,)]
    calibrated = {"init": "calibrated", "calibration": images}
    cases = {
        "subpixel": {},
        "resize": options_of("resize"),
        "resize, linear, grown, calibrated": {
            **calibrated,
            "to": "resize",
            "interpolation": "linear",
            "grow": 1,
        },
        "equalized": options_of("equalized"),
        "equalized, half strength, calibrated": {
            **calibrated,
            "to": "equalized",
            "strength": 0.5,
        },
        "notch": options_of("notch"),
        "notch, reach 2, calibrated": {**calibrated, "to": "notch", "reach": 2},
    }
    described = {}
    for name, options in cases.items():
        conversion = deconvfix.convert(Small().eval(), **options)
        recipe = json.loads(conversion.plan.to_json())
        again = json.loads(deconvfix.Plan.from_json(conversion.plan.to_json()).to_json())
        assert again == recipe
        of_residuals, of_weights = DIGITS_OF_RESIDUALS, DIGITS_OF_WEIGHTS
        if "calibration" in options:
            of_residuals = of_weights = DIGITS_OF_CALIBRATED
        described[name] = {
            "recipe": rounded(recipe, of_residuals),
            "weights": weights_of(conversion.model, of_weights),
        }
    return described


# --- what is written into files -----------------------------------------------------------------


def recipe_keys(text):
    """The format of a recipe, and the fields of a decision."""
    recipe = json.loads(text)
    keys = {key for decision in recipe["decisions"] for key in decision}
    return {"decisions[]": sorted(keys), "format": recipe["format"], "keys": sorted(recipe)}


def stored_metadata():
    """Metadata of the files that are written, and the names of those beside them."""
    with written_files() as folder:
        return metadata_in(folder)


def metadata_in(folder):
    with safe_open(folder / "fixed.safetensors", framework="pt") as file:
        metadata, names = file.metadata(), sorted(file.keys())
    beside = {path.name for path in folder.glob("fixed.pt*")} - {"fixed.pt", "fixed.pt2"}
    described = {
        "fixed.safetensors": {
            "format": metadata["format"],
            "metadata": sorted(metadata),
            "recipe": recipe_keys(metadata["deconvfix.recipe"]),
            "tensors": names,
        },
        "fixed.pt": {
            "files beside it": sorted(beside),
            "tensors": sorted(torch.load(folder / "fixed.pt", weights_only=True)),
        },
    }
    for name in ("net.onnx", "fixed.onnx", "from_checkpoint.onnx", "from_program.onnx"):
        stored = {entry.key: entry.value for entry in onnx.load(folder / name).metadata_props}
        described[name] = {"metadata": sorted(key for key in stored if key.startswith("deconvfix"))}
        if "deconvfix.recipe" in stored:
            described[name]["recipe"] = recipe_keys(stored["deconvfix.recipe"])
    return described


# Each makes the content of the golden file of its name.
GOLDEN = {
    function.__name__: function
    for function in (public_names, command_line, json_reports, recipes, stored_metadata)
}


# --- comparing ----------------------------------------------------------------------------------


def as_text(value):
    """Sorted JSON with short lists of plain values on one line."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return re.sub(r"\[\n[^\[\]{}]*?\n *\]", on_one_line, text)


def on_one_line(found):
    items = re.sub(r"\n *", " ", found[0][1:-1])
    short = f"[{items.strip()}]"
    return short if len(short) <= SHORT else found[0]


def difference(golden, now, name="golden"):
    """Lines that went and came, and what to do; empty where there are none."""
    lines = difflib.unified_diff(
        golden.splitlines(), now.splitlines(), f"{name}, golden", f"{name}, now", n=6, lineterm=""
    )
    found = "\n".join(lines)
    return f"{found}\n\n{HOW_TO_UPDATE}" if found else ""


def golden_text(name):
    path = FOLDER / f"{name}.json"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


@pytest.mark.parametrize("name", GOLDEN)
def test_nothing_that_is_seen_outside_has_changed(name):
    found = difference(golden_text(name), as_text(GOLDEN[name]()), f"{name}.json")
    if found:
        pytest.fail(found, pytrace=False)


def test_every_golden_file_is_compared():
    assert {path.stem for path in FOLDER.iterdir()} == set(GOLDEN)


def test_the_installed_command_is_the_group_that_is_described():
    module, _, name = project()["scripts"]["deconvfix"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


# --- controls: that changes are seen -------------------------------------------------------------


def drop_option(command):
    command.params = [parameter for parameter in command.params if parameter.name != "grow"]


def change_default(command):
    next(parameter for parameter in command.params if parameter.name == "reach").default = 5


def drop_choice(command):
    option = next(parameter for parameter in command.params if parameter.name == "to")
    option.type = click.Choice(option.type.choices[:-1])


def rename_flag(command):
    option = next(parameter for parameter in command.params if parameter.name == "strict")
    option.opts = ["--fail"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (drop_option, '-    "--grow": {'),
        (change_default, '+     "default": 5'),
        (drop_choice, '-       "deconv"'),
        (rename_flag, '+     "flags": ["--fail"]'),
    ],
)
def test_a_changed_option_is_seen(monkeypatch, change, line):
    changed = copy.copy(main.commands["convert"])
    changed.params = [copy.copy(parameter) for parameter in changed.params]
    change(changed)
    monkeypatch.setitem(main.commands, "convert", changed)
    found = difference(golden_text("command_line"), as_text(command_line()))
    assert line in found
    assert found.endswith(HOW_TO_UPDATE)


def test_other_words_of_help_are_no_change(monkeypatch):
    changed = copy.copy(main.commands["convert"])
    changed.help = "Another text."
    changed.params = [copy.copy(parameter) for parameter in changed.params]
    for parameter in changed.params:
        parameter.help = "Another text."
    monkeypatch.setitem(main.commands, "convert", changed)
    assert difference(golden_text("command_line"), as_text(command_line())) == ""


def test_a_changed_signature_is_seen(monkeypatch):
    def verify(before, after, inputs=()):
        """With a default that there was not."""

    monkeypatch.setattr(deconvfix, "verify", verify)
    found = difference(golden_text("public_names"), as_text(public_names()))
    assert '-  "verify": ["before", "after", "inputs"]' in found
    assert '+  "verify": ["before", "after", "inputs = ()"]' in found


def test_a_removed_name_is_seen(monkeypatch):
    names = [name for name in deconvfix.__all__ if name != "Tuning"]
    monkeypatch.setattr(deconvfix, "__all__", names)
    assert '-  "Tuning": {' in difference(golden_text("public_names"), as_text(public_names()))


@pytest.mark.parametrize(
    "other",
    [
        {"layers": [{"name": "up", "size": 2.5}], "notes": []},
        {"layers": [{"name": "up", "size": None}], "notes": []},
        {"layers": [{"name": "up"}], "notes": []},
        {"layers": [{"name": "up", "size": 2}], "notes": [], "more": True},
        {"layers": [{"name": "up", "size": 2}], "notes": ["one"]},
        {"layers": [], "notes": []},
    ],
)
def test_another_shape_is_seen(other):
    report = {"layers": [{"name": "up", "size": 2}, {"name": "down", "size": 3}], "notes": []}
    expected = {"layers[].name": "string", "layers[].size": "integer", "notes": "empty list"}
    assert shape_of(report) == expected
    assert shape_of(other) != expected


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for golden_name, make in GOLDEN.items():
        (FOLDER / f"{golden_name}.json").write_text(as_text(make()), encoding="utf-8")
        print(f"tests/golden/{golden_name}.json")
