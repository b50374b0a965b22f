"""A descent with a budget, whose best state on held-out samples counts.

Kernels, as matrices (features, outputs), take steps of Muon, which have the same size in all directions
(Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): channels of a trained network are far from
independent. All else is Adam's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deconvfix.fit.tuning import Progress, Tuning
from deconvfix.frontends.torch.inputs import Inputs
from deconvfix.frontends.torch.tuning.processes import average, total
from deconvfix.frontends.torch.tuning.resume import Position, Resume

__all__ = ["SHORTEST_SIDE", "Best", "Descent"]

# Muon makes the steps in all directions of a matrix equal, and a few outputs have no more than a few. With
# such kernels left to Adam two networks ended 0.4 and 0.7 dB closer to the original.
SHORTEST_SIDE = 8

_WARM_UP = 0.05
# Muon's learning rate over Adam's, and its momentum. On two networks 0.95 ended 0.4 and 2 dB further away
# from the original in the same steps, and one rate for both 3 dB on one of them.
_MUON_RATE = 0.5
_MUON_MOMENTUM = 0.9
# Evaluations on the held-out samples in a run; fewer where they would take over a tenth of the time.
_EVALUATIONS = 40
_SHARE_OF_TIME = 0.1
_PAUSE = 1 / _EVALUATIONS
# In its second half a run ends after so many that were not better than its others.
_PATIENCE = 10
# The learning rate that is tried first, the share of the budget that a trial gets, and the most trials.
_FIRST_RATE = 3e-3
_TRIAL = 0.05
_TRIALS = 6


class _Optimizer:
    """Muon for some parameters, Adam for the others, with one state; torch before 2.9 has Adam alone.

    Args:
        parameters: All of them.
        matrices: How many are matrices, the first ones.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], matrices: int) -> None:
        if not hasattr(torch.optim, "Muon"):
            matrices = 0
        self.matrices = matrices
        self.parts: dict[int, torch.optim.Optimizer] = {}
        if matrices:
            self.parts[0] = torch.optim.Muon(
                parameters[:matrices],
                momentum=_MUON_MOMENTUM,
                # Decay would pull Z w to zero, and away from the original.
                weight_decay=0.0,
                # Steps as large as Adam's, so that its rate can be a fixed share of Adam's.
                adjust_lr_fn="match_rms_adamw",
            )
        if matrices < len(parameters):
            self.parts[matrices] = torch.optim.Adam(parameters[matrices:])

    def states(self) -> dict[int, dict[str, Any]]:
        """The states by the number of the parameter, as those of one optimizer."""
        return {
            first + i: state
            for first, part in self.parts.items()
            for i, state in part.state_dict()["state"].items()
        }

    def load_state(self, states: dict[int, dict[str, Tensor]]) -> None:
        """Takes over what `states` gave."""
        for first, part in self.parts.items():
            # Numbers of the whole descent become those of the part, which count from zero.
            end = self.matrices if first < self.matrices else math.inf
            own = {i - first: state for i, state in states.items() if first <= i < end}
            groups = part.state_dict()["param_groups"]
            part.load_state_dict({"state": own, "param_groups": groups})

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of Adam, and Muon's, whose steps are scaled to be as large as Adam's."""
        for first, part in self.parts.items():
            part.param_groups[0]["lr"] = rate * (_MUON_RATE if first < self.matrices else 1.0)

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for part in self.parts.values():
            part.zero_grad()

    def step(self) -> None:
        """A step of both."""
        for part in self.parts.values():
            part.step()


def _next_rate(tried: Sequence[tuple[float, float]]) -> tuple[float, bool]:
    """The learning rate that comes next, and whether it is a trial.

    Each trial is a whole schedule in short. The rate goes up, or down, in steps of two until the gain, of
    the logarithm of the loss, gets smaller: a start that is close to its goal wants lower rates.

    Args:
        tried: Rates and gains so far.
    """
    if not tried:
        return _FIRST_RATE, True
    best, _ = max(tried, key=lambda trial: trial[1])
    for rate in (2 * best, best / 2):
        if len(tried) < _TRIALS and all(rate != other for other, _ in tried):
            return rate, True
    return best, False


@dataclass(frozen=True)
class Best:
    """A state, its loss on the held-out samples, and the steps to it; `rate` is the learning rate."""

    loss: float
    state: list[Tensor]
    steps: int
    rate: float


@dataclass(frozen=True)
class Descent:
    """What is minimised.

    Attributes:
        parameters: Changed in place.
        matrices: How many of them, the first ones, are matrices that Muon moves.
        batches: An endless supply of what `loss` takes.
        loss: The loss of a batch, a scalar.
        heldout_loss: The loss that counts; the same on all processes.
        tuning: Budget, learning rate, progress.
        resume: The file that it writes where it is to, and goes on from.
    """

    parameters: Sequence[nn.Parameter]
    matrices: int
    batches: Iterator[Sequence[Inputs]]
    loss: Callable[[Sequence[Inputs]], Tensor]
    heldout_loss: Callable[[], float]
    tuning: Tuning
    resume: Resume | None = None

    def run(self) -> tuple[float, Best]:
        """The loss at the start, and the best state, which the parameters have in the end."""
        # The fingerprint is taken before `load` moves the parameters.
        start = self._state()
        fingerprint = "" if self.resume is None else self.resume.fingerprint(start)
        saved = None if self.resume is None else self.resume.load(fingerprint, self.parameters)
        states: dict[int, dict[str, Tensor]] | None = None
        if saved is None:
            first = self.heldout_loss()
            at = Position(first=first, best_loss=first, pause=_PAUSE)
            best = start
        else:
            at, best, states = saved
            # A resumed run sees the batches that an uninterrupted one would see.
            for _ in range(at.batches):
                next(self.batches)
        # Trials of learning rates first, then the run with the best of them.
        while True:
            rate, trying = _next_rate(at.tried)
            if self.tuning.learning_rate is not None:
                rate, trying = self.tuning.learning_rate, False
            # Trials begin at one point, so that their gains compare.
            if states is None:
                self._restore(start if trying else best)
            share = _TRIAL if trying else 1 - at.used
            best, last = self._descend(rate, at, best, share, states, fingerprint)
            if not trying:
                break
            states = None
            # A trial that diverged has no gain, and its rate is not chosen.
            gain = math.log(at.first / last) if 0 < last < math.inf else -math.inf
            at.tried.append((rate, gain))
            at.used += share
            # The next trial or run counts from zero. What is best so far stays.
            at.step, at.spent, at.last, at.pause = 0, 0.0, 0.0, _PAUSE
            at.lowest, at.worse = math.inf, 0
            at.steps_before = at.best_steps
        self._restore(best)
        return at.first, Best(at.best_loss, best, at.best_steps, at.best_rate)

    def _descend(
        self,
        rate: float,
        at: Position,
        best: list[Tensor],
        share: float,
        states: dict[int, dict[str, Tensor]] | None,
        fingerprint: str,
    ) -> tuple[list[Tensor], float]:
        """Steps whose size falls to nothing over a share of the budget: the best state, and the last loss.

        `at` moves along. With the state of an optimizer, `states`, a run goes on right after an evaluation.
        """
        seconds = self.tuning.seconds * share
        steps = None if self.tuning.steps is None else max(1, round(self.tuning.steps * share))
        optimizer = _Optimizer(self.parameters, self.matrices)
        if states:
            optimizer.load_state(states)
        evaluated = states is not None
        # Seconds that an interrupted run has spent count towards its budget.
        started = time.monotonic() - at.spent
        while True:
            # The mean over the processes: all of them must stop at the same step.
            [at.spent] = average(time.monotonic() - started)
            fraction = at.spent / seconds if steps is None else at.step / steps
            # Before a step, so that the run ends with an evaluation of its last state.
            if fraction >= min(at.last + at.pause, 1.0) and not evaluated:
                loss, at.last = self.heldout_loss(), fraction
                if steps is None:
                    [took] = average(time.monotonic() - started - at.spent)
                    # Slow evaluations are made less often.
                    at.pause = max(_PAUSE, took / seconds / _SHARE_OF_TIME)
                at.worse = 0 if loss < at.lowest else at.worse + 1
                at.lowest = min(at.lowest, loss)
                if loss < at.best_loss:
                    best, at.best_loss = self._state(), loss
                    at.best_steps, at.best_rate = at.steps_before + at.step, rate
                if self.tuning.progress is not None:
                    used = at.used + share * min(fraction, 1.0)
                    self.tuning.progress(Progress(at.step, min(used, 1.0), loss, at.best_loss))
                if fraction >= 1 or (fraction > 0.5 and at.worse >= _PATIENCE):
                    return best, loss
                if self.resume is not None:
                    self.resume.save(fingerprint, at, self.parameters, best, optimizer.states())
            evaluated = False
            # A short warm-up, then a straight line to zero: the last steps settle.
            optimizer.set_rate(rate * min(1.0, fraction / _WARM_UP + 0.02) * (1 - fraction))
            optimizer.zero_grad()
            self.loss(next(self.batches)).backward()
            # All processes start alike and take the same steps: the sum of their gradients is enough,
            # for neither Muon nor Adam sees its scale.
            total(parameter.grad for parameter in self.parameters if parameter.grad is not None)
            optimizer.step()
            at.step, at.batches = at.step + 1, at.batches + 1

    def _state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def _restore(self, state: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, state, strict=True):
            parameter.copy_(value)
