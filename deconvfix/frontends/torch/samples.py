"""Calibration inputs: read, drawn from a distribution, and cut into samples."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deconvfix.errors import DeconvfixError, OptionError
from deconvfix.frontends.samples import DRAWN, check_distribution, nothing_to_fit_to
from deconvfix.frontends.torch.inputs import Inputs, as_inputs, flat_tensors, map_tensors, run_model
from deconvfix.frontends.torch.tuning.processes import rank, total

__all__ = ["calibration_inputs", "count_samples", "cut", "flat_inputs", "join", "split"]

# One sample in so many is held out.
_HELDOUT_EVERY = 4


def calibration_inputs(
    calibration: Iterable[Any] | str, example_inputs: Any | None, seed: int = 0
) -> tuple[list[Inputs], Iterator[Inputs] | None]:
    """The inputs to fit to.

    Args:
        calibration: An iterable of inputs, or "normal" (mean 0, variance 1) or "uniform" (0 to 1).
        example_inputs: Gives the shapes to draw; what is no floating-point tensor stays as it is.
        seed: Of what is drawn; each process draws its own.

    Returns:
        Batches, and for a distribution an endless supply of further ones.

    Raises:
        OptionError: If there are none.
    """
    if not isinstance(calibration, str):
        batches = [as_inputs(each) for each in calibration]
        if not batches:
            raise nothing_to_fit_to("it is empty")
        return batches, None
    check_distribution(calibration)
    if example_inputs is None:
        raise OptionError(
            "calibration",
            f"it is {calibration!r} and there are no example inputs",
            "example inputs give the shapes to draw",
            "Give `example_inputs`",
        )
    example = as_inputs(example_inputs)
    supply = _drawn(calibration, example, seed)
    return list(itertools.islice(supply, math.ceil(DRAWN / _batch_size(example)))), supply


def count_samples(calibration: Iterable[Any] | str, example_inputs: Any | None) -> int:
    """The samples in calibration inputs along the first axis, or those drawn of a distribution.

    Those of all processes together.

    Args:
        calibration: As for `calibration_inputs`; an iterable is read.
        example_inputs: Gives the number that is drawn at once.
    """
    if isinstance(calibration, str):
        size = _batch_size(as_inputs(example_inputs))
        count = torch.tensor(math.ceil(DRAWN / size) * size)
    else:
        count = torch.tensor(sum(_batch_size(as_inputs(each)) for each in calibration))
    total([count])
    return int(count)


def _batch_size(inputs: Inputs) -> int:
    return max(1, min((len(each) for each in flat_tensors(inputs) if each.dim()), default=1))


def _drawn(distribution: str, example: Inputs, seed: int) -> Iterator[Inputs]:
    generator = torch.Generator().manual_seed(seed + rank())
    draw = torch.randn if distribution == "normal" else torch.rand

    def drawn(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return draw(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)

    while True:
        yield map_tensors(drawn, example)


def flat_inputs(given: Iterable[Any] | str, example_inputs: Any | None) -> list[Inputs]:
    """Inputs that are constant.

    Args:
        given: An iterable of inputs, or "zeros": those of `example_inputs`, with zeros for numbers.
        example_inputs: As for `deconvfix.convert`.

    Raises:
        OptionError: If there are none.
    """
    if not isinstance(given, str):
        return [as_inputs(each) for each in given]
    if given != "zeros" or example_inputs is None:
        raise OptionError(
            "flat_inputs",
            f"the value is {given!r}"
            + ("" if given != "zeros" else " and there are no example inputs"),
            "an iterable of inputs is needed, or 'zeros' and example inputs of the same shapes",
            "Correct `flat_inputs`, or give example inputs",
        )
    zeros: Inputs = map_tensors(
        lambda tensor: torch.zeros_like(tensor) if tensor.is_floating_point() else tensor,
        as_inputs(example_inputs),
    )
    return [zeros]


def cut(model: nn.Module, batches: Sequence[Inputs]) -> tuple[list[Inputs], bool]:
    """Single samples along the first axis, where the model treats them independently.

    Whether it does is tried out: the first half of a batch must give the first half of the outputs.

    Returns:
        The samples and True, or the batches as they are and False.
    """
    sizes = [{len(each) if each.dim() else 0 for each in flat_tensors(batch)} for batch in batches]
    if any(len(size) != 1 or 0 in size for size in sizes):
        return list(batches), False
    samples = [
        _sample(batch, i)
        for batch, size in zip(batches, sizes, strict=True)
        for i in range(max(size))
    ]
    probe = max(join(samples[:8]), key=lambda each: len(flat_tensors(each)[0]))
    half = len(flat_tensors(probe)[0]) // 2
    if half == 0:
        return list(batches), False
    try:
        whole = flat_tensors(run_model(model, probe))
        part = flat_tensors(run_model(model, map_tensors(lambda tensor: tensor[:half], probe)))
    except DeconvfixError:
        return list(batches), False
    for one, other in zip(part, whole, strict=True):
        if one.dim() == 0 or len(one) != half or one.shape[1:] != other.shape[1:]:
            return list(batches), False
        if not torch.allclose(one, other[:half], rtol=1e-3, atol=1e-3 * float(other.abs().max())):
            return list(batches), False
    return samples, True


def _sample(batch: Inputs, index: int) -> Inputs:
    sample: Inputs = map_tensors(lambda tensor: tensor[index : index + 1], batch)
    return sample


def split(samples: Sequence[Inputs]) -> tuple[list[Inputs], list[Inputs]]:
    """Samples to fit to, and samples held out; the same ones where there are too few."""
    heldout = list(samples[_HELDOUT_EVERY - 1 :: _HELDOUT_EVERY])
    if not heldout:
        return list(samples), list(samples)
    fitted = [each for i, each in enumerate(samples) if i % _HELDOUT_EVERY != _HELDOUT_EVERY - 1]
    return fitted, heldout


def join(samples: Sequence[Inputs]) -> list[Inputs]:
    """Batches of those samples that have the same shapes; samples of their own kind stay alone."""
    groups: dict[tuple[Any, ...], list[Inputs]] = {}
    for each in samples:
        shapes = tuple((tuple(t.shape), t.dtype) for t in flat_tensors(each))
        groups.setdefault(shapes, []).append(each)
    return [_concatenated(group) for group in groups.values()]


def _concatenated(group: Sequence[Inputs]) -> Inputs:
    leaves, structures = zip(*(pytree.tree_flatten(each) for each in group), strict=True)
    joined = [
        torch.cat(column) if isinstance(column[0], Tensor) else column[0]
        for column in zip(*leaves, strict=True)
    ]
    result: Inputs = pytree.tree_unflatten(joined, structures[0])
    return result
