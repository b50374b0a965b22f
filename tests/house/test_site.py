"""The site of docs/: built without a warning, with every page in it and every public name."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deconvfix

ROOT = Path(__file__).parents[2]
needs_mkdocs = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="the site is built with the extra 'docs'",
)


def build(root, site):
    """Builds the site of a checkout; the finished process."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(
        [*command, "-f", str(root / "docs/site/mkdocs.yml"), "-d", str(site)],
        env=os.environ | {"PYTHONPATH": str(root), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_mkdocs
def test_the_site_is_built_without_a_warning(tmp_path):
    result = build(ROOT, tmp_path)
    assert result.returncode == 0, result.stderr
    # Pages of docs/, those from outside, and the options of `convert`, which its source does not spell out.
    for page in ("which-command", "overview", "measurements"):
        assert (tmp_path / page / "index.html").is_file()
    api = (tmp_path / "api/index.html").read_text()
    assert "{options}" not in api
    assert "Extra kernel taps on each side" in api
    assert set(re.findall(r'id="deconvfix\.(\w+)"', api)) == set(deconvfix.__all__)


@needs_mkdocs
@pytest.mark.parametrize(
    "damage",
    ["[nothing](nothing.md)", "[nothing](limits.md#nothing)", "::: deconvfix.nothing"],
    ids=["page", "anchor", "name"],
)
def test_what_leads_nowhere_is_seen(tmp_path, damage):
    for folder in ("docs", "deconvfix"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("benchmarks", "fixtures"):
        (tmp_path / folder).mkdir()
        shutil.copy(ROOT / folder / "README.md", tmp_path / folder)
    with (tmp_path / "docs/limits.md").open("a") as page:
        page.write(f"\n{damage}\n")
    result = build(tmp_path, tmp_path / "built")
    assert result.returncode != 0
    assert "nothing" in result.stderr


def test_the_api_names_what_is_public():
    named = re.findall(r"^::: deconvfix\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted(named) == sorted(deconvfix.__all__)
