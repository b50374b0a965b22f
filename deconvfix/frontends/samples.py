"""Calibration inputs, whatever kind of model takes them: distributions, batches, checks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.errors import OptionError

__all__ = [
    "DISTRIBUTIONS",
    "DRAWN",
    "check_distribution",
    "in_batches_of",
    "nothing_to_fit_to",
]


DISTRIBUTIONS = ("normal", "uniform")


# Samples that are drawn from a distribution for a closed form.
DRAWN = 256


def in_batches_of(
    size: int, batches: Iterable[Mapping[str, NDArray[Any]]]
) -> Iterator[dict[str, NDArray[Any]]]:
    """The samples of named arrays in batches of another size; a rest, or another shape, starts anew."""
    waiting: list[dict[str, NDArray[Any]]] = []
    for batch in batches:
        for i in range(min((len(each) for each in batch.values() if each.ndim), default=0)):
            sample = {name: each[i : i + 1] if each.ndim else each for name, each in batch.items()}
            if waiting and any(sample[n].shape != x.shape for n, x in waiting[0].items()):
                waiting = []
            waiting.append(sample)
            if len(waiting) == size:
                yield {
                    name: np.concatenate([each[name] for each in waiting]) if x.ndim else x
                    for name, x in sample.items()
                }
                waiting = []


def nothing_to_fit_to(found: str) -> OptionError:
    """The error for calibration inputs that are none."""
    return OptionError(
        "calibration",
        found,
        "init 'calibrated' and 'tuned' fit the layers to what the original computes on inputs",
        "Give some inputs as the model takes them, 64 or more, or 'normal' for latents",
    )


def check_distribution(name: str) -> None:
    """Checks the name of a distribution: "normal" (mean 0, variance 1) or "uniform" (0 to 1).

    Raises:
        OptionError: If there is none of that name.
    """
    if name not in DISTRIBUTIONS:
        raise OptionError(
            "calibration",
            f"the value is {name!r}",
            f"one of {', '.join(map(repr, DISTRIBUTIONS))}, or an iterable of inputs, is needed",
            "Correct `calibration`",
        )
