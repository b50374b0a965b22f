"""Proof in the runtime where a file is deployed: original and converted file there, against ONNX Runtime.

The reference is the original in ONNX Runtime, on the inputs of `deconvfix verify`. How far rounding moves its
outputs is measured there: it runs again with weights and inputs moved by one eps. Another runtime adds in
another order, or by Winograd's algorithm: a sum of n terms has then an error of up to about sqrt(n) of these
moves. It has the bound between runtimes of `deconvfix.parity.bounds`, LIMIT * RUNTIME_FACTOR = 100 times the
largest move, which is some 1e-5 of the output's size and covers sums of 10,000 terms. A wrong tap departs by
a tenth of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from deconvfix.errors import OptionError
from deconvfix.frontends.onnx import file as onnx_file
from deconvfix.frontends.onnx.inputs import Feed
from deconvfix.frontends.onnx.parity import reference_of
from deconvfix.parity.bounds import (
    LIMIT,
    RUNTIME_FACTOR,
    ParityReport,
    compare_arrays,
    rounding_of,
    summarize,
)
from deconvfix.parity.outputs import Case, Output, OutputParity, Pair, Rules, compare_outputs
from deconvfix.runtimes.base import Runtime
from deconvfix.runtimes.process import InRuntime, NotRunError
from deconvfix.runtimes.registry import RUNTIMES, runtime_named

__all__ = ["FORMAT", "Fared", "RuntimeReport", "judge_in", "prove_in"]

FORMAT = "deconvfix.runtime/1"
# Each status, as what a runtime does to a file.
_DOES = {
    "right": "gets {file} right",
    "wrong": "gets {file} wrong",
    "refused": "refuses {file}",
    "died": "dies of {file}",
    "late": "does not finish {file} in time",
    "unproven": "runs {file}, and there is nothing to compare",
}


@dataclass(frozen=True)
class Fared:
    """How a file fared in a runtime.

    Attributes:
        file: Its path.
        status: right, wrong (other values or sizes), refused, died, late, or unproven.
        words: What happened, for people; the runtime's own sentence where it has one. Empty if right.
        max_abs: Largest difference from the original in ONNX Runtime; None if it did not run.
        error_ratio: The same over what rounding explains (the limit is 10); None if it did not run.
    """

    file: str
    status: str
    words: str = ""
    max_abs: float | None = None
    error_ratio: float | None = None


@dataclass(frozen=True)
class RuntimeReport:
    """Two files in a runtime, against the original in ONNX Runtime.

    Attributes:
        runtime: Its name and version.
        before: How the original fared.
        after: How the converted file fared.
        notes: Sentences: what limits the evidence.
    """

    runtime: str
    before: Fared
    after: Fared
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the converted file is right."""
        return self.after.status == "right"

    def verdict(self) -> str:
        """Both in one sentence."""
        before, after = (fared.status for fared in (self.before, self.after))
        if before == after == "right":
            return f"{self.runtime} gets both files right."
        if after == "right":
            original = _DOES[before].format(file="the original")
            return f"{self.runtime} {original}; the converted file is right."
        return (
            f"{self.runtime} {_DOES[after].format(file='the converted file')}, and "
            f"{_DOES[before].format(file='the original')}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"format": FORMAT, "ok": self.ok, "verdict": self.verdict(), **asdict(self)}


def prove_in(
    name: str, before: Path, after: Path, inputs: Sequence[Any] = (), seconds: float = 600.0
) -> RuntimeReport:
    """Compares an original and a converted file in a runtime with the original in ONNX Runtime.

    Args:
        name: Of the runtime; see `registry.RUNTIMES`.
        before: The original's file.
        after: The converted file.
        inputs: Example inputs, each a tuple in the order of the file's, or a dict by name; made up if there
            are none.
        seconds: That each run in the runtime may take.

    Raises:
        OptionError: If there is no such runtime, or it is not installed.
        DeconvfixError: If a file cannot be read, or the original does not run in ONNX Runtime.
    """
    prepared = _prepared(name, before, inputs, seconds)
    runtime, reference, start = prepared.runtime, prepared.reference, prepared.start
    notes = list(prepared.notes)
    onnx_file.read(after)  # its errors say what is wrong
    version, found = "", []
    for path in (before, after):
        fared, installed, said = _fared(path, start, reference, prepared.cases)
        found.append(fared)
        version = version or installed
        notes += said
    if found[0].status == found[1].status == "wrong" and _alike(start, before, after, reference):
        notes.append(_SAME_THERE)
    title = f"{runtime.title} {version}".rstrip()
    return RuntimeReport(title, found[0], found[1], tuple(dict.fromkeys(notes)))


def judge_in(
    name: str, original: Path, inputs: Sequence[Any] = (), seconds: float = 600.0
) -> Callable[[Path], Fared]:
    """Prepares to compare files, one after the other, in a runtime with one original in ONNX Runtime.

    Args:
        name: Of the runtime.
        original: The original's file.
        inputs: As for `prove_in`.
        seconds: That each run in the runtime may take.

    Returns:
        How a file fares there, the original itself or another one.

    Raises:
        OptionError, DeconvfixError: As `prove_in`.
    """
    prepared = _prepared(name, original, inputs, seconds)
    return lambda path: _fared(path, prepared.start, prepared.reference, prepared.cases)[0]


@dataclass(frozen=True)
class _Prepared:
    """What files are compared with, and on what."""

    runtime: Runtime
    reference: Pair
    cases: tuple[Case, ...]
    start: Callable[[Path], InRuntime]
    notes: tuple[str, ...]


def _prepared(name: str, original: Path, inputs: Sequence[Any], seconds: float) -> _Prepared:
    if os.name == "nt":
        raise OptionError(
            "runtime",
            "this is Windows",
            "runtimes run in processes that are started as on Linux and macOS",
            "Use WSL",
        )
    runtime = runtime_named(name)
    model = onnx_file.read(original).model
    reference = reference_of(model, inputs, original)
    cases, notes = tuple(reference.cases), list[str]()
    if not runtime.batches:
        first, *others = cases
        single = [case for case in others if _is_single(case)]
        if len(single) < len(others):
            notes.append(f"{runtime.title} takes one sample: inputs with more were left out.")
        cases = (first, *single)
    outputs = tuple(str(output.name) for output in model.graph.outputs)
    start = partial(InRuntime, RUNTIMES[name], outputs=outputs, seconds=seconds)
    return _Prepared(runtime, reference, cases, start, tuple(notes))


def _is_single(case: Case) -> bool:
    return all(array.shape[0] == 1 for array in case.inputs.values() if array.ndim)


def _fared(
    path: Path, start: Callable[[Path], InRuntime], reference: Pair, cases: tuple[Case, ...]
) -> tuple[Fared, str, tuple[str, ...]]:
    """How a file fares, the version of the runtime, and notes."""
    version = ""
    try:
        with start(path) as model:
            version = model.version
            found = compare_outputs(_InRuntime(reference, cases, model))
    except NotRunError as error:
        return Fared(str(path), error.status, str(error)), version, ()
    report = summarize([], found.comparisons, "float32", found.problems, found.notes)
    status, words = _judged(report, found)
    return (
        Fared(str(path), status, words, report.max_abs, report.max_error_ratio),
        version,
        report.notes,
    )


_SAME_THERE = (
    "Both files give the same there, up to rounding: the runtime departs, and not the conversion."
)


def _alike(start: Callable[[Path], InRuntime], before: Path, after: Path, reference: Pair) -> bool:
    """Whether two files that ran in a runtime give the same there, on the first inputs."""
    inputs = reference.cases[0].inputs
    outputs = []
    for path in (before, after):
        with start(path) as model:
            outputs.append(model.run(inputs))
    expected = reference.original(inputs, reference.modes[0])
    disturbed = reference.disturbed(inputs)
    if not len(outputs[0]) == len(outputs[1]) == len(expected):
        return False
    return all(
        compare_arrays("", "", two, one, RUNTIME_FACTOR * rounding).ok
        for one, two, rounding in zip(*outputs, _roundings(expected, disturbed), strict=True)
    )


def _roundings(expected: Sequence[Output], disturbed: Sequence[Sequence[Output]]) -> list[float]:
    """What rounding does to each output of the original."""
    return [
        rounding_of(output.value, [run[index].value for run in disturbed], output.eps, output.tiny)
        for index, output in enumerate(expected)
    ]


def _judged(report: ParityReport, found: OutputParity) -> tuple[str, str]:
    """Status and words of a file that ran."""
    departed = [comparison for comparison in report.comparisons if not comparison.ok]
    if departed:
        worst = departed[0]
        if worst.max_abs == math.inf:
            is_shape = " (shapes " in worst.inputs
            what = "another size" if is_shape else "values that are no finite numbers"
            return "wrong", f"{worst.what} has {what} on {worst.inputs}"
        return "wrong", (
            f"{worst.what} differs by {worst.max_abs:.3g} on {worst.inputs}, {worst.error_ratio:.3g} x the "
            f"rounding bound (limit {LIMIT:g})"
        )
    if report.ok:
        return "right", ""
    counted = any(problem == _OTHER_NUMBER for problem in found.problems)
    return "wrong" if counted else "unproven", " ".join(report.problems)


_OTHER_NUMBER = "It gives another number of outputs."


@dataclass(frozen=True)
class _InRuntime:
    """`parity.outputs.Pair` for a file in a runtime, and the original in ONNX Runtime."""

    reference: Pair
    cases: tuple[Case, ...]
    model: InRuntime
    modes: tuple[str, ...] = ("",)

    @property
    def rules(self) -> Rules:
        return replace(
            self.reference.rules, other_number=_OTHER_NUMBER, rounding_factor=RUNTIME_FACTOR
        )

    def original(self, inputs: Feed, mode: str) -> Sequence[Output]:
        return self.reference.original(inputs, self.reference.modes[0])

    def converted(self, inputs: Feed, mode: str) -> list[Output]:
        return [Output.of(array) for array in self.model.run(inputs)]

    def disturbed(self, inputs: Feed) -> Sequence[Sequence[Output]]:
        return self.reference.disturbed(inputs)

    def name(self, index: int) -> str:
        return self.reference.name(index)

    def does_not_run_on(self, cases: Sequence[str]) -> Sequence[str]:
        return self.reference.does_not_run_on(cases)
