"""Rules that hold the code together: imports, public names, errors, documents."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import deconvfix
from deconvfix import errors

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "deconvfix"

# A module may import from its own layer and from the layers before it.
LAYERS = (
    ("errors", "files", "decibels"),
    ("phases", "spec", "rearrange"),
    ("steps",),
    ("fit",),
    ("artifacts", "grids"),
    ("spectra", "variance", "flat_field"),
    ("forms",),
    ("plan", "parity"),
    ("advice", "inspection", "compare", "onnx_runtime", "pictures", "change", "bench"),
    ("frontends",),
    ("diagnosis", "fidelity"),
    ("shown", "curve"),
    ("evidence",),
    ("report",),
    (
        *("fx", "onnx", "onnx_file", "onnx_verify", "onnx_export", "checkpoint"),
        *("program_text", "program_file", "conversion", "growth", "strength", "torch_bench"),
    ),
    ("source",),
    ("calibration_files",),
    ("jobs", "checkpoint_source"),
    ("checkpoint_jobs", "onnx_jobs", "program_jobs"),
    ("_cli_source",),
    ("_cli_text", "_cli_fit", "_cli_report", "_cli_processes", "_cli", "__main__"),
)
TORCH_FREE = (
    *("errors", "files", "spec", "rearrange", "steps", "fit", "artifacts", "forms", "plan"),
    *("grids", "spectra", "variance", "flat_field", "advice", "diagnosis", "fidelity", "phases"),
    *("parity", "compare", "onnx_runtime", "inspection", "report", "conversion", "source", "jobs"),
    *("curve", "change", "shown", "decibels"),
    *("_cli", "_cli_text", "_cli_fit", "_cli_report", "_cli_processes", "calibration_files"),
    *("evidence", "pictures", "bench", "_cli_source"),
)


def layer_of(name):
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imports(source, *, at_import_time=False):
    """Names of the package's top-level modules, and of others, that a source file imports."""
    tree = ast.parse(source)
    nodes = ast.walk(tree)
    if at_import_time:
        guarded = [n for n in tree.body if isinstance(n, ast.If)]
        nodes = [n for n in tree.body if n not in guarded]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "deconvfix":
                yield from (f"deconvfix.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def violations(name, source):
    for each in imports(source):
        parts = each.split(".")
        own = parts[0] == "deconvfix" and len(parts) > 1 and not parts[1].startswith("__")
        if own and layer_of(parts[1]) > layer_of(name):
            yield f"{name} imports {each}"


SOURCES = [
    pytest.param(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path, id=path.stem)
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
]


@pytest.mark.parametrize(("name", "path"), SOURCES)
def test_imports_point_one_way(name, path):
    assert list(violations(name, path.read_text())) == []


def test_a_planted_violation_is_seen():
    assert list(violations("spec", "from deconvfix.plan import Plan")) == [
        "spec imports deconvfix.plan"
    ]


@pytest.mark.parametrize(("name", "path"), SOURCES)
def test_the_core_is_free_of_torch_and_onnx(name, path):
    if name in TORCH_FREE:
        found = {each.split(".")[0] for each in imports(path.read_text(), at_import_time=True)}
        assert not found & {"torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript"}


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
        "import deconvfix._cli",
    ],
    ids=["package", "names", "command"],
)
def test_torch_is_not_imported_before_it_is_needed(code):
    assert not loaded_after(code) & {"torch", "onnx", "onnxruntime"}


def test_the_import_check_can_fail():
    assert "torch" in loaded_after("import deconvfix; deconvfix.load")


def public_modules():
    return sorted(
        f"deconvfix.{path.relative_to(PACKAGE).with_suffix('').as_posix().replace('/', '.')}"
        for path in PACKAGE.rglob("*.py")
        if not path.stem.startswith("_")
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
        if callable(value) and getattr(value, "__module__", "").startswith("deconvfix"):
            assert value.__doc__, f"{name}.{public} needs a docstring"


@pytest.mark.parametrize("name", public_modules())
def test_what_others_use_is_in_all(name):
    """Names imported across modules are public in their home, so `__all__` is the surface."""
    module = importlib.import_module(name)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == name:
                missing = {alias.name for alias in node.names} - set(module.__all__)
                submodules = {
                    each.name for each in pkgutil.iter_modules(getattr(module, "__path__", []))
                }
                assert not missing - submodules, f"{path.name} imports {missing} from {name}"


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
        path.name: count
        for path in PACKAGE.rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 420
    }
    assert not long


def test_the_architecture_document_names_every_module():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    missing = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py") and path.name not in text
    ]
    assert not missing
