"""Rules that hold the code together: rooms and floors, circles, public names, errors, documents."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deconvfix
from deconvfix import errors
from deconvfix.forms import FORMS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "deconvfix"

# Lowest first. A room may import from itself and from the floors below its own.
FLOORS = (
    ("errors",),
    ("files", "core", "extras"),
    ("fit", "grid", "targets"),
    ("forms",),
    ("plan", "parity"),
    ("planning", "failures"),
    ("frontends",),
    ("frontends.torch", "frontends.onnx"),
    ("frontends.program", "diagnose", "runtimes"),
    ("request", "report"),
    ("attempt",),
    ("conversion",),
    ("curves", "fixing"),
    ("cli",),
)
WINGS = ("frontends.torch", "frontends.onnx", "frontends.program")
# The passes under their public names, and the launcher, stand on the wings and on the command line.
DOORS = {"fx": "frontends.torch", "onnx": "frontends.onnx", "__main__": "cli"}
# What each wing calls the same idea, where it has a file for it.
WING_NAMES = {
    "accepts", "calibrate", "calls", "check", "checkpoint", "deconv", "diagnose", "disturbance",
    "elementwise", "export", "exposed", "external", "file", "find", "first_run", "fold", "folded",
    "for_target", "frontend", "graph", "graph_folded", "inputs", "integer_nodes", "integers",
    "layer_parity", "layers", "moments", "nodes", "operators", "parity", "parts", "pixel_shuffle",
    "pretrained", "proto", "refusals", "requantised", "reroute", "reshuffle", "restore", "runtime_parity",
    "samples", "shown", "shuffles", "state_dicts", "step_modules", "steps", "structured", "structures",
    "surgery", "tail", "text", "tuning", "upsampled", "values", "weights", "written",
}  # fmt: skip
MIRRORED = {
    "frontend",
    "find",
    "steps",
    "surgery",
    "inputs",
    "samples",
    "calibrate",
    "parity",
    "diagnose",
}
FRAMEWORKS = {"torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript"}


def module_name(path):
    """The dotted name of a file below the package: "core.spec"."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_name(path): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def room_of(module):
    wing = next((wing for wing in WINGS if module == wing or module.startswith(f"{wing}.")), None)
    return wing or module.split(".")[0]


def floor_of(room):
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imported_names(source, *, at_import_time=False):
    """Everything that a source file imports, as dotted names: modules, or modules and their attributes."""
    tree = ast.parse(source)
    nodes = ast.walk(tree)
    if at_import_time:
        nodes = [node for node in tree.body if not isinstance(node, ast.If)]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def own_imports(source):
    """The modules of the package that a source file imports."""
    for name in imported_names(source):
        inside = name.removeprefix("deconvfix.")
        if inside == name or inside.startswith("__"):
            continue
        yield inside if inside in MODULES else inside.rpartition(".")[0]


def violations(module, source):
    """Imports that do not lead to the module's own room or to a floor below."""
    room = room_of(module)
    for target in own_imports(source):
        if room in DOORS:
            allowed = room_of(target) in (DOORS[room], "extras")
        else:
            other = room_of(target)
            allowed = other == room or floor_of(other) < floor_of(room)
        if not allowed:
            yield f"{module} imports {target}"


def find_circle(edges):
    """A list of names in which each leads to the next and the last to the first; [] if there is none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for target in sorted(edges.get(name, ())):
            if circle := visit(target):
                return circle
        done.add(path.pop())
        return []

    return next((circle for name in sorted(edges) if (circle := visit(name))), [])


SOURCES = [pytest.param(name, path.read_text(), id=name) for name, path in MODULES.items()]


@pytest.mark.parametrize(("module", "source"), SOURCES)
def test_imports_lead_down(module, source):
    assert list(violations(module, source)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.spec", "from deconvfix.plan import Plan"),
        ("frontends.onnx.find", "from deconvfix.frontends.torch import steps"),
        ("frontends.onnx.find", "def f():\n    import deconvfix.frontends.torch.find"),
        ("frontends.registry", "from deconvfix.frontends.torch.find import is_layer"),
        ("diagnose.measure", "from deconvfix.frontends.program.frontend import FRONTEND"),
        ("fx", "from deconvfix.frontends.onnx.frontend import FRONTEND"),
    ],
)
def test_a_planted_violation_is_seen(module, source):
    assert len(list(violations(module, source))) == 1


def test_no_circle_of_files():
    edges = {name: set(own_imports(path.read_text())) - {name} for name, path in MODULES.items()}
    assert find_circle(edges) == []


def test_a_planted_circle_is_seen():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}}) == []


def imported_test_modules(source):
    """What a source file imports of modules of tests; helpers that tests share stand in tests/support."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if re.search(r"(^|\.)test_", name))


def test_no_test_imports_a_test_module():
    sources = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    assert len(sources) > 100
    assert {
        path: found for path in sources if (found := [*imported_test_modules(sources[path])])
    } == {}


@pytest.mark.parametrize(
    "source",
    [
        "import tests.forms.test_resize",
        "from tests.forms.test_resize import run_form",
        "from tests.forms import test_resize as resize",
        "def test_late():\n    from .test_resize import run_form",
        "from . import test_resize",
    ],
)
def test_a_planted_import_of_a_test_module_is_seen(source):
    assert len([*imported_test_modules(source)]) == 1


def test_every_file_stands_in_a_room():
    known = {room for floor in FLOORS for room in floor} | set(DOORS)
    assert {room_of(module) for module in MODULES} == known


@pytest.mark.parametrize("wing", WINGS)
def test_wings_call_the_same_idea_by_the_same_name(wing):
    """Know one, know all: a new name in a wing is a decision, and stands in the list above."""
    rooms = {
        module.removeprefix(f"{wing}.").split(".")[0]
        for module in MODULES
        if room_of(module) == wing and module != wing
    }
    assert rooms <= WING_NAMES


def test_torch_and_onnx_mirror_each_other():
    for wing in ("frontends.torch", "frontends.onnx"):
        missing = {name for name in MIRRORED if f"{wing}.{name}" not in MODULES}
        assert not missing, f"{wing} lacks {missing}"


@pytest.mark.parametrize(("module", "source"), SOURCES)
def test_frameworks_are_imported_in_their_wings_alone(module, source):
    """Below the wings nothing imports torch or onnx when it is imported itself."""
    found = {name.split(".")[0] for name in imported_names(source, at_import_time=True)}
    if room_of(module) == "frontends.onnx":
        assert "torch" not in {name.split(".")[0] for name in imported_names(source)}
    elif floor_of(DOORS.get(room_of(module), room_of(module))) <= floor_of("frontends"):
        assert not found & FRAMEWORKS


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )


def loaded_after(code):
    result = run_python(f"{code}\nimport sys; print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import deconvfix",
        "import deconvfix; deconvfix.ConvTransposeSpec; deconvfix.Plan; deconvfix.convert",
        "import deconvfix.cli.main",
    ],
    ids=["package", "public names", "command"],
)
def test_torch_is_not_imported_before_it_is_needed(code):
    assert not loaded_after(code) & {"torch", "onnx", "onnxruntime"}


def test_the_import_check_can_fail():
    assert "torch" in loaded_after("import deconvfix; deconvfix.load")


def public_modules():
    return sorted(
        f"deconvfix.{name}"
        for name, path in MODULES.items()
        if not path.stem.startswith("_") or "__all__" in path.read_text()
    )


def test_the_package_exports_what_it_says():
    assert sorted(deconvfix.__all__) == sorted(deconvfix._HOMES)
    for name in deconvfix.__all__:
        assert getattr(deconvfix, name).__module__.startswith("deconvfix.")
    assert set(deconvfix.__all__) < set(dir(deconvfix))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        deconvfix.Nothing  # noqa: B018


@pytest.mark.parametrize("name", public_modules())
def test_all_names_exist_and_are_documented(name):
    module = importlib.import_module(name)
    for public in module.__all__:
        value = getattr(module, public)
        home = getattr(value, "__module__", None) or ""
        if callable(value) and home.startswith("deconvfix"):
            assert value.__doc__, f"{name}.{public} needs a docstring"


@pytest.mark.parametrize("name", public_modules())
def test_what_others_use_is_in_all(name):
    """Names imported across modules are public in their home, so `__all__` is the surface."""
    module = importlib.import_module(name)
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == name:
                missing = {alias.name for alias in node.names} - set(module.__all__)
                submodules = {
                    info.name for info in pkgutil.iter_modules(getattr(module, "__path__", []))
                }
                assert not missing - submodules, f"{path.name} imports {missing} from {name}"


def form_names_compared(source):
    """Comparisons with the name of a form, as line numbers."""
    names = {form.name for form in FORMS}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            constants = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}
            if constants & names:
                yield node.lineno


@pytest.mark.parametrize(("module", "source"), SOURCES)
def test_no_name_of_a_form_is_compared_outside_of_forms(module, source):
    """Forms say facts about themselves: a comparison with a name would have to know each new form."""
    if room_of(module) != "forms":
        assert list(form_names_compared(source)) == []


def test_a_planted_comparison_is_seen():
    assert list(form_names_compared("a = 1\nif form in ('notch', 'x'): pass")) == [2]
    assert list(form_names_compared("x = form != 'subpixel'")) == [1]
    assert list(form_names_compared("convert(to='notch')")) == []


def test_every_error_has_four_parts():
    kinds = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    for kind in kinds:
        error = kind("decoder.up", "it is red", "it must be blue", "Paint it")
        assert str(error) == "decoder.up: it is red; it must be blue. Paint it."
        assert isinstance(error, deconvfix.DeconvfixError)
        assert kind.__name__ in errors.__doc__


def test_files_hold_one_idea():
    """Past about 300 lines a file usually holds two ideas; 420 is the limit with its docstrings."""
    long = {
        name: count
        for name, path in MODULES.items()
        if (count := len(path.read_text().splitlines())) > 420
    }
    assert not long


# Everything that a user may ask for is a keyword there, declared once elsewhere where it is an option.
MANY_ARGUMENTS = {"convert", "create", "strength_curve", "export_onnx"}


def long_functions(source):
    """Functions of 80 lines and more, their docstrings included, or of more than eight arguments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            given = node.args
            names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            lines = node.end_lineno - node.lineno + 1
            if lines >= 80 or (count > 8 and node.name not in MANY_ARGUMENTS):
                yield node.name


@pytest.mark.parametrize(("module", "source"), SOURCES)
def test_functions_do_one_thing(module, source):
    assert list(long_functions(source)) == []


def test_a_planted_long_function_is_seen():
    assert list(long_functions("def f():\n" + "    x = 1\n" * 80)) == ["f"]
    assert list(long_functions("def f(a, b, c, d, e, g, h, i, j): ...")) == ["f"]
    assert list(long_functions("def f(self, a, b, c, d, e, g, h, i): ...")) == []


def nameless_names(source):
    """Variables that say only that there are several of something."""
    for node in ast.walk(ast.parse(source)):
        if (isinstance(node, ast.Name) and node.id == "each") or (
            isinstance(node, ast.arg) and node.arg == "each"
        ):
            yield node.lineno


@pytest.mark.parametrize(("module", "source"), SOURCES)
def test_variables_say_what_they_hold(module, source):
    assert list(nameless_names(source)) == []


def test_a_planted_nameless_variable_is_seen():
    assert list(nameless_names("y = [each for each in x]")) == [1, 1]
    assert list(nameless_names("f = lambda each: 1")) == [1]


def test_the_architecture_document_names_every_module():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    missing = [
        name
        for name, path in MODULES.items()
        if not path.stem.startswith("__") and path.stem not in text
    ]
    assert not missing
