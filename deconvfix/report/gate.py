"""What a gate in continuous integration found: plain data, and the two formats that services read.

JUnit XML: a test suite for each file, a test case for each rule. SARIF 2.1.0 (OASIS, 2020): a result for each
finding, with the file and the layer where it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from deconvfix import __version__
from deconvfix.errors import printable
from deconvfix.report.report import finite

__all__ = ["RULES", "Finding", "GateReport", "Gated", "Rule"]

GATE_FORMAT = "deconvfix.check/1"

# What is checked, in the order of the reports.
RULES = {
    "no-transposed-convolution": "No transposed convolution is left",
    "target": "The target accepts every operator",
    "same-function": "The file is the same function as the one it was made from",
    "grid": "The visible grid in the outputs is below the limit",
}


@dataclass(frozen=True)
class Finding:
    """Something that must not be.

    Attributes:
        where: The layer, node or output; "" for the file.
        message: A sentence.
    """

    where: str
    message: str


@dataclass(frozen=True)
class Rule:
    """A rule that a file was held against.

    Attributes:
        name: A key of `RULES`.
        findings: What breaks it; empty if the file keeps it.
        note: What was looked at, in a few words.
    """

    name: str
    findings: tuple[Finding, ...] = ()
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the file keeps the rule."""
        return not self.findings


@dataclass(frozen=True)
class Gated:
    """A file with the rules that it was held against."""

    path: str
    rules: tuple[Rule, ...]

    @property
    def ok(self) -> bool:
        """Whether the file keeps all of them."""
        return all(rule.ok for rule in self.rules)


@dataclass(frozen=True)
class GateReport:
    """All files.

    Attributes:
        files: With what was found in each.
        target: Whose profile was asked for, None without.
    """

    files: tuple[Gated, ...]
    target: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every file keeps every rule."""
        return all(file.ok for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        files = [
            {
                "path": file.path,
                "ok": file.ok,
                "rules": [{"ok": rule.ok, **asdict(rule)} for rule in file.rules],
            }
            for file in self.files
        ]
        data = {"format": GATE_FORMAT, "ok": self.ok, "target": self.target, "files": files}
        return {key: finite(value) for key, value in data.items()}

    def to_junit(self) -> str:
        """JUnit XML."""
        root = ElementTree.Element("testsuites", _counts(self.files) | {"name": "deconvfix"})
        for file in self.files:
            suite = ElementTree.SubElement(
                root, "testsuite", _counts([file]) | {"name": _words(file.path)}
            )
            for rule in file.rules:
                case = ElementTree.SubElement(
                    suite, "testcase", {"classname": _words(file.path), "name": RULES[rule.name]}
                )
                if rule.ok:
                    continue
                lines = [_words(found.message) for found in rule.findings]
                more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
                failure = ElementTree.SubElement(
                    case, "failure", {"type": rule.name, "message": lines[0] + more}
                )
                failure.text = "\n".join(lines)
        ElementTree.indent(root)
        text: str = ElementTree.tostring(root, encoding="unicode", xml_declaration=False)
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'

    def to_sarif(self) -> str:
        """SARIF 2.1.0, as one JSON object."""
        rules = [
            {"id": name, "name": name, "shortDescription": {"text": f"{words}."}}
            for name, words in RULES.items()
        ]
        driver = {"name": "deconvfix", "version": __version__, "rules": rules}
        results = [
            _sarif_result(file.path, rule.name, found)
            for file in self.files
            for rule in file.rules
            for found in rule.findings
        ]
        log = {
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{"tool": {"driver": driver}, "results": results}],
        }
        return json.dumps(log, indent=2)


def _sarif_result(path: str, rule: str, found: Finding) -> dict[str, Any]:
    # A model has no lines; services that show code ask for one all the same.
    physical = {"artifactLocation": {"uri": _uri(path)}, "region": {"startLine": 1}}
    location: dict[str, Any] = {"physicalLocation": physical}
    if found.where:
        location["logicalLocations"] = [{"fullyQualifiedName": _words(found.where)}]
    return {
        "ruleId": rule,
        "ruleIndex": list(RULES).index(rule),
        "level": "error",
        "message": {"text": _words(found.message)},
        "locations": [location],
    }


def _uri(path: str) -> str:
    """A relative path as a relative reference, another one as a URI of a file."""
    given = Path(path)
    return given.as_uri() if given.is_absolute() else quote(os.fsencode(given.as_posix()))


def _counts(files: Sequence[Gated]) -> dict[str, str]:
    rules = [rule for file in files for rule in file.rules]
    failed = sum(not rule.ok for rule in rules)
    return {"tests": str(len(rules)), "failures": str(failed), "errors": "0"}


def _words(text: str) -> str:
    """A stranger's words without what XML forbids."""
    return printable(text).replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
