"""Comparing results of torch models: tensors, and the inputs to compare on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deconvfix.artifacts import LOWEST_DB, decibels
from deconvfix.frontends.torch_inputs import (
    Inputs,
    as_inputs,
    copy_model,
    flat_tensors,
    map_tensors,
    run_model,
)
from deconvfix.parity import LIMIT, Comparison

__all__ = [
    "compare_tensors",
    "equal",
    "input_variants",
    "psnr_db",
    "rounding_scale",
    "varies",
]


def compare_tensors(
    what: str, inputs: str, got: Tensor, want: Tensor, rounding: Tensor | float
) -> Comparison:
    """Compares two results.

    Args:
        rounding: The difference that one rounding explains, for each element or for all.
    """
    if got.shape != want.shape:
        return Comparison(
            what,
            f"{inputs} (shapes {tuple(got.shape)}, {tuple(want.shape)})",
            math.inf,
            math.inf,
            False,
        )
    if got.numel() == 0:
        return Comparison(what, inputs, 0.0, 0.0, True)
    if not (want.is_floating_point() or want.is_complex()):
        unequal = float((got != want).sum())
        return Comparison(what, inputs, unequal, math.inf if unequal else 0.0, unequal == 0)
    same = (got == want) | (got.isnan() & want.isnan())
    difference = torch.where(same, torch.zeros_like(want.abs()), (got - want).abs())
    difference = difference.to(torch.float64)
    if isinstance(rounding, Tensor):
        rounding = rounding.to(torch.float64)
    ratio = torch.where(same, torch.zeros_like(difference), difference / rounding)
    worst = math.inf if bool(difference.isnan().any()) else float(difference.max())
    worst_ratio = math.inf if bool(ratio.isnan().any()) else float(ratio.max())
    return Comparison(what, inputs, worst, worst_ratio, worst_ratio <= LIMIT)


def rounding_scale(value: Tensor, moved: Sequence[Tensor]) -> float:
    """How far rounding moves an output: the largest departure seen, at least one eps of its size."""
    finite = value[value.isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    floor = torch.finfo(value.dtype).eps * size
    departures = [(each - value).abs() for each in moved if each.shape == value.shape]
    largest = [float(each[each.isfinite()].max()) for each in departures if each.isfinite().any()]
    return max([floor, torch.finfo(value.dtype).tiny, *largest])


def psnr_db(before: nn.Module, after: nn.Module, example_inputs: object) -> float | None:
    """Peak signal-to-noise ratio of two models' outputs, in dB.

    The peak is the range of the original's outputs. 300 dB stand for equal outputs; None means that
    there is no floating-point output to compare.
    """
    inputs = as_inputs(example_inputs)
    pairs = [
        (old.double(), new.double())
        for old, new in zip(
            flat_tensors(run_model(copy_model(before), inputs)),
            flat_tensors(run_model(copy_model(after), inputs)),
            strict=True,
        )
        if old.is_floating_point() and old.shape == new.shape and old.numel()
    ]
    if not pairs:
        return None
    peak = max(float(old.max() - old.min()) for old, _ in pairs)
    count = sum(old.numel() for old, _ in pairs)
    error = math.sqrt(sum(float(((old - new) ** 2).sum()) for old, new in pairs) / count)
    return decibels(peak / error) if error else -LOWEST_DB


def input_variants(example: Inputs) -> list[tuple[str, Inputs]]:
    """The example, and floating-point inputs of its shapes: seeded noise, a constant, zeros."""
    generator = torch.Generator().manual_seed(1)

    def noise(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return drawn.to(tensor)

    def constant(tensor: Tensor) -> Tensor:
        return torch.full_like(tensor, 0.5) if tensor.is_floating_point() else tensor

    def zeros(tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor) if tensor.is_floating_point() else tensor

    return [
        ("example inputs", example),
        ("seeded noise", map_tensors(noise, example)),
        ("a constant", map_tensors(constant, example)),
        ("zeros", map_tensors(zeros, example)),
    ]


def equal(one: Tensor, other: Tensor) -> bool:
    """Equality where NaN equals NaN."""
    if one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def varies(value: Tensor, other: Tensor | None) -> bool:
    """Whether a floating-point result is more than one constant.

    Args:
        value: The result.
        other: The result on other inputs, if there is one.
    """
    if value.numel() == 0 or not value.is_floating_point():
        return False
    first = value.flatten()[:1]
    if not equal(first.expand(value.numel()), value.flatten()):
        return True
    return other is not None and other.numel() > 0 and not equal(first, other.flatten()[:1])
