"""Two models compared end to end, by their outputs; the same for every kind of model.

Original and converted model run on the same cases. How far rounding may move an output is measured on the
original: it runs again with its numbers disturbed by about one rounding. What a comparison is worth is
looked at too: an original that is not repeatable says nothing, and neither do outputs that are constant.

A kind of model gives the verbs of `Pair`, and says in `Rules` where it differs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deconvfix.errors import DeconvfixError, RuntimeCrashError
from deconvfix.parity.bounds import (
    Comparison,
    compare_arrays,
    equal_arrays,
    is_inexact,
    rounding_of,
    varies_array,
)
from deconvfix.parity.progress import step_by_step

__all__ = ["Case", "Output", "OutputParity", "Pair", "Patience", "Rules", "compare_outputs"]


@dataclass(frozen=True, eq=False)
class Output:
    """One output of a run.

    Attributes:
        value: Its values. Floats that NumPy does not have are held in a wider dtype.
        eps: Distance of 1 from the next number of the output's own dtype; 0 for integers.
        tiny: Smallest normal number of that dtype; 0 for integers.
    """

    value: NDArray[Any]
    eps: float = 0.0
    tiny: float = 0.0

    @classmethod
    def of(cls, value: NDArray[Any]) -> Output:
        """An output in a dtype that NumPy has."""
        if not is_inexact(value):
            return cls(value)
        info = np.finfo(value.dtype)
        return cls(value, float(info.eps), float(info.tiny))


@dataclass(frozen=True)
class Case:
    """Inputs to compare on.

    Attributes:
        words: What they are, for the report: "example inputs", "zeros".
        inputs: As the kind of model takes them.
        given: Whether the user gave them. Others are left out where runs are slow.
        expected: The original's outputs in the first mode, where it has run on them before.
    """

    words: str
    inputs: Any
    given: bool = False
    expected: Sequence[Output] | None = None


@dataclass(frozen=True)
class Patience:
    """When a model is too slow for cases that the user did not give.

    Attributes:
        first_run: Most seconds for the original's first run.
        per_case: Most seconds for all cases together, divided by their number.
        frugal: Whether each run is known to be dear. Then made-up cases are left out, and the original runs
            again, disturbed and as it is, only where outputs differ by more than one rounding of their size.
        note: A sentence for the report; `{count}` stands for the number of cases left out.
    """

    first_run: float = math.inf
    per_case: float = math.inf
    frugal: bool = False
    note: str = ""


@dataclass(frozen=True)
class Rules:
    """How one kind of model is compared where the kinds differ.

    Attributes:
        constant: The problem that floating-point outputs are constant on all cases, as a sentence.
        other_number: The problem that there are `{actual}` outputs and not `{expected}`.
        not_repeatable: A note for originals whose outputs differ when they run again; None if the
            original is not run again.
        flipped: A note for an integer output, `{output}`, that differs on `{case}` as rounding makes it
            differ in the original; None to say nothing.
        rounding_factor: What one rounding explains, in units of the largest departure that was seen.
        quantised: Whether integers of one byte may be quantised values, which rounding moves by steps.
        patience: When cases are left out.
    """

    constant: str
    other_number: str
    not_repeatable: str | None = None
    flipped: str | None = None
    rounding_factor: float = 1.0
    quantised: bool = False
    patience: Patience = field(default_factory=Patience)


class Pair(Protocol):
    """An original and its converted model, ready to run."""

    @property
    def rules(self) -> Rules:
        """Where this kind of model differs."""
        ...

    @property
    def modes(self) -> tuple[str, ...]:
        """The ways to run a model, in the report's words; ("",) if there is one."""
        ...

    @property
    def cases(self) -> Sequence[Case]:
        """What to compare on. The original must run on the first one."""
        ...

    def original(self, inputs: Any, mode: str) -> Sequence[Output]:
        """The original's outputs; raises a DeconvfixError if it does not run on these inputs."""
        ...

    def converted(self, inputs: Any, mode: str) -> Sequence[Output]:
        """The converted model's outputs."""
        ...

    def disturbed(self, inputs: Any) -> Sequence[Sequence[Output]]:
        """The original's outputs in the first mode, from some runs with numbers moved by one rounding."""
        ...

    def name(self, index: int) -> str:
        """An output's name in the report."""
        ...

    def does_not_run_on(self, cases: Sequence[str]) -> Sequence[str]:
        """Notes that the original does not run on these cases, which are at least one."""
        ...


@dataclass(frozen=True)
class OutputParity:
    """What a comparison of outputs found.

    Attributes:
        comparisons: One for each output, case and mode.
        problems: Sentences: what failed beside these.
        notes: Sentences: what limits the evidence.
        cases: The cases on which both models ran.
    """

    comparisons: tuple[Comparison, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cases: tuple[Case, ...] = ()


@dataclass(frozen=True)
class _CaseParity:
    """What one case showed.

    Attributes:
        comparisons: One for each output and mode.
        problems: As in `OutputParity`.
        notes: As in `OutputParity`.
        evidence: Of the outputs that have values: whether they are floating-point, and whether they are
            more than the one constant that the first case gave.
    """

    comparisons: tuple[Comparison, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    evidence: frozenset[tuple[bool, bool]]


@dataclass(frozen=True)
class _Runs:
    """What the two models gave on one case in one mode.

    Attributes:
        where: The case and the mode, in words.
        actual: The converted model's outputs.
        expected: The original's.
        departures: The original's under disturbances of the size of one rounding.
    """

    where: str
    actual: Sequence[Output]
    expected: Sequence[Output]
    departures: Sequence[Sequence[Output]]


def compare_outputs(pair: Pair) -> OutputParity:
    """Runs both models on the pair's cases and compares what comes out.

    Raises:
        DeconvfixError: If the original does not run on the first case, or the converted model not on one
            on which the original does.
    """
    rules, cases = pair.rules, pair.cases
    frugal = rules.patience.frugal
    compared: list[Case] = []
    results: list[_CaseParity] = []
    notes: list[str] = []
    does_not_run: list[str] = []
    first: Sequence[Output] = ()
    started, first_run = time.monotonic(), 0.0
    for number, case in enumerate(step_by_step("Running both models", cases)):
        # What the user gave is worth any time, what is made up is not.
        elapsed = time.monotonic() - started
        slow = frugal or first_run > rules.patience.first_run
        slow = slow or elapsed > rules.patience.per_case * len(cases)
        if slow and number > 0 and not case.given:
            notes.append(rules.patience.note.format(count=len(cases) - number))
            break
        # The original decides whether there is anything to compare, so it runs first, and twice.
        try:
            known = case.expected
            reference = pair.original(case.inputs, pair.modes[0]) if known is None else known
        except RuntimeCrashError:
            raise  # nothing more can be run
        except DeconvfixError:
            if number == 0:
                raise
            does_not_run.append(case.words)
            continue
        if number == 0:
            first, first_run = reference, time.monotonic() - started
        if rules.not_repeatable is not None and not frugal:
            again = pair.original(case.inputs, pair.modes[0])
            if not _same(reference, again):
                return OutputParity(notes=(rules.not_repeatable,))
        found = _compare_case(pair, case, reference, first)
        # Where every run is dear, the question is asked only if the answer matters.
        if rules.not_repeatable is not None and frugal and not _agrees(found.comparisons):
            again = pair.original(case.inputs, pair.modes[0])
            if not _same(reference, again):
                return OutputParity(notes=(rules.not_repeatable,))
        compared.append(case)
        results.append(found)
        if results[-1].problems:
            break
    if does_not_run:
        notes += pair.does_not_run_on(does_not_run)
    weighed = _weighed(results, rules)
    return replace(weighed, notes=(*notes, *weighed.notes), cases=tuple(compared))


def _agrees(comparisons: Sequence[Comparison | None]) -> bool:
    return all(comparison is None or comparison.ok for comparison in comparisons)


def _compare_case(
    pair: Pair, case: Case, reference: Sequence[Output], first: Sequence[Output]
) -> _CaseParity:
    """One case in all modes.

    Args:
        pair: The models.
        case: On what they run.
        reference: The original's outputs in the first mode.
        first: The same on the first case, to see whether outputs depend on the inputs.
    """
    rules = pair.rules
    comparisons: list[Comparison] = []
    problems: list[str] = []
    notes: list[str] = []
    for runs in _runs(pair, case, reference):
        if len(runs.actual) != len(runs.expected):
            numbers = {"actual": len(runs.actual), "expected": len(runs.expected)}
            problems.append(rules.other_number.format(**numbers))
            break
        found = _compared(pair, runs)
        if rules.patience.frugal and not _agrees(found):
            disturbed = [*runs.departures, *pair.disturbed(case.inputs)]
            found = _compared(pair, replace(runs, departures=disturbed))
        for index, comparison in enumerate(found):
            if comparison is not None:
                comparisons.append(comparison)
            elif rules.flipped is not None:
                words = {"output": repr(pair.name(index)), "case": case.words}
                notes.append(rules.flipped.format(**words))
    # By dtype and by whether it says anything: `_weighed` asks for one floating-point output that varies.
    evidence = frozenset(
        (is_inexact(output.value), varies_array(output.value, elsewhere.value))
        for output, elsewhere in zip(reference, first, strict=False)
        if output.value.size
    )
    return _CaseParity(tuple(comparisons), tuple(problems), tuple(notes), evidence)


def _weighed(results: Sequence[_CaseParity], rules: Rules) -> OutputParity:
    """All cases together, and whether they are evidence.

    Floating-point outputs must vary, in themselves or from case to case. Integers need not: a label map may
    well be one label on all inputs, and then the layers, compared one by one, are the evidence.
    """
    comparisons = [comparison for result in results for comparison in result.comparisons]
    problems = [problem for result in results for problem in result.problems]
    notes = [note for result in results for note in result.notes]
    evidence = {fact for result in results for fact in result.evidence}
    if not evidence:
        # Empty outputs agree whatever the models compute.
        comparisons = [comparison for comparison in comparisons if not comparison.ok]
        if results:
            notes.append("The outputs are empty: there is nothing to compare end to end.")
    elif not comparisons:
        pass  # `summarize` says so, if the layers were not compared either
    elif (True, False) in evidence and (True, True) not in evidence:
        problems.append(rules.constant)
    elif evidence == {(False, False)}:
        notes.append(
            "The outputs are integers and constant on all inputs, which is little evidence."
        )
    return OutputParity(tuple(comparisons), tuple(problems), tuple(notes))


def _runs(pair: Pair, case: Case, reference: Sequence[Output]) -> Iterator[_Runs]:
    """The runs of one case in all modes, the first of which gave `reference`.

    The original in the first mode is one more disturbed run for the others: the modes of a runtime round
    differently.
    """
    first_mode, *other_modes = pair.modes
    actual = pair.converted(case.inputs, first_mode)
    disturbed = [] if pair.rules.patience.frugal else pair.disturbed(case.inputs)
    yield _Runs(_where(case, first_mode), actual, reference, disturbed)
    for mode in other_modes:
        expected = pair.original(case.inputs, mode)
        actual = pair.converted(case.inputs, mode)
        yield _Runs(_where(case, mode), actual, expected, [*disturbed, reference])


def _compared(pair: Pair, runs: _Runs) -> list[Comparison | None]:
    """Every output; see `_compare`."""
    return [
        _compare(pair.name(index), index, runs, pair.rules) for index in range(len(runs.expected))
    ]


def _where(case: Case, mode: str) -> str:
    return f"{case.words}, {mode}" if mode else case.words


def _same(one: Sequence[Output], other: Sequence[Output]) -> bool:
    return len(one) == len(other) and all(
        equal_arrays(a.value, b.value) for a, b in zip(one, other, strict=True)
    )


def _compare(name: str, index: int, runs: _Runs, rules: Rules) -> Comparison | None:
    """One output; None for integers that differ from the original's, but that rounding flips there too."""
    output = runs.expected[index]
    actual, expected = runs.actual[index].value, output.value
    departures = [
        outputs[index].value for outputs in runs.departures if len(outputs) == len(runs.expected)
    ]
    if is_inexact(expected):
        rounding = rounding_of(expected, departures, output.eps, output.tiny)
        return compare_arrays(name, runs.where, actual, expected, rules.rounding_factor * rounding)
    # An index or a decision: no size of a difference is a small one, so they are equal or not.
    # Where rounding alone changes an integer of the original, a difference there proves nothing.
    stable = all(equal_arrays(expected, departure) for departure in departures)
    if stable or equal_arrays(actual, expected):
        return compare_arrays(name, runs.where, actual, expected, 0.0)
    quantised = rules.quantised and expected.dtype.kind in "iu" and expected.dtype.itemsize == 1
    if quantised and actual.shape == expected.shape:
        # Rounding moves some of the values, by so many steps.
        wide = expected.astype(np.int64)
        moved = (np.abs(departure.astype(np.int64) - wide).max() for departure in departures)
        steps = max(1, *map(int, moved))
        return compare_arrays(
            name, runs.where, actual.astype(np.float64), expected.astype(np.float64), steps
        )
    return None
