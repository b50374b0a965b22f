"""What the report draws of the converted layers of a torch module."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deconvfix.evidence import Kernel
from deconvfix.frontends.torch_inputs import Inputs, copy_model, run_model
from deconvfix.frontends.torch_layers import ConvTransposeModule, read_weight
from deconvfix.plan import Decision, Plan

__all__ = ["kernels_of"]


def kernels_of(before: nn.Module, after: nn.Module, plan: Plan) -> tuple[Kernel, ...]:
    """The answers to one pixel of the layers whose function changed.

    Args:
        before: The original; neither model is changed.
        after: The converted model.
        plan: What was converted.
    """
    before, after = copy_model(before), copy_model(after)
    kernels = [_kernel(before, after, each) for each in plan.replaced if not each.exact]
    return tuple(each for each in kernels if each is not None)


def _array(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.detach().cpu().double().numpy()
    return array


def _kernel(before: nn.Module, after: nn.Module, decision: Decision) -> Kernel | None:
    """The answers to one pixel, for the pair of channels with the largest weight."""
    old, new = before.get_submodule(decision.name), after.get_submodule(decision.name)
    spec = decision.spec
    if not isinstance(old, ConvTransposeModule) or spec is None:
        return None
    weight = np.abs(read_weight(old.weight))
    largest = weight.reshape(*weight.shape[:2], -1).max(-1)
    c_in, per_group = np.unravel_index(largest.argmax(), largest.shape)
    group = int(c_in) // (spec.in_channels // spec.groups)
    c_out = group * (spec.out_channels // spec.groups) + int(per_group)
    reach = [
        big_k // s + 2 for big_k, s in zip(spec.effective_kernel_size, spec.stride, strict=True)
    ]
    dark = torch.zeros(1, spec.in_channels, *(2 * r + 1 for r in reach)).to(old.weight)
    lit = dark.clone()
    lit[(0, int(c_in), *reach)] = 1
    # One stride around the trained kernel: fitted kernels may be larger.
    window: tuple[Any, ...] = tuple(
        slice(max(0, r * s - b - s), r * s - b + big_k + s)
        for r, s, (b, _), big_k in zip(
            reach, spec.stride, spec.padding, spec.effective_kernel_size, strict=True
        )
    )
    answers = []
    for layer in (old, new):
        answer = run_model(layer, Inputs((lit,), {})) - run_model(layer, Inputs((dark,), {}))
        answers.append(_array(answer)[(0, c_out, *window)])
    return Kernel(decision.name, *answers)
