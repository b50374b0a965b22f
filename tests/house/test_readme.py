"""The commands and the Python of the README, run as a reader would run them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands(text):
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()]


COMMANDS = [each for block in blocks("bash") for each in commands(block)]
SCRIPTS = [each.split("#")[0].strip() for each in COMMANDS if each.startswith("scripts/")]
INSTALLED = [each for each in COMMANDS if each.startswith("python -m pip install ")]
OWN = [each for each in COMMANDS if each.startswith(("deconvfix ", "python -c ", "torchrun "))]


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
    assert len(OWN) + len(SCRIPTS) + len(INSTALLED) == len(COMMANDS) >= 8


def test_what_the_reader_installs_is_installed_for_the_tests():
    extras = (ROOT / "pyproject.toml").read_text()
    for command in INSTALLED:
        assert all(f'"{each}>=' in extras for each in command.split()[4:])


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_exist_and_may_be_run(script):
    assert os.access(ROOT / script, os.X_OK)


def test_ci_runs_the_test_command_of_the_readme():
    assert "scripts/test" in SCRIPTS
    assert "scripts/test" in (ROOT / ".ci/run").read_text().splitlines()


def test_the_demo_writes_a_verified_file_without_transposed_convolution(folder):
    """The command in scripts/demo, without its installation."""
    (command,) = [
        each
        for each in commands((ROOT / "scripts/demo").read_text())
        if "deconvfix" in each and "convert" in each
    ]
    arguments = shlex.split(command.partition("deconvfix")[2].removeprefix('"'))
    output = run([sys.executable, "-m", "deconvfix", *arguments], folder)
    assert "3 transposed convolutions found: 3 replaced; verified." in output
    import onnx

    model = onnx.load(folder / "photo_autoencoder.onnx")
    assert "ConvTranspose" not in {node.op_type for node in model.graph.node}
    assert "<html" in (folder / "photo_autoencoder.html").read_text()


def test_the_uses_of_the_readme_run_in_order(folder):
    steps = re.findall(r"```(bash|python)\n(.*?)```", TEXT, re.DOTALL)
    outputs = []
    for language, text in steps:
        if language == "python":
            outputs.append(run([sys.executable, "-c", text], folder))
            continue
        for command in commands(text):
            if command in OWN:
                python = shlex.quote(sys.executable)
                command = command.replace("python ", f"{python} ", 1)
                if command.startswith("torchrun "):
                    launcher = f"{python} -m torch.distributed.run "
                    command = command.replace("torchrun ", launcher, 1)
                else:
                    command = command.replace("deconvfix ", f"{python} -m deconvfix ", 1)
                outputs.append(run(["bash", "-c", command], folder))
    assert len(outputs) == len(OWN) + len(blocks("python"))
    assert any("3 transposed convolutions found: 3 replaced; verified." in each for each in outputs)


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / target).exists(), target
