"""Adam with a budget, whose best state on held-out samples counts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deconvfix.fit.tuning import Progress, Tuning
from deconvfix.frontends.torch_inputs import Inputs
from deconvfix.frontends.torch_processes import average, total

__all__ = ["Best", "Descent"]

_WARM_UP = 0.05
# Evaluations on the held-out samples in a run; fewer where they would take over a tenth of the time.
_EVALUATIONS = 40
_SHARE_OF_TIME = 0.1
# In the second half, where the learning rate falls, a run ends after so many without a new best.
_PATIENCE = 10
# Learning rates that are tried, and the share of the budget that a trial gets. A calibrated start can be
# so close that a rate which is right for training from scratch destroys more than it mends.
_RATES = (3e-3, 1e-3, 3e-4, 1e-4)
_TRIAL = 0.05


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
        batches: An endless supply of what `loss` takes.
        loss: The loss of a batch, a scalar.
        heldout_loss: The loss that counts; the same on all processes.
        tuning: Budget, learning rate, progress.
    """

    parameters: Sequence[nn.Parameter]
    batches: Iterator[Sequence[Inputs]]
    loss: Callable[[Sequence[Inputs]], Tensor]
    heldout_loss: Callable[[], float]
    tuning: Tuning

    def run(self) -> tuple[float, Best]:
        """The loss at the start, and the best state, which the parameters have in the end.

        Without a learning rate in `tuning` each rate has a trial, a whole schedule in short. Low rates win
        short trials and lose long runs, so the highest one is taken that gets half as far as the best,
        in the logarithm of the loss.
        """
        first = self.heldout_loss()
        start = best = Best(first, self._state(), 0, _RATES[-1])
        rate, used = self.tuning.learning_rate, 0.0
        if rate is None:
            gains = {}
            for each in _RATES:
                self._restore(start)
                best, last = self._adam(each, best, used, _TRIAL)
                gains[each] = math.log(first / last) if 0 < last < math.inf else -math.inf
                used += _TRIAL
            enough = max(gains.values()) / 2
            rate = next((each for each in _RATES if gains[each] >= enough > 0), _RATES[-1])
        self._restore(best)
        best, _ = self._adam(rate, best, used, 1 - used)
        self._restore(best)
        return first, best

    def _adam(self, rate: float, best: Best, done: float, share: float) -> tuple[Best, float]:
        """Adam with half a cosine over a share of the budget: what `best` becomes, and the last loss."""
        seconds = self.tuning.seconds * share
        steps = None if self.tuning.steps is None else max(1, round(self.tuning.steps * share))
        optimizer = torch.optim.Adam(self.parameters, lr=rate)
        before = best.steps
        step, worse, last, pause = 0, 0, 0.0, 1 / _EVALUATIONS
        started = time.monotonic()
        while True:
            [spent] = average(time.monotonic() - started)
            fraction = spent / seconds if steps is None else step / steps
            if fraction >= min(last + pause, 1.0):
                loss, last = self.heldout_loss(), fraction
                if steps is None:
                    [took] = average(time.monotonic() - started - spent)
                    pause = max(1 / _EVALUATIONS, took / seconds / _SHARE_OF_TIME)
                worse += 1
                if loss < best.loss:
                    best, worse = Best(loss, self._state(), before + step, rate), 0
                if self.tuning.progress is not None:
                    used = done + share * min(fraction, 1.0)
                    self.tuning.progress(Progress(step, min(used, 1.0), loss, best.loss))
                if fraction >= 1 or (fraction > 0.5 and worse >= _PATIENCE):
                    return best, loss
            factor = min(1.0, fraction / _WARM_UP + 0.02) * (1 + math.cos(math.pi * fraction)) / 2
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad()
            self.loss(next(self.batches)).backward()
            # All processes start alike and take the same steps: the sum of their gradients is enough,
            # for Adam does not see its scale.
            total(each.grad for each in self.parameters if each.grad is not None)
            optimizer.step()
            step += 1

    def _state(self) -> list[Tensor]:
        return [each.detach().clone() for each in self.parameters]

    @torch.no_grad()
    def _restore(self, best: Best) -> None:
        for parameter, value in zip(self.parameters, best.state, strict=True):
            parameter.copy_(value)
