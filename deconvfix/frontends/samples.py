"""Calibration inputs, whatever kind of model takes them: given, or drawn from a distribution.

A kind of model says with `Samples` how one input is made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from deconvfix.errors import OptionError

__all__ = [
    "DISTRIBUTIONS",
    "Samples",
    "calibration_inputs",
    "count_samples",
    "in_batches_of",
    "nothing_to_fit_to",
    "without_heldout",
]

DISTRIBUTIONS = ("normal", "uniform")
# Samples that are drawn from a distribution for a closed form.
_DRAWN = 256
# One in so many of the given batches is held out, but not more than so many; of so many samples at least.
_HELDOUT_EVERY, _MOST_HELDOUT, _FEWEST_TO_HOLD_OUT = 8, 8, 64
Inputs = TypeVar("Inputs")


class Samples(Protocol[Inputs]):
    """How one kind of model gets its inputs."""

    def given(self, item: Any) -> Inputs:
        """An input that the user gives, as the model takes it."""
        ...

    def example(self, distribution: str) -> Inputs:
        """An input of the shapes to draw.

        Raises:
            OptionError: If nothing says the shapes.
        """
        ...

    def supply(self, example: Inputs, distribution: str) -> Iterator[Inputs]:
        """Drawn inputs of the shapes of an example, without an end; "normal" has mean 0 and variance 1,
        "uniform" goes from 0 to 1. What is not a floating-point array stays as it is."""
        ...

    def size(self, inputs: Inputs) -> int:
        """How many samples an input has along its first axis, at least 1."""
        ...

    def total(self, count: int) -> int:
        """A number of samples, summed over all processes that share them."""
        ...


def calibration_inputs(
    samples: Samples[Inputs], calibration: Iterable[Any] | str
) -> tuple[list[Inputs], Iterator[Inputs] | None]:
    """The inputs to fit to.

    Args:
        samples: How an input is made.
        calibration: An iterable of inputs, or the name of a distribution.

    Returns:
        Batches, and for a distribution an endless supply of further ones.

    Raises:
        OptionError: If there are none, or there is no such distribution.
    """
    if not isinstance(calibration, str):
        batches = [samples.given(item) for item in calibration]
        if not batches:
            raise nothing_to_fit_to("it is empty")
        return batches, None
    _check_distribution(calibration)
    example = samples.example(calibration)
    supply = samples.supply(example, calibration)
    # Enough batches for the samples of a closed form. A distillation goes on with further ones.
    count = math.ceil(_DRAWN / samples.size(example))
    return list(itertools.islice(supply, count)), supply


def count_samples(samples: Samples[Inputs], calibration: Iterable[Any] | str) -> int:
    """How many samples `calibration_inputs` gives, in all processes together.

    Args:
        samples: How an input is made.
        calibration: An iterable of inputs, which is read, or the name of a distribution.
    """
    if isinstance(calibration, str):
        size = samples.size(samples.example(calibration))
        return samples.total(math.ceil(_DRAWN / size) * size)
    return samples.total(sum(samples.size(samples.given(item)) for item in calibration))


def in_batches_of(
    size: int, batches: Iterable[Mapping[str, NDArray[Any]]]
) -> Iterator[dict[str, NDArray[Any]]]:
    """The samples of named arrays in batches of another size.

    Samples that do not fill a batch are left out, and so are those before a change of shape.

    >>> arrays = {"x": np.zeros((5, 3, 8, 8))}
    >>> [batch["x"].shape for batch in in_batches_of(2, [arrays])]
    [(2, 3, 8, 8), (2, 3, 8, 8)]
    """
    waiting: list[dict[str, NDArray[Any]]] = []
    for batch in batches:
        for i in range(min((len(array) for array in batch.values() if array.ndim), default=0)):
            sample = {
                name: array[i : i + 1] if array.ndim else array for name, array in batch.items()
            }
            # A batch needs one shape. What waits is too few to fill one.
            if waiting and any(sample[name].shape != x.shape for name, x in waiting[0].items()):
                waiting = []
            waiting.append(sample)
            if len(waiting) == size:
                yield {
                    name: np.concatenate([one[name] for one in waiting]) if array.ndim else array
                    for name, array in sample.items()
                }
                waiting = []


def without_heldout(batches: Sequence[Inputs], count: int) -> tuple[list[Inputs], list[Inputs]]:
    """Batches to fit to, and those to measure on: every eighth, but not more than eight in all.

    Args:
        batches: Of this process.
        count: Samples of all processes; of fewer than 64 none is held out.

    >>> fitted, heldout = without_heldout(range(17), 68)
    >>> heldout, len(fitted)
    ([7, 15], 15)
    >>> without_heldout(range(17), 63)[1]
    []
    """
    if count < _FEWEST_TO_HOLD_OUT:
        return list(batches), []
    every = max(_HELDOUT_EVERY, math.ceil(len(batches) / _MOST_HELDOUT))
    fitted = [batch for i, batch in enumerate(batches) if i % every != every - 1]
    return fitted, list(batches[every - 1 :: every])


def nothing_to_fit_to(found: str) -> OptionError:
    """The error for calibration inputs that are none."""
    return OptionError(
        "calibration",
        found,
        "init 'calibrated' and 'tuned' fit the layers to what the original computes on inputs",
        "Give some inputs as the model takes them, 64 or more, or 'normal' for latents",
    )


def _check_distribution(name: str) -> None:
    if name not in DISTRIBUTIONS:
        raise OptionError(
            "calibration",
            f"the value is {name!r}",
            f"one of {', '.join(map(repr, DISTRIBUTIONS))}, or an iterable of inputs, is needed",
            "Correct `calibration`",
        )
