"""Comparing results of torch models: tensors as arrays, and the inputs to compare on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deconvfix.frontends.torch.inputs import (
    Inputs,
    as_inputs,
    copy_model,
    flat_tensors,
    map_tensors,
    run_model,
)
from deconvfix.parity.bounds import Comparison, compare_arrays, equal_arrays, psnr
from deconvfix.parity.outputs import Output

__all__ = [
    "as_outputs",
    "compare_tensors",
    "equal",
    "input_variants",
    "psnr_db",
    "psnr_on",
]


def compare_tensors(
    what: str, inputs: str, actual: Tensor, expected: Tensor, rounding: Tensor | float
) -> Comparison:
    """`parity.bounds.compare_arrays` for tensors of any dtype and device."""
    bound = _array(rounding) if isinstance(rounding, Tensor) else rounding
    return compare_arrays(what, inputs, _array(actual), _array(expected), bound)


def as_outputs(tensors: Sequence[Tensor]) -> list[Output]:
    """Tensors for `parity.outputs`; complex ones as pairs of real numbers, (.., 2)."""
    return [_output(tensor) for tensor in tensors]


def _output(tensor: Tensor) -> Output:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point():
        return Output(_array(tensor))
    info = torch.finfo(tensor.dtype)
    return Output(_array(tensor), info.eps, info.tiny)


def psnr_db(before: nn.Module, after: nn.Module, example_inputs: object) -> float | None:
    """`parity.bounds.psnr` of two models' outputs."""
    return psnr_on(before, after, [as_inputs(example_inputs)])


def psnr_on(before: nn.Module, after: nn.Module, batches: Sequence[Inputs]) -> float | None:
    """`parity.bounds.psnr` of two models' outputs on several batches, all together."""
    old, new = (
        [
            _array(output)
            for running in [copy_model(model)]
            for inputs in batches
            for output in flat_tensors(run_model(running, inputs))
        ]
        for model in (before, after)
    )
    return psnr(old, new)


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
    return equal_arrays(_array(one), _array(other))


def _array(tensor: Tensor) -> NDArray[Any]:
    """The values in NumPy; floats that NumPy does not have become float64, which holds them all."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    own = tensor.dtype in (torch.float64, torch.float32, torch.float16)
    if tensor.is_floating_point() and not own:
        tensor = tensor.double()
    array: NDArray[Any] = tensor.numpy()
    return array
