"""Inputs of torch models: given or drawn, constant, and cut into samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deconvfix.errors import DeconvfixError, OptionError
from deconvfix.fit.regression import HELDOUT_EVERY
from deconvfix.frontends.torch.inputs import Inputs, as_inputs, flat_tensors, map_tensors, run_model
from deconvfix.frontends.torch.tuning.processes import rank, total

__all__ = ["TorchSamples", "cut", "endless", "flat_inputs", "join", "split", "with_arrays"]


def with_arrays(inputs: Any, arrays: Iterable[NDArray[Any]]) -> Inputs:
    """The same call with other values, of any size, one for each of its tensors."""
    values = iter(arrays)

    def other(tensor: Tensor) -> Tensor:
        return torch.from_numpy(np.array(next(values))).to(tensor.device, tensor.dtype)

    result: Inputs = map_tensors(other, as_inputs(inputs))
    return result


@dataclass(frozen=True)
class TorchSamples:
    """Inputs of torch modules and programs; see `frontends.samples.Samples`.

    Attributes:
        example_inputs: Gives the shapes to draw.
        seed: Of what is drawn; each process draws its own.
    """

    example_inputs: Any | None
    seed: int = 0

    def given(self, item: Any) -> Inputs:
        """Arguments and keyword arguments; a bare tensor is a tuple of one."""
        return as_inputs(item)

    def example(self, distribution: str) -> Inputs:
        """The example inputs."""
        if self.example_inputs is None:
            raise OptionError(
                "calibration",
                f"it is {distribution!r} and there are no example inputs",
                "example inputs give the shapes to draw",
                "Give `example_inputs`",
            )
        return as_inputs(self.example_inputs)

    def supply(self, example: Inputs, distribution: str) -> Iterator[Inputs]:
        """Drawn in float64, in the dtypes and on the devices of the example."""
        # On the CPU, so that the numbers do not depend on the device.
        generator = torch.Generator().manual_seed(self.seed + rank())
        draw = torch.randn if distribution == "normal" else torch.rand

        def drawn(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            return draw(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)

        # Endless: tuning takes a fresh batch for each step.
        while True:
            yield map_tensors(drawn, example)

    def size(self, inputs: Inputs) -> int:
        """Along the first axis of its tensors, the fewest."""
        lengths = (len(tensor) for tensor in flat_tensors(inputs) if tensor.dim())
        return max(1, min(lengths, default=1))

    def total(self, count: int) -> int:
        """Over the processes of torch.distributed."""
        counted = torch.tensor(count)
        total([counted])
        return int(counted)


def flat_inputs(given: Iterable[Any] | str, example_inputs: Any | None) -> list[Inputs]:
    """Inputs that are constant.

    Args:
        given: An iterable of inputs, or "zeros": those of `example_inputs`, with zeros for numbers.
        example_inputs: As for `deconvfix.convert`.

    Raises:
        OptionError: If there are none.
    """
    if not isinstance(given, str):
        return [as_inputs(item) for item in given]
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
    sizes = [
        {len(tensor) if tensor.dim() else 0 for tensor in flat_tensors(batch)} for batch in batches
    ]
    # Tensors of different lengths, or without axes, have no common axis of samples.
    if any(len(size) != 1 or 0 in size for size in sizes):
        return list(batches), False
    samples = [
        _sample(batch, i)
        for batch, size in zip(batches, sizes, strict=True)
        for i in range(max(size))
    ]
    # The largest group of samples that have the same shapes, from the first eight.
    probe = max(join(samples[:8]), key=lambda batch: len(flat_tensors(batch)[0]))
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
        # Batches of other sizes may take other kernels, so more than one rounding may differ.
        if not torch.allclose(one, other[:half], rtol=1e-3, atol=1e-3 * float(other.abs().max())):
            return list(batches), False
    return samples, True


def _sample(batch: Inputs, index: int) -> Inputs:
    sample: Inputs = map_tensors(lambda tensor: tensor[index : index + 1], batch)
    return sample


def split(
    samples: Sequence[Inputs], every: int = HELDOUT_EVERY
) -> tuple[list[Inputs], list[Inputs]]:
    """Samples to fit to, and one of so many held out; the same ones where there are too few."""
    # At regular places, so that an ordered series is held out evenly.
    heldout = list(samples[every - 1 :: every])
    if not heldout:
        return list(samples), list(samples)
    fitted = [sample for i, sample in enumerate(samples) if i % every != every - 1]
    return fitted, heldout


def join(samples: Sequence[Inputs]) -> list[Inputs]:
    """Batches of those samples that have the same shapes; samples of their own kind stay alone."""
    groups: dict[tuple[Any, ...], list[Inputs]] = {}
    for sample in samples:
        # torch.cat needs equal shapes, and would promote different dtypes.
        shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in flat_tensors(sample))
        groups.setdefault(shapes, []).append(sample)
    return [_concatenated(group) for group in groups.values()]


def _concatenated(group: Sequence[Inputs]) -> Inputs:
    leaves, structures = zip(*(pytree.tree_flatten(sample) for sample in group), strict=True)
    joined = [
        torch.cat(column) if isinstance(column[0], Tensor) else column[0]
        for column in zip(*leaves, strict=True)
    ]
    result: Inputs = pytree.tree_unflatten(joined, structures[0])
    return result


def endless(samples: Sequence[Inputs], size: int, seed: int) -> Iterator[Sequence[Inputs]]:
    """Batches of samples in a new random order for each round; a rest smaller than a batch is left."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(samples), generator=generator).tolist()
        for begin in range(0, len(samples) - size + 1, size):
            yield [samples[i] for i in order[begin : begin + size]]
