"""The tools that judge the code have the same versions wherever they run."""

import re
from pathlib import Path

from tests.support.project import project

ROOT = Path(__file__).parents[2]


def pins(text):
    """Every `name==version` in a text, except in lines that are comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return set(re.findall(r"\b([a-z][a-z-]*)==([\w.]+)", "\n".join(lines)))


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text())
PRE_COMMIT = pins((ROOT / ".pre-commit-config.yaml").read_text())


def test_the_tools_are_pinned():
    assert {name for name, _ in CONSTRAINTS} >= {"mypy", "pytest", "ruff", "torch"}
    extra = project()["optional-dependencies"]
    installed = {re.match(r"[\w-]+", requirement).group() for requirement in extra["test"]}
    assert installed >= {name for name, _ in CONSTRAINTS} - {"torch"}


def test_pre_commit_has_the_versions_of_ci():
    assert {name for name, _ in PRE_COMMIT} == {"mypy", "ruff"}
    assert PRE_COMMIT <= CONSTRAINTS


def test_another_version_is_seen():
    assert not pins('additional_dependencies: ["ruff==0.1.0"]') <= CONSTRAINTS
    assert pins("# ruff==0.1.0\nruff==0.2\n") == {("ruff", "0.2")}
