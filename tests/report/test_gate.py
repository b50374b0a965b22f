"""A gate's result as JUnit XML and SARIF."""

import copy
import json
from xml.etree import ElementTree

import pytest

from deconvfix.report.gate import RULES, Finding, Gated, GateReport, Rule
from tests.support.sarif import faults_of

LEFT = Rule("no-transposed-convolution", (Finding("up1", "up1 is one."), Finding("", "And one.")))
KEPT = Rule("target", (), "openvino")
REPORT = GateReport(
    (Gated("a b/n\u00e9t.onnx", (LEFT, KEPT)), Gated("/x/ok.onnx", (KEPT,))), "openvino"
)


def test_a_file_is_ok_if_every_rule_is_kept():
    assert [file.ok for file in REPORT.files] == [False, True]
    assert not REPORT.ok
    assert GateReport(REPORT.files[1:]).ok


def test_json_has_every_rule_and_finding():
    data = json.loads(json.dumps(REPORT.to_dict()))
    assert data["format"] == "deconvfix.check/1"
    [first, second] = data["files"]
    assert [rule["ok"] for rule in first["rules"]] == [False, True]
    assert first["rules"][0]["findings"][0] == {"where": "up1", "message": "up1 is one."}
    assert second["ok"]


def test_junit_counts_rules_and_failures():
    root = ElementTree.fromstring(REPORT.to_junit().encode())
    assert root.attrib == {"name": "deconvfix", "tests": "3", "failures": "1", "errors": "0"}
    [first, second] = root.findall("testsuite")
    assert (first.get("tests"), first.get("failures")) == ("2", "1")
    assert (second.get("tests"), second.get("failures")) == ("1", "0")
    cases = first.findall("testcase")
    assert [case.get("name") for case in cases] == [RULES[LEFT.name], RULES[KEPT.name]]
    [failure] = cases[0].findall("failure")
    assert failure.get("message") == "up1 is one. (and 1 more)"
    assert failure.text.splitlines() == ["up1 is one.", "And one."]
    assert cases[1].find("failure") is None


def test_sarif_is_valid_and_names_files_and_layers():
    log = json.loads(REPORT.to_sarif())
    assert faults_of(log) == []
    [run] = log["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == list(RULES)
    first, second = run["results"]
    [place] = first["locations"]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "a%20b/n%C3%A9t.onnx"
    assert place["logicalLocations"] == [{"fullyQualifiedName": "up1"}]
    assert "logicalLocations" not in second["locations"][0]
    absolute = GateReport((Gated("/x/bad.onnx", (LEFT,)),)).to_sarif()
    assert '"file:///x/bad.onnx"' in absolute
    assert faults_of(json.loads(GateReport(REPORT.files[1:]).to_sarif())) == []


def spoil_version(log):
    log["version"] = "2.0"


def spoil_driver(log):
    del log["runs"][0]["tool"]["driver"]["name"]


def spoil_message(log):
    log["runs"][0]["results"][0]["message"] = {}


def spoil_index(log):
    log["runs"][0]["results"][0]["ruleIndex"] = 1


def spoil_uri(log):
    place = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    place["artifactLocation"]["uri"] = "a b.onnx"


@pytest.mark.parametrize(
    "spoil", [spoil_version, spoil_driver, spoil_message, spoil_index, spoil_uri]
)
def test_a_spoiled_log_is_seen(spoil):
    log = copy.deepcopy(json.loads(REPORT.to_sarif()))
    spoil(log)
    assert len(faults_of(log)) == 1


HOSTILE = "up\x00\x1b[31m\udc81]]>&<failure/>\ufffe\uffff"


def test_a_strangers_words_break_neither_format():
    report = GateReport(
        (Gated(f"\udc80{HOSTILE}.onnx", (Rule("grid", (Finding(HOSTILE, HOSTILE),)),)),)
    )
    root = ElementTree.fromstring(report.to_junit().encode())
    assert len(root.findall(".//failure")) == 1
    assert "]]>&<failure/>" in root.find(".//failure").text
    log = json.loads(report.to_sarif().encode())
    assert "\\x1b[31m" in log["runs"][0]["results"][0]["message"]["text"]
