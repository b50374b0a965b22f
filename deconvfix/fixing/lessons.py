"""What a model is trained on to lose its grid: inputs and versions of them, with the outputs to give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deconvfix.fixing.runs import ALL_SHIFTS, Outputs
from deconvfix.frontends.base import Restores
from deconvfix.grid.periods import Period

__all__ = ["lessons"]

# Shifts of cycle spinning for an input, and other versions of it: a network that has seen few pictures keeps
# the grid on others. Of 144 crops of twelve pictures and a network of three layers, measured on three more
# pictures, it left 1.5 steps of 3.1 without versions and 0.8 with two.
_SHIFTS, _VERSIONS = 16, 3
# To every so many batches to train on there is one of constants.
_CONSTANTS_EVERY = 3


def lessons(
    frontend: Restores,
    model: Any,
    batches: Sequence[Any],
    periods: dict[int, Period],
    affordable: float,
    ungridded: Callable[[Any], Outputs],
    seed: int,
) -> tuple[list[Any], list[Outputs]]:
    """Inputs and targets.

    Args:
        frontend: Of the model's kind.
        model: The original.
        batches: Inputs, one to a batch.
        periods: Of the grid, by the number of the output.
        affordable: Runs of the original on a batch, all in all; what is given is always used.
        ungridded: The target where cycle spinning is not possible.
        seed: Of all that is drawn.
    """
    runs = affordable / len(batches)
    most = max(4, min(_SHIFTS, int(runs)))
    versions = max(0, min(_VERSIONS, int(runs / most) - 1))

    def goal(inputs: Any, number: int) -> Outputs:
        found = frontend.cycle_spun(model, inputs, periods, most, seed + number)
        return found or ungridded(inputs)

    inputs = list(batches)
    for version in range(versions):
        more = [
            frontend.varied(batch, seed + version * len(batches) + i)
            for i, batch in enumerate(batches)
        ]
        inputs += [batch for batch in more if batch is not None]
    targets = [goal(batch, i) for i, batch in enumerate(inputs)]
    # Constants too: what is left of a grid there is seen in every sky.
    for i, batch in enumerate(batches[::_CONSTANTS_EVERY]):
        constant = frontend.constant_like(batch, seed + i)
        flat = frontend.cycle_spun(model, constant, periods, ALL_SHIFTS, seed + i)
        if flat is not None:
            inputs.append(constant)
            targets.append(flat)
    return inputs, targets
