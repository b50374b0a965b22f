"""What a model is trained on, and what it should give: its own outputs without their grid."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from deconvfix.fixing.runs import ALL_SHIFTS, Outputs, channelled, outputs_of, spun
from deconvfix.frontends.base import Frontend, Restores
from deconvfix.grid.periods import Period
from deconvfix.grid.tones import tone_table, without_locked, without_tones
from deconvfix.parity.progress import step_by_step
from deconvfix.plan import Match

__all__ = ["Goals"]

# Shifts of cycle spinning for an input, and other versions of it: a network that has seen few pictures keeps
# the grid on others. With 192 crops of twelve pictures a network of three layers left 1.5 steps of 3.1 on
# three more pictures, and 0.8 with two versions of each crop.
_SHIFTS, _VERSIONS = 16, 3
# To every so many batches to train on there is one of constants; for sounds one of silence.
_CONSTANTS_EVERY, _SILENCE_EVERY = 3, 4


@dataclass(frozen=True)
class Goals:
    """Inputs and goals of one model.

    Attributes:
        frontend: Of its kind.
        model: The original.
        matches: Its layers.
        periods: Of the grid, by the number of the output.
        fitted: The batches to fit to.
        silence: For sounds, what the model gets in silence; None for pictures.
        seed: Of the choice of shifts.
    """

    frontend: Frontend
    model: Any
    matches: Sequence[Match]
    periods: dict[int, Period]
    fitted: Sequence[Any]
    silence: Sequence[NDArray[Any]] | None
    seed: int

    def examples(self, affordable: float) -> tuple[list[Any], list[Outputs]]:
        """Inputs to train on, and versions of them, with what the model should give on each.

        Args:
            affordable: Runs of the original on a batch, all in all; what is given is always used.
        """
        frontend = self.frontend
        assert isinstance(frontend, Restores)
        runs = affordable / len(self.fitted)
        most = max(4, min(_SHIFTS, int(runs)))
        versions = max(0, min(_VERSIONS, int(runs / most) - 1))
        inputs = list(self.fitted)
        for version in range(versions):
            more = [
                frontend.varied(batch, self.seed + version * len(self.fitted) + i)
                for i, batch in enumerate(self.fitted)
            ]
            inputs += [batch for batch in more if batch is not None]
        targets = [
            self._spun(batch, most, self.seed + i) or self._ungridded(batch)
            for i, batch in enumerate(
                step_by_step("Running the original on shifted inputs", inputs)
            )
        ]
        # Constants too: what is left of a grid there is seen in every sky.
        for i, batch in enumerate(self.fitted[::_CONSTANTS_EVERY]):
            constant = frontend.constant_like(batch, self.seed + i)
            goal = self._spun(constant, ALL_SHIFTS, self.seed + i)
            if goal is not None:
                inputs.append(constant)
                targets.append(goal)
        if self.silence is not None:
            # What a network plays in silence is heard best.
            still = frontend.with_arrays(self.fitted[0], self.silence)
            quiet = [self._unlocked(i, y) for i, y in enumerate(self._outputs([still]))]
            count = len(self.fitted) // _SILENCE_EVERY + 1
            inputs += [still] * count
            targets += [quiet] * count
        return inputs, targets

    def _outputs(self, batches: Sequence[Any]) -> Outputs:
        return outputs_of(self.frontend, self.model, self.matches, batches)

    def _spun(self, batch: Any, most: int, seed: int) -> Outputs | None:
        given = self.frontend, self.model, self.matches, [batch], self.periods
        return spun(*given, most, seed)

    def _ungridded(self, batch: Any) -> Outputs:
        """The outputs less what is locked to the phase: the tones of a network are the same in all sounds."""
        found = []
        for i, values in enumerate(self._outputs([batch])):
            table = self._tones.get(i)
            if table is None:
                found.append(self._unlocked(i, values))
            else:
                [shown] = channelled([values], {0: self.periods[i]})
                left = without_tones(shown, table)
                found.append(left.reshape(values.shape).astype(values.dtype))
        return found

    def _unlocked(self, index: int, values: NDArray[Any]) -> NDArray[Any]:
        """An output less what is locked to the phase in itself; as it is where it has no grid."""
        if index not in self.periods:
            return values
        [shown] = channelled([values], {0: self.periods[index]})
        left = without_locked(shown, self.periods[index])
        return left.reshape(values.shape).astype(values.dtype)

    @functools.cached_property
    def _tones(self) -> dict[int, NDArray[Any] | None]:
        """One period of the tones of each output that is a sound, from all inputs to fit to."""
        sounds = {i: period for i, period in self.periods.items() if len(period) == 1}
        outputs = channelled(self._outputs(self.fitted), sounds) if sounds else []
        return {i: tone_table(outputs[i], period) for i, period in sounds.items()}
