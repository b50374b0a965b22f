"""What a distillation may use: budget, seed and loss. Data only; `frontends.torch_tune` carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

from deconvfix.errors import OptionError

__all__ = ["TUNED_FROM_WEIGHTS", "Progress", "Tuning"]

# Forms whose distillation starts from the fit to the weights. A notch changes so little that the layers
# still understand each other's features; regressions, each on its own, disturb that. On three networks the
# same number of steps ended 0, 1.0 and 1.4 dB closer to the original than from calibrated layers.
TUNED_FROM_WEIGHTS = ("notch",)


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
    """Options of `init="tuned"`.

    Attributes:
        seconds: Budget in seconds, where `steps` is None.
        steps: Budget in steps. With it, the result depends on the seed and the inputs alone.
        seed: Of the order of the inputs.
        learning_rate: Of Adam, the highest one, and Muon's is in proportion; it rises over the first
            twentieth of the budget and falls to zero. None: a fifth of the budget goes into trying some.
        batch_size: Samples in a step, where the inputs can be cut along their first axis. None: 8, and of
            a distribution up to 64, as many as have a million values in their outputs together.
        train_all: Let all parameters follow, not only those of the converted layers.
        loss: `loss(new_output, old_output)`, a scalar tensor. None: the mean squared error of all
            floating-point outputs.
        progress: Called after each evaluation on the held-out inputs.
        resume: A .safetensors file. Where it is, is written there at each evaluation, and the same
            conversion goes on from it: after an interruption, or with a larger budget.

    Raises:
        OptionError: If a number is out of range.
    """

    seconds: float = 60.0
    steps: int | None = None
    seed: int = 0
    learning_rate: float | None = None
    batch_size: int | None = None
    train_all: bool = False
    loss: Callable[[Any, Any], Any] | None = None
    progress: Callable[[Progress], None] | None = None
    resume: str | PathLike[str] | None = None

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
