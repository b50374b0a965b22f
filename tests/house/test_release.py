"""What would be published: one version everywhere, a whole wheel and sdist, and a page that can be shown."""

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import deconvfix
from tests.support.project import project

ROOT = Path(__file__).parents[2]


def heading(changelog):
    """The version in the newest heading."""
    return re.search(r"^## \[(.+?)\]", changelog, re.MULTILINE).group(1)


def cited(citation):
    """The version in CITATION.cff."""
    return re.search(r"^version: (.+)$", citation, re.MULTILINE).group(1)


def test_the_version_is_the_same_everywhere():
    assert heading((ROOT / "CHANGELOG.md").read_text()) == deconvfix.__version__
    assert cited((ROOT / "CITATION.cff").read_text()) == deconvfix.__version__


def test_a_tag_of_this_commit_is_the_version():
    command = ["git", "tag", "--points-at", "HEAD", "v*"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert set(listed.stdout.split()) <= {f"v{deconvfix.__version__}"}


def test_another_version_is_seen():
    assert heading("# Changelog\n\n## [0.2.0] - unreleased\n\n## [0.1.0]\n") == "0.2.0"
    assert cited("cff-version: 1.2.0\nversion: 0.3.0\n") == "0.3.0"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the sdist; the wheel is made from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "-o", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return folder


def twine_check(*files):
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_twine_accepts_both(built):
    files = sorted(built.iterdir())
    assert [path.suffix for path in files] == [".whl", ".gz"]
    result = twine_check(*files)
    assert result.returncode == 0, result.stdout


def test_twine_sees_a_page_that_cannot_be_shown(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    broken = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(broken, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("METADATA"):
                head = content.partition(b"\n\n")[0]
                content = head.replace(b"text/markdown", b"text/x-rst") + b"\n\n.. nothing::\n"
            new.writestr(name, content)
    assert twine_check(broken).returncode != 0


def test_the_wheel_needs_no_torch_unless_it_is_asked_for(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {re.match(r"[\w-]+", line).group() for line in needed} == {
        *("click", "jinja2", "numpy", "onnx", "onnx-ir", "onnxruntime", "rich", "scipy"),
        "tomli",  # for Python 3.10 alone
    }
    assert "torch>=2.4; extra == 'torch'" in metadata.get_all("Requires-Dist")
    assert metadata["Requires-Python"] == ">=3.10"


def test_the_classifiers_name_every_python_of_the_table():
    rows = re.findall(r"^\| \d\S* \| (3\.\d+) ", (ROOT / "docs/versions.md").read_text(), re.M)
    named = [line.rpartition(" ")[2] for line in project()["classifiers"] if ":: 3." in line]
    assert named == ["3.10", "3.11", "3.12", "3.13"]
    assert set(rows) <= set(named)


def test_the_sdist_has_what_the_wheel_is_made_of(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "deconvfix/py.typed"} <= names
    assert not any(name.startswith(("tests/", "fixtures/")) for name in names)
