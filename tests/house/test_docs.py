"""The commands and the Python of the README and of docs/, run in order as a reader would run them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
INDEX = ROOT / "docs/README.md"
# As the index says: in its order, after the README. Later commands read what earlier ones wrote.
PAGES = [
    README,
    *(INDEX.parent / name for name in re.findall(r"\]\(([a-z0-9-]+\.md)\)", INDEX.read_text())),
]


def blocks(page):
    """The code of a page: language and text."""
    return re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), re.DOTALL)


def commands(text):
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()]


COMMANDS = [
    command
    for page in PAGES
    for language, text in blocks(page)
    if language == "bash"
    for command in commands(text)
]
SCRIPTS = [command.split("#")[0].strip() for command in COMMANDS if command.startswith("scripts/")]
INSTALLED = [command for command in COMMANDS if command.startswith("python -m pip install ")]
OWN = [
    command for command in COMMANDS if command.startswith(("deconvfix ", "python -c ", "torchrun "))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the fixtures, where the outputs of earlier commands are found by later ones."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "fixtures", folder / "fixtures")
    return folder


def run(arguments, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_command_is_of_a_known_kind():
    assert len(OWN) + len(SCRIPTS) + len(INSTALLED) == len(COMMANDS) >= 20


def test_the_index_names_every_document():
    assert set(PAGES[1:]) == set(INDEX.parent.glob("*.md")) - {INDEX}


def test_the_readme_is_read_in_two_minutes():
    """What it does and the first Python on the first screen; the rest is in docs/."""
    lines = README.read_text().splitlines()
    assert len(lines) <= 110
    assert lines.index("```python") < 20


def test_what_the_reader_installs_is_installed_for_the_tests():
    extras = (ROOT / "pyproject.toml").read_text()
    for command in INSTALLED:
        assert all(f'"{name}>=' in extras for name in command.split()[4:])


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_exist_and_may_be_run(script):
    assert os.access(ROOT / script, os.X_OK)


def test_ci_runs_the_test_command_of_the_readme():
    assert "scripts/test" in SCRIPTS
    assert "scripts/test" in (ROOT / ".ci/run").read_text().splitlines()


def test_the_demo_writes_a_verified_file_without_transposed_convolution(folder):
    """The command in scripts/demo, without its installation."""
    (command,) = [
        line
        for line in commands((ROOT / "scripts/demo").read_text())
        if "deconvfix" in line and "convert" in line
    ]
    arguments = shlex.split(command.partition("deconvfix")[2].removeprefix('"'))
    output = run([sys.executable, "-m", "deconvfix", *arguments], folder)
    assert "3 transposed convolutions found: 3 replaced; verified." in output
    import onnx

    model = onnx.load(folder / "photo_autoencoder.onnx")
    assert "ConvTranspose" not in {node.op_type for node in model.graph.node}
    assert "<html" in (folder / "photo_autoencoder.html").read_text()


def test_pages_run_in_order(folder):
    outputs = []
    for language, text in [block for page in PAGES for block in blocks(page)]:
        if language == "python":
            outputs.append(run([sys.executable, "-c", text], folder))
            continue
        for command in commands(text):
            if command in OWN:
                outputs.append(run(["bash", "-c", with_this_python(command)], folder))
    found = "3 transposed convolutions found: 3 replaced; verified."
    assert any(found in output for output in outputs)


def with_this_python(command):
    """A command of a page, for an interpreter that is not called python."""
    python = shlex.quote(sys.executable)
    for name, call in (
        ("python ", f"{python} "),
        ("torchrun ", f"{python} -m torch.distributed.run "),
        ("deconvfix ", f"{python} -m deconvfix "),
    ):
        if command.startswith(name):
            return command.replace(name, call, 1)
    raise AssertionError(command)


@pytest.mark.parametrize("page", [*PAGES, INDEX], ids=lambda page: page.name)
def test_pictures_and_links_exist(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
