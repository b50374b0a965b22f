"""What SARIF 2.1.0 asks of a log, by the specification's "SHALL" (sections 3.13 to 3.30)."""

import re
from urllib.parse import urlsplit

__all__ = ["faults_of"]

LEVELS = ("none", "note", "warning", "error")


def faults_of(log):
    """What is wrong with a log; [] if nothing is."""
    return list(_faults(log))


def _faults(log):
    if log.get("version") != "2.1.0":
        yield "3.13.2: version"
    if not isinstance(log.get("runs"), list) or not log["runs"]:
        yield "3.13.4: runs"
        return
    for run in log["runs"]:
        driver = run.get("tool", {}).get("driver", {})
        if not isinstance(driver.get("name"), str):
            yield "3.19.8: name of the driver"
        names = [rule.get("id") for rule in driver.get("rules", [])]
        if None in names or len(names) != len(set(names)):
            yield "3.49.3: ids of rules"
        for result in run.get("results", []):
            yield from _faults_of_result(result, names)


def _faults_of_result(result, names):
    if not result.get("message", {}).get("text"):
        yield "3.27.11: message"
    if result.get("level", "warning") not in LEVELS:
        yield "3.27.10: level"
    index = result.get("ruleIndex", -1)
    if index != -1 and not (index < len(names) and names[index] == result.get("ruleId")):
        yield "3.27.6: ruleIndex"
    for location in result.get("locations", []):
        physical = location.get("physicalLocation")
        uri = "" if physical is None else physical.get("artifactLocation", {}).get("uri", "")
        # RFC 3986: what a URI may be made of.
        if (
            not uri
            or re.search(r"[^\w.~:/?#\[\]@!$&'()*+,;=%-]", uri, re.ASCII)
            or not urlsplit(uri).path
        ):
            yield "3.4.3: uri"
        if physical and physical.get("region", {}).get("startLine", 1) < 1:
            yield "3.30.5: startLine"
