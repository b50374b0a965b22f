"""What other repositories use of this one: the pre-commit hook, the action, the image."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import yaml

from tests.support.onnx_files import convert, net

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github/actions/check/action.yml"
DOCKERFILE = ROOT / ".github/docker/Dockerfile"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files in a folder with a space, and the command on the path."""
    folder = tmp_path_factory.mktemp("a repository")
    onnx.save(net(), folder / "net.onnx")
    assert convert(folder / "net.onnx", folder / "fixed.onnx").exit_code == 0
    command = folder / "bin" / "deconvfix"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m deconvfix "$@"\n')
    command.chmod(0o755)
    return folder


def in_shell(command, folder, **variables):
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path} | variables
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


# --- pre-commit ---------------------------------------------------------------------------------


def test_the_hook_checks_the_onnx_files_that_it_gets(folder):
    [hook] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert {"id", "name", "entry", "language"} <= set(hook)
    assert hook["language"] == "python"
    assert re.search(hook["files"], "models/net.onnx")
    assert not re.search(hook["files"], "net.onnx.data")
    entry = shlex.split(hook["entry"])
    assert in_shell([*entry, "--target", "onnxruntime", "fixed.onnx"], folder).returncode == 0
    assert in_shell([*entry, "fixed.onnx", "net.onnx"], folder).returncode == 1


# --- the action ---------------------------------------------------------------------------------


def action():
    return yaml.safe_load(ACTION.read_text())


def faults(described):
    """What GitHub asks of a composite action, and that no input is text of a script."""
    if described["runs"]["using"] != "composite":
        yield "using"
    declared = set(described["inputs"])
    for step in described["runs"]["steps"]:
        if "run" in step and "shell" not in step:
            yield f"{step['name']}: a shell is needed"
        if "${{" in step.get("run", ""):
            yield f"{step['name']}: an input is text of the script"
        for value in step.get("env", {}).values():
            used = set(re.findall(r"\$\{\{ inputs\.([\w-]+) \}\}", value))
            if not used or used - declared:
                yield f"{step['name']}: {value}"
    for name, entry in described["inputs"].items():
        if "description" not in entry or ("default" in entry) is bool(entry.get("required")):
            yield name


def test_the_action_is_well_formed():
    assert list(faults(action())) == []


def test_a_planted_fault_is_seen():
    spoiled = action()
    spoiled["runs"]["steps"][1]["run"] = "deconvfix check ${{ inputs.models }}"
    spoiled["runs"]["steps"][1]["env"]["TARGET"] = "${{ inputs.tarket }}"
    del spoiled["runs"]["steps"][0]["shell"]
    del spoiled["inputs"]["junit"]["default"]
    assert len(list(faults(spoiled))) == 4


def run_action(folder, **given):
    """Its second step, as a runner would run it."""
    described = action()
    step = described["runs"]["steps"][1]
    inputs = {name: entry.get("default", "") for name, entry in described["inputs"].items()}
    inputs |= {name.replace("_", "-"): value for name, value in given.items()}
    variables = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: inputs[found[1]], value)
        for name, value in step["env"].items()
    }
    script = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
    return in_shell(script, folder, **variables)


def test_the_action_runs_the_gate(folder):
    result = run_action(folder, models="fixed.onnx\n", before="net.onnx", target="onnxruntime")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (folder / "deconvfix.junit.xml").is_file()
    assert (folder / "deconvfix.sarif").is_file()
    assert run_action(folder, models="fixed.onnx\nnet.onnx").returncode == 1
    assert run_action(folder, models="net.onnx", exclude="up1\nup2").returncode == 0


def test_the_name_of_a_file_is_no_command(folder):
    shutil.copy(folder / "fixed.onnx", folder / "a; touch hit $(touch hit).onnx")
    result = run_action(folder, models="a; touch hit $(touch hit).onnx\n-h.onnx")
    assert result.returncode == 1  # there is no file -h.onnx
    assert not (folder / "hit").exists()
    assert run_action(folder, models="a; touch hit $(touch hit).onnx").returncode == 0


def test_the_action_installs_the_repository_that_it_lies_in():
    install = action()["runs"]["steps"][0]["run"]
    up = re.search(r"\$\{GITHUB_ACTION_PATH\}(/[./]+)", install)[1]
    assert (ACTION.parent / up.lstrip("/")).resolve() == ROOT


# --- the image ----------------------------------------------------------------------------------


def instructions(text):
    """Instruction and arguments, line for line."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


def image_faults(text):
    """What hadolint would say of it, as far as this file goes; and that what is copied exists."""
    found = instructions(text)
    if found[0][0] != "FROM" or ":" not in found[0][1] or found[0][1].endswith(":latest"):
        yield "DL3006: a version of the base image"
    for name, arguments in found:
        if name == "COPY":
            for source in arguments.split()[:-1]:
                if not (ROOT / source).exists():
                    yield f"COPY {source}"
        if "pip install" in arguments and "--no-cache-dir" not in arguments:
            yield "DL3042: --no-cache-dir"
        if name in ("ENTRYPOINT", "CMD") and not arguments.startswith("["):
            yield "DL3025: JSON for arguments"
    if "USER" not in [name for name, _ in found]:
        yield "DL3002: a user that is not root"


def test_the_dockerfile_is_well_formed():
    assert list(image_faults(DOCKERFILE.read_text())) == []
    [copied] = [a for n, a in instructions(DOCKERFILE.read_text()) if n == "COPY" and "toml" in a]
    needed = re.findall(
        r'^(?:readme|license-files) = \[?"([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.M
    )
    assert set(needed) <= set(copied.split())


def test_a_planted_fault_of_the_image_is_seen():
    bad = "FROM python\nCOPY nothing /x\nRUN pip install x\nCMD deconvfix\n"
    assert len(list(image_faults(bad))) == 5


def container_tool():
    """docker or podman with a service behind it."""
    for tool in ("docker", "podman"):
        if (
            shutil.which(tool)
            and subprocess.run([tool, "info"], capture_output=True, check=False).returncode == 0
        ):
            return tool
    return None


def test_the_image_is_built_and_runs(folder):
    tool = container_tool()
    if tool is None:
        pytest.skip("no container tool is here, or none that runs: the Dockerfile is linted alone")
    build = [tool, "build", "-q", "-f", str(DOCKERFILE), str(ROOT)]
    image = subprocess.run(build, capture_output=True, text=True, check=True).stdout.strip()
    call = [tool, "run", "--rm", "--network", "none", "-v", f"{folder}:/data:ro", image, "check"]
    assert subprocess.run([*call, "fixed.onnx"], check=False).returncode == 0
    assert subprocess.run([*call, "net.onnx"], check=False).returncode == 1
