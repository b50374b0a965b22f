"""Outputs without a grid to train towards, and inputs to have them on.

Where an input and an output correspond pixel by pixel the mean over all shifts of the input, shifted back
(cycle spinning; Coifman and Donoho 1995, "Translation-invariant de-noising"), has no grid: whatever is locked
to the phase averages out, and so do part of the errors.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from deconvfix.errors import DeconvfixError
from deconvfix.frontends.torch.inputs import (
    Inputs,
    as_inputs,
    flat_tensors,
    map_tensors,
    run_model,
)
from deconvfix.grid.periods import Period
from deconvfix.grid.spinning import spread_shifts

__all__ = ["constant_like", "cycle_spun", "varied"]

# How a picture is varied: contrast between these, brightness by so much of its range, blurred so often. Half
# of those with another contrast are negatives with exchanged channels: without any a network of three layers
# was 3 dB further away from its goal on pictures unlike its own.
_CONTRAST, _BRIGHTNESS, _BLURRED = (0.4, 1.4), 0.2, 0.4


def constant_like(inputs: Any, seed: int) -> Inputs:
    """Each sample everywhere as one of its pixels, drawn: a network makes a grid of it, and no more."""
    source = random.Random(seed)

    def constant(tensor: Tensor) -> Tensor:
        if tensor.dim() < 3 or not tensor.is_floating_point():
            return tensor
        pixels = [
            sample[(slice(None), *([source.randrange(size)] for size in sample.shape[1:]))]
            for sample in tensor
        ]
        ones = [1] * (tensor.dim() - 2)
        return torch.stack([p.reshape(-1, *ones) for p in pixels]).expand_as(tensor)

    result: Inputs = map_tensors(constant, as_inputs(inputs))
    return result


def varied(inputs: Any, seed: int) -> Inputs | None:
    """The same pictures in other ways: mirrored, turned, in other colours and contrasts, blurred.

    Args:
        inputs: One input, (N, C, H, W) with 1 or 3 channels; each sample is varied on its own.
        seed: Of all that is drawn.

    Returns:
        None for anything else.
    """
    given = as_inputs(inputs)
    tensors = flat_tensors(given)
    if len(tensors) != 1 or tensors[0].dim() != 4 or tensors[0].shape[1] not in (1, 3):
        return None
    if not tensors[0].is_floating_point():
        return None
    source = random.Random(seed)
    square = tensors[0].shape[2] == tensors[0].shape[3]
    low, high = float(tensors[0].min()), float(tensors[0].max())
    samples = []
    for picture in tensors[0].split(1):
        for axis in (2, 3):
            picture = picture.flip(axis) if source.random() < 0.5 else picture
        if square and source.random() < 0.5:
            picture = picture.transpose(2, 3)
        if source.random() < 0.5:
            channels = [*range(picture.shape[1])]
            strange = source.random() < 0.5
            if strange:
                picture = picture[:, source.sample(channels, len(channels))]
            mean = picture.mean((2, 3), keepdim=True)
            shift = mean.new_tensor([source.uniform(-1, 1) for _ in channels]).view(1, -1, 1, 1)
            moved = mean + _BRIGHTNESS * (high - low) * shift
            contrast = source.uniform(*_CONTRAST) * (-1 if strange else 1)
            picture = (moved + contrast * (picture - mean)).clamp(low, high)
        if source.random() < _BLURRED:
            reach = min(source.randint(1, 3), *(size - 1 for size in picture.shape[2:]))
            for _ in range(2):
                wide = functional.pad(picture, [reach] * 4, mode="reflect")
                picture = functional.avg_pool2d(wide, 2 * reach + 1, 1)
        samples.append(picture)
    return _with(given, torch.cat(samples))


@torch.no_grad()
def cycle_spun(
    model: nn.Module, inputs: Any, periods: Mapping[int, Period], most: int, seed: int
) -> list[NDArray[Any]] | None:
    """The mean of the outputs over shifts of the input, each shifted back, in the colours of the output.

    What comes in from beyond the border would move the mean of each channel.

    Args:
        model: The model, in eval mode.
        inputs: One input, (N, C, *spatial); what lies beside it is continued by reflection.
        periods: Of the grid, by the number of the output.
        most: How many shifts are taken; all, if there are no more.
        seed: Of their choice.

    Returns:
        None where an output is not as large as the input times a whole number below its period.
    """
    given = as_inputs(inputs)
    tensors = flat_tensors(given)
    if len(tensors) != 1 or not tensors[0].is_floating_point() or tensors[0].dim() < 3:
        return None
    x = tensors[0]
    sizes = x.shape[2:]
    try:
        outputs = flat_tensors(run_model(model, given))
        ratios = {index: _ratio(sizes, outputs[index], period) for index, period in periods.items()}
        if len(ratios) != len(outputs) or None in ratios.values():
            return None
        # Shifts of the input within the longest period of an output.
        shifts = [
            max(periods[i][axis] // (ratios[i] or 1) for i in periods) for axis in range(len(sizes))
        ]
        if max(shifts) < 2 or any(n >= size for n, size in zip(shifts, sizes, strict=True)):
            return None
        around = [amount for n in reversed(shifts) for amount in (n, n)]
        wide = functional.pad(x, around, mode="reflect")
        chosen = spread_shifts(shifts, most, seed)
        totals = [torch.zeros_like(output) for output in outputs]
        for shift in chosen:
            moved = wide
            for axis, (begin, n) in enumerate(zip(shift, shifts, strict=True), 2):
                moved = moved.narrow(axis, begin, sizes[axis - 2] + n)
            for i, output in enumerate(flat_tensors(run_model(model, _with(given, moved)))):
                back = output
                for axis, (begin, n) in enumerate(zip(shift, shifts, strict=True), 2):
                    ratio = ratios[i] or 1
                    back = back.narrow(axis, ratio * (n - begin), outputs[i].shape[axis])
                totals[i] += back
    except (DeconvfixError, RuntimeError):
        return None  # sizes that it does not take
    means = [total / len(chosen) for total in totals]
    axes = tuple(range(2, x.dim()))
    return [
        (mean + (output - mean).mean(axes, keepdim=True)).cpu().numpy()
        for mean, output in zip(means, outputs, strict=True)
    ]


def _with(given: Inputs, tensor: Tensor) -> Inputs:
    """The same call with another tensor."""
    args = tuple(tensor if isinstance(arg, Tensor) else arg for arg in given.args)
    kwargs = {k: tensor if isinstance(arg, Tensor) else arg for k, arg in given.kwargs.items()}
    return Inputs(args, kwargs)


def _ratio(sizes: Sequence[int], output: Tensor, period: Period) -> int | None:
    """How many output pixels an input pixel has, the same on all axes; None where they do not correspond."""
    if output.dim() != len(sizes) + 2:
        return None
    ratios = {have / size for have, size in zip(output.shape[2:], sizes, strict=True)}
    ratio = ratios.pop()
    if ratios or ratio != int(ratio) or ratio < 1 or any(n % int(ratio) for n in period):
        return None
    return int(ratio)
