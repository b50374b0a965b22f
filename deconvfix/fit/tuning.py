"""What a distillation may use: budget, seed and loss. Data only; `frontends.torch.tuning` carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

from deconvfix.core.options import option
from deconvfix.errors import OptionError

__all__ = ["Progress", "Tuning"]


@dataclass(frozen=True)
class Progress:
    """How far a distillation is.

    Attributes:
        step: Steps done in this run or trial.
        fraction: Share of the budget that is used up.
        loss: On the held-out calibration inputs, at present.
        best: The smallest so far.
    """

    step: int
    fraction: float
    loss: float
    best: float


@dataclass(frozen=True)
class Tuning:
    """What a distillation may use (`init="tuned"`), declared as options.

    Raises:
        OptionError: If a number is out of range.
    """

    seconds: float = option(60.0, "Time budget of --init tuned, in seconds.")
    steps: int | None = option(
        None,
        "Budget in steps instead of seconds.",
        more="The result then depends on the seed and the inputs alone.",
    )
    seed: int = option(0, "Seed of the order of the inputs.")
    learning_rate: float | None = option(
        None,
        "Peak learning rate of Adam; Muon's is in proportion. It rises over the first twentieth of the "
        "budget and falls to zero. Default: a fifth of the budget is spent on trying several.",
    )
    batch_size: int | None = option(
        None,
        "Samples in a step, where the inputs can be cut along their first axis. Default: 8; for a "
        "distribution up to 64, as many as have a million output values together.",
    )
    train_all: bool = option(
        False, "Let --init tuned train all weights, not only those of the converted layers."
    )
    loss: Callable[[Any, Any], Any] | None = option(
        None,
        "`loss(new_output, old_output)`, a scalar tensor. Default: the mean squared error of all "
        "floating-point outputs.",
    )
    progress: Callable[[Progress], None] | None = option(
        None, "Called after each evaluation on the held-out inputs."
    )
    resume: str | PathLike[str] | None = option(
        None,
        "Checkpoint of the distillation itself (.safetensors): progress is saved there at each evaluation, "
        "and the same conversion resumes from it.",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        for name in ("seconds", "steps", "learning_rate", "batch_size"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(
                    f"tuning.{name}",
                    f"the value is {value!r}",
                    "a number above 0 is needed",
                    f"Correct `{name}`",
                )
