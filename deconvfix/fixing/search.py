"""Candidates in the order of promise, measured on held-out inputs; the best that makes nothing worse."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from deconvfix.conversion import convert
from deconvfix.errors import DeconvfixError
from deconvfix.fixing.goals import Goals
from deconvfix.fixing.judge import is_seen, objections
from deconvfix.fixing.measure import Reference
from deconvfix.fixing.refits import UNTRAINED, refitted
from deconvfix.fixing.report import Candidate, FixReport, GridChange, Measured
from deconvfix.fixing.runs import (
    ALL_SHIFTS,
    Outputs,
    channelled,
    flat_fields,
    joined,
    outputs_of,
    periods_of,
    silence_of,
    spun,
)
from deconvfix.frontends.base import Frontend, Refits, Restoration, Restores
from deconvfix.frontends.shuffled import ShowsShuffles
from deconvfix.grid.periods import Period
from deconvfix.grid.tones import without_locked
from deconvfix.plan import Match, Plan

__all__ = ["HELDOUT_EVERY", "Search"]

# Every so many batches one is held out.
HELDOUT_EVERY = 4
# A candidate that leaves so little of the grid, and so small a part of it, leaves nothing to be seen.
_ENOUGH, _QUARTER = 0.15, 0.25
# The same for tones, in thousandths of the programme.
_ENOUGH_HEARD = 0.5
# Of weights that leave tones below -60 dB and a signal-to-noise ratio above 40 dB.
_RATE_FOR_SOUND = 3e-5
# Larger kernels, and other candidates after the first good one, must be better by so much.
_LITTLE = 0.05
# Shifts of cycle spinning for each input to fit to in closed form.
_SOME_SHIFTS = 16
# Of the time, for the goal: on the held-out inputs, and on those to train on.
_GOAL_SHARE, _LESSONS_SHARE = 0.15, 0.25
# Of the time that is left, for the first training: one in two parts of the same time ended half a decibel
# further away from its goal. The second, if something is left to be seen, has most of the rest.
_FIRST, _SECOND = 0.85, 0.8


@dataclass
class Search:
    """The candidates of one model.

    Attributes:
        frontend: Of its kind.
        model: The original.
        matches: Its layers.
        periods: Of the grid, by the number of the output.
        fitted: The batches to fit to.
        heldout: The batches to measure on.
        reference: What the original gives on these, and what it should give.
        original: The original, measured.
        goal: What it should give, in words.
        seed: Of all that is drawn.
        until: When the time is over.
        max_cost: The most operations, relative to the original's.
        batch_seconds: Of one run of the original.
        silence: For sounds, what the model gets where the original is quietest; None for pictures.
        tried: The candidates so far.
        notes: What could not be tried, and what limits the evidence.
        outputs: Those of the best one, on the held-out batches.
    """

    frontend: Frontend
    model: Any
    matches: Sequence[Match]
    periods: dict[int, Period]
    fitted: list[Any]
    heldout: list[Any]
    reference: Reference
    original: Measured
    goal: str
    seed: int
    until: float
    max_cost: float
    batch_seconds: float
    silence: list[NDArray[Any]] | None = None
    tried: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    outputs: Outputs | None = None

    @classmethod
    def start(
        cls,
        frontend: Frontend,
        model: Any,
        batches: Sequence[Any],
        targets: Sequence[NDArray[Any]] | None,
        seed: int,
        seconds: float,
        max_cost: float,
    ) -> Search | FixReport:
        """Measures the original; a report where no grid is seen."""
        until = time.monotonic() + seconds
        heldout = list(batches[HELDOUT_EVERY - 1 :: HELDOUT_EVERY])
        fitted = [
            batch for i, batch in enumerate(batches) if i % HELDOUT_EVERY != HELDOUT_EVERY - 1
        ]
        matches = frontend.find(model, heldout[0]).matches
        periods = periods_of(frontend, model, matches, heldout[0])
        truth = None
        if targets is not None:
            truth = joined(list(targets[HELDOUT_EVERY - 1 :: HELDOUT_EVERY]))
            [truth] = channelled([truth], periods)
        started = time.monotonic()
        original = outputs_of(frontend, model, matches, heldout, periods)
        batch_seconds = (time.monotonic() - started) / len(heldout)
        # Each shift is a run: the goal may take a part of the time, not all of it.
        most = _within(ALL_SHIFTS, seconds * _GOAL_SHARE / (batch_seconds * len(heldout)))
        goals = spun(frontend, model, matches, heldout, periods, most, seed)
        goal, notes = "the mean over all shifts of the input", []
        if goals is not None and most < max(map(math.prod, periods.values())):
            notes.append(
                f"The mean over shifts is over {most} of them at most, drawn at random: there are more, or a "
                "run takes long."
            )
        if goals is None:
            goal = "the original's outputs less what is locked to the phase"
            goals = [
                without_locked(values, periods[i]) if i in periods else values
                for i, values in enumerate(original)
            ]
        reference = Reference(original, goals, periods, truth)
        silence = None
        sounds = [i for i, period in periods.items() if len(period) == 1]
        if sounds:
            silence = silence_of(frontend, model, matches, heldout, sounds[0], periods[sounds[0]])
        flat = flat_fields(frontend, model, matches, heldout[0], periods, silence)
        measured = reference.measure(original, flat) if periods else None
        if measured is None:
            nothing = Measured(0.0, 0.0, 0.0, None, 0.0)
            what = "no output has enough patches for a grid to be seen"
            return _nothing(nothing, len(original[0]) if original else 0, goal, what)
        if not is_seen(original, periods, measured):
            what = "no visible grid" if measured.tones is None else "no tones that are heard"
            return _nothing(measured, len(original[0]), goal, what)
        return cls(
            frontend, model, matches, periods, fitted, heldout, reference, measured, goal, seed, until,
            max_cost, batch_seconds, silence, notes=notes,
        )  # fmt: skip

    def run(self) -> tuple[Candidate, Any, Plan] | None:
        """Tries candidates until the time is over; the best."""
        best: tuple[Candidate, Any, Plan] | None = None
        for name, model, plan, keeps in self._candidates():
            candidate, outputs = self._judged(name, model, keeps)
            self.tried.append(candidate)
            if candidate.objections or candidate.measured is None:
                continue
            if best is None or self._is_better(candidate, best[0]):
                best, self.outputs = (candidate, model, plan), outputs
        return best

    def _leaves_nothing(self, candidate: Candidate) -> bool:
        """Whether what is left of the grid is not seen, and little of what it was."""
        enough = _ENOUGH if self.original.tones is None else _ENOUGH_HEARD
        return not candidate.objections and _seen(candidate) <= min(
            enough, _QUARTER * self.original.seen
        )

    def _is_better(self, candidate: Candidate, best: Candidate) -> bool:
        """The grid first; of two that leave nothing of it the one that is closer to the goal."""
        assert candidate.measured is not None
        assert best.measured is not None
        less = _seen(best) - _seen(candidate)
        if self._leaves_nothing(candidate) and self._leaves_nothing(best):
            return candidate.measured.match_db > best.measured.match_db
        return not self._leaves_nothing(best) and less > (
            _LITTLE if candidate.cost > best.cost else 0
        )

    def _candidates(self) -> Iterator[tuple[str, Any, Plan, bool]]:
        """What may help, the most promising first: name, model, plan, whether names and shapes stay."""
        if isinstance(self.frontend, Restores):
            try:
                yield from self._restored(self.frontend)
            except DeconvfixError as error:
                self.notes.append(f"The model's own layers were not trained: {error.found}.")
        if isinstance(self.frontend, Refits):
            yield from self._refitted(self.frontend)
            return
        if any(map(self._leaves_nothing, self.tried)) or time.monotonic() >= self.until:
            return
        for name in _CLOSED:
            try:
                made = convert(
                    self.model,
                    to="equalized",
                    init="calibrated",
                    calibration=self.fitted,
                    verify=False,
                    seed=self.seed,
                )
            except DeconvfixError:
                continue
            if made.plan.changed:
                yield name, made.model, made.plan, True

    def _restored(self, frontend: Restores) -> Iterator[tuple[str, Any, Plan, bool]]:
        """The model's own layers, trained; then with larger kernels, as far as the cost allows."""
        goals = Goals(
            self.frontend,
            self.model,
            self.matches,
            self.periods,
            self.fitted,
            self.silence,
            self.seed,
        )
        budget = self.until - time.monotonic()
        inputs, targets = goals.examples(budget * _LESSONS_SHARE / self.batch_seconds)
        left = self.until - time.monotonic()
        if left < budget / 2:
            self.notes.append(
                f"Running the original on the data left {max(1.0, left):.0f} s for training. More time "
                "(`seconds`), or fewer data, would give training more."
            )
        # The goal takes a part of the time, and so does the measurement of each candidate.
        task = Restoration(inputs, targets, self.periods, max(1.0, left * _FIRST), self.seed)
        if self.silence is not None:
            task = replace(task, rate=_RATE_FOR_SOUND)
        model = frontend.restore(self.model, task)
        yield "its own layers, trained", model, Plan("keep", ()), True
        if not frontend.can_grow or self._leaves_nothing(self.tried[-1]):
            return
        grow, plan = self._affordable(frontend)
        left = self.until - time.monotonic()
        if not grow or left <= 1:
            return
        grown = frontend.restore(model, replace(task, seconds=left * _SECOND, grow=grow))
        yield f"{len(grow)} of its layers with larger kernels, trained", grown, plan, False

    def _refitted(self, frontend: Refits) -> Iterator[tuple[str, Any, Plan, bool]]:
        """Layers fitted in closed form: fewer of them, and more gently, where that made something worse."""
        self.notes.append(UNTRAINED)
        left = self.until - time.monotonic()
        runs = left * _GOAL_SHARE / (self.batch_seconds * len(self.fitted))
        most = _within(_SOME_SHIFTS, runs)
        model, back = self.model, None
        if isinstance(frontend, ShowsShuffles):
            model, _ = frontend.with_transposed(model, self.fitted[0])
            back = frontend.with_shuffled
        fits = frontend.refitter(model, self.fitted, most, self.seed)
        for name, made, *rest in refitted(fits, self.original, self.tried, self.notes, self.until):
            yield name, made if back is None else back(made), *rest

    def _affordable(self, frontend: Restores) -> tuple[tuple[str, ...], Plan]:
        """Layers whose kernels may grow, the last ones first, within the cost; and the recipe."""
        chosen: tuple[str, ...] = ()
        plan = Plan("keep", ())
        for match in reversed(self.matches):
            if match.spec is None or match.obstacle is not None or match.lacks:
                continue
            if max(match.spec.stride) < 2:
                continue
            more = (match.name, *chosen)
            try:
                grown = convert(
                    self.model, to="equalized", init="fit", grow=1, include=more, verify=False
                )
            except DeconvfixError:
                continue
            if self._cost(grown.model) <= self.max_cost:
                chosen, plan = more, grown.plan
        return chosen, plan

    @functools.cached_property
    def _original_cost(self) -> float:
        assert isinstance(self.frontend, Restores)
        return self.frontend.cost(self.model, self.heldout[0])

    def _cost(self, model: Any) -> float:
        """Operations of a run, relative to the original's; closed forms here have as many."""
        if not isinstance(self.frontend, Restores):
            return 1.0
        return self.frontend.cost(model, self.heldout[0]) / self._original_cost

    def _judged(self, name: str, model: Any, keeps: bool) -> tuple[Candidate, Outputs]:
        """A candidate, measured, with what speaks against it, and its outputs."""
        try:
            outputs = outputs_of(self.frontend, model, self.matches, self.heldout, self.periods)
        except DeconvfixError as error:
            return Candidate(name, None, 1.0, keeps, (f"it does not run ({error.found})",)), []
        flat = flat_fields(
            self.frontend, model, self.matches, self.heldout[0], self.periods, self.silence
        )
        measured = self.reference.measure(outputs, flat)
        if measured is None:
            return Candidate(name, None, 1.0, keeps, ("its outputs are not finite",)), []
        cost = self._cost(model)
        candidate = Candidate(
            name,
            measured,
            cost,
            keeps,
            tuple(
                objections(
                    self.original,
                    measured,
                    cost,
                    self.max_cost,
                    trained=isinstance(self.frontend, Restores),
                )
            ),
        )
        return candidate, outputs

    def report(self, taken: Candidate | None) -> FixReport:
        """What was found and done."""
        after = self.original if taken is None or taken.measured is None else taken.measured
        before = self.original
        if taken is None:
            measured = [c for c in self.tried if c.measured is not None]
            closest = min(measured, key=_seen, default=None)
            reason = (
                "Nothing was changed: no candidate takes the grid away and makes nothing worse."
            )
            if closest is not None:
                assert closest.measured is not None
                reason += (
                    f" The closest, {closest.name}, has {closest.measured.grid_in_words()} instead of "
                    f"{before.grid_in_words()}, but {'; '.join(closest.objections)}."
                )
        else:
            same = (
                "the weights load into unchanged code"
                if taken.keeps_names
                else "kernels have grown"
            )
            reason = f"Fixed: {taken.name}; {_fell(before, after)}, at x{taken.cost:.2f} operations; {same}."
        return FixReport(
            fixed=taken is not None,
            reason=reason,
            nothing_to_fix=False,
            grid=GridChange(before.seen, before.worst, after.seen, after.worst),
            match_db=after.match_db,
            colour_shift=after.colour_shift,
            cost=1.0 if taken is None else taken.cost,
            original=before,
            candidates=tuple(self.tried),
            heldout=len(self.reference.original[0]),
            goal=self.goal,
            notes=tuple(self.notes),
            pictures=() if self.outputs is None else self.reference.regions(self.outputs),
        )


# Closed forms, for models that cannot be trained here.
_CLOSED: tuple[str, ...] = ("equalized weights, calibrated",)


def _fell(before: Measured, after: Measured) -> str:
    """What became of the grid."""
    if before.tones is not None:
        return f"{before.grid_in_words()}, before; {after.grid_in_words()}, after"
    return (
        f"the visible grid fell from {before.seen:.2f} to {max(after.seen, 0.0):.2f} steps of 255 (worst "
        f"patches {before.worst:.2f} to {max(after.worst, 0.0):.2f})"
    )


def _within(most: int, affordable: float) -> int:
    """A number of shifts: fewer than four average nothing out."""
    return max(4, min(most, int(affordable)))


def _seen(candidate: Candidate) -> float:
    assert candidate.measured is not None
    return candidate.measured.seen


def _nothing(measured: Measured, heldout: int, goal: str, what: str) -> FixReport:
    return FixReport(
        fixed=False,
        reason=f"{what[0].upper()}{what[1:]}: nothing to fix.",
        nothing_to_fix=True,
        grid=GridChange(measured.seen, measured.worst, measured.seen, measured.worst),
        match_db=measured.match_db,
        colour_shift=0.0,
        cost=1.0,
        original=measured,
        candidates=(),
        heldout=heldout,
        goal=goal,
    )
