"""A file held against the rules of a gate; see `report.gate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from deconvfix.cli.jobs.job import Job, Opened, kind_of
from deconvfix.cli.source import Source
from deconvfix.errors import OptionError
from deconvfix.report.gate import Finding, Gated, Rule
from deconvfix.request import Request
from deconvfix.targets.profile import Profile

__all__ = ["gated"]


def gated(
    source: Source,
    *,
    exclude: tuple[str, ...] = (),
    profile: Profile | None = None,
    before: Path | None = None,
    max_grid: float | None = None,
) -> Gated:
    """Holds a file against every rule that is asked for.

    Args:
        source: The file, and inputs for its model.
        exclude: Patterns on the names of transposed convolutions that may stay.
        profile: What the target accepts; for ONNX files.
        before: The file that it was made from.
        max_grid: The most that the visible grid may be in any output, in 1/255 of its range.

    Raises:
        DeconvfixError: If a file or an option cannot be used: then nothing is known of the rules.
    """
    if max_grid is not None and not max_grid >= 0:
        raise OptionError(
            "max-grid",
            f"the value is {max_grid!r}",
            "a number of steps of 255 is needed, 0 or more",
            "Correct it; 0.3 is what people see",
        )
    opened = kind_of(source.path).open(Job(source, None, Request()))
    rules = [Rule("no-transposed-convolution", tuple(_left(opened, exclude)))]
    if profile is not None:
        rules.append(_accepted(opened, source.path, profile))
    if before is not None:
        rules.append(_same_function(source, before))
    if max_grid is not None:
        rules.append(_grid(opened, source, max_grid))
    return Gated(str(source.path), tuple(rules))


def _left(opened: Opened, exclude: tuple[str, ...]) -> Iterator[Finding]:
    model = opened.frontend.prepare(opened.model, opened.example, inplace=False)
    for match in opened.frontend.find(model, opened.example).matches:
        if any(fnmatchcase(match.name, pattern) for pattern in exclude):
            continue
        name = match.name or "(model)"
        reason = f" It cannot be converted: {match.obstacle.found}." if match.obstacle else ""
        yield Finding(name, f"{name} is a transposed convolution ({match.op}).{reason}")


def _accepted(opened: Opened, path: Path, profile: Profile) -> Rule:
    if path.suffix != ".onnx":
        raise OptionError(
            "target",
            f"{path} is no ONNX file",
            "profiles of targets are about operators",
            "Check the ONNX file that is deployed, or omit --target",
        )
    from deconvfix.frontends.onnx.accepts import broken_lines

    findings = tuple(
        Finding(
            broken.node,
            f"{broken.node}: {broken.found}; the target {profile.name!r} says: {profile.line(broken.key)}.",
        )
        for broken in broken_lines(opened.model, profile)
    )
    return Rule("target", findings, profile.name)


def _same_function(source: Source, before: Path) -> Rule:
    report = kind_of(before).verify(replace(source, path=before), source.path)
    count = len(report.comparisons)
    problems = report.problems or (() if report.ok else ("The two differ.",))
    findings = tuple(Finding("", problem) for problem in problems)
    return Rule("same-function", findings, f"{count} comparisons with {before}")


def _grid(opened: Opened, source: Source, most: float) -> Rule:
    if opened.example is None:
        raise OptionError(
            "max-grid",
            "no inputs are given",
            "the grid is seen in outputs for real inputs",
            "Give --inputs FILE.npz",
        )
    outputs = kind_of(source.path).inspect(source, None).outputs
    findings, seen = [], []
    for output in outputs:
        name = f"output {output.index}"
        if output.visible is None:
            sentence = f"{name}: the grid could not be measured: it is too small, or no picture."
            findings.append(Finding(name, sentence))
            continue
        grid = max(output.visible.mean, 0.0)
        seen.append(f"{grid:.2f}")
        if grid > most:
            limit = f"more than the {most:g} that are allowed"
            sentence = f"{name}: the visible grid is {grid:.2f} steps of 255, {limit}."
            findings.append(Finding(name, sentence))
    if not outputs:
        note = "no layer that makes a grid was found"
    else:
        note = f"{', '.join(seen) or 'not measured'} steps of 255, at most {most:g}"
    return Rule("grid", tuple(findings), note)
