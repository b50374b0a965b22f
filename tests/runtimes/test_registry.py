"""The runtimes by name, and sentences for what is not there."""

import subprocess
import sys

import pytest

from deconvfix.errors import OptionError
from deconvfix.runtimes.base import Runtime
from deconvfix.runtimes.registry import RUNTIMES, runtime_at, runtime_named, runtime_of
from tests.support.project import project


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_says_what_it_needs(name):
    runtime = runtime_at(RUNTIMES[name])
    assert isinstance(runtime, Runtime)
    assert runtime.title
    assert runtime.install.startswith(("pip install ", "npm install "))


def test_nothing_of_a_runtime_is_imported_by_looking_at_it():
    code = (
        "import sys\n"
        "from deconvfix.runtimes.registry import RUNTIMES, runtime_at\n"
        "for home in RUNTIMES.values(): runtime_at(home).missing()\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "deconvfix.runtimes.openvino" in loaded
    assert not loaded & {
        "MNN",
        "cv2",
        "iree.compiler",
        "ncnn",
        "onnxruntime",
        "openvino",
        "tract",
        "torch",
    }


def test_an_unknown_runtime_is_an_error_with_the_names():
    with pytest.raises(OptionError, match="'tensorflow'; one of iree, mnn, ncnn, onnxruntime, "):
        runtime_named("tensorflow")


@pytest.mark.usefixtures("fakes")
def test_a_missing_package_is_a_sentence_with_the_command():
    with pytest.raises(OptionError) as caught:
        runtime_named("NotInstalled")
    assert str(caught.value) == (
        "runtime: the package 'there_is_no_such_package' is not installed; files run in Fake with it. "
        "Install it: pip install fake."
    )


def test_extras_have_the_names_of_the_commands():
    extras = project()["optional-dependencies"]
    for name in ("iree", "mnn", "ncnn", "opencv", "openvino", "tract"):
        assert runtime_at(RUNTIMES[name]).install == f"pip install 'deconvfix[{name}]'"
        assert name in extras


def test_node_or_its_package_may_be_missing(monkeypatch, tmp_path):
    web = runtime_at(RUNTIMES["onnxruntime-web"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/node")
    assert web.missing() == "the node package 'onnxruntime-web' is not installed"
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert web.missing() == "the command 'node' is not installed"


def test_a_target_runs_in_the_runtime_of_its_name():
    assert [runtime_of(target) for target in (None, "onnx", "onnxruntime")] == ["onnxruntime"] * 3
    assert runtime_of("some/where/onnxruntime.toml") == "onnxruntime"
    with pytest.raises(
        OptionError, match="'coreml', and files for it are not run here; one of iree, mnn, "
    ):
        runtime_of("coreml")
