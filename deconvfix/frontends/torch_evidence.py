"""Gathers what the report shows of a fitted conversion of a torch module."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deconvfix.errors import DeconvfixError
from deconvfix.evidence import Evidence, Kernel, Pair
from deconvfix.frontends.torch_inputs import (
    Inputs,
    as_inputs,
    copy_model,
    flat_tensors,
    map_tensors,
    run_model,
)
from deconvfix.frontends.torch_layers import ConvTransposeModule, read_weight
from deconvfix.plan import Decision, Plan

__all__ = ["gather"]


def gather(before: nn.Module, after: nn.Module, example_inputs: Any, plan: Plan) -> Evidence:
    """Runs both models on the example and on a constant.

    Args:
        before: The original; neither model is changed.
        after: The converted model.
        example_inputs: As for `deconvfix.convert`.
        plan: What was converted.
    """
    before, after = copy_model(before), copy_model(after)
    example = as_inputs(example_inputs)
    strides = [each.spec.stride for each in plan.decisions if each.spec]
    most = max((len(each) for each in strides), default=0)
    period = tuple(
        math.prod(each[axis] for each in strides if axis < len(each)) for axis in range(most)
    )
    kernels = [_kernel(before, after, each) for each in plan.replaced if not each.exact]
    return Evidence(
        flat=_pair("a constant input", before, after, map_tensors(_constant, example)),
        sample=_pair("the example input", before, after, example),
        kernels=tuple(each for each in kernels if each is not None),
        period=period,
    )


def _constant(tensor: Tensor) -> Tensor:
    """The mean of each channel everywhere; what has no spatial axis stays as it is."""
    if tensor.dim() < 3 or not tensor.is_floating_point():
        return tensor
    axes = tuple(range(2, tensor.dim()))
    return tensor.mean(axes, keepdim=True).expand_as(tensor).contiguous()


def _pair(what: str, before: nn.Module, after: nn.Module, inputs: Inputs) -> Pair | None:
    """The first output that is a picture or a signal, of the first sample."""
    try:
        old, new = (flat_tensors(run_model(model, inputs)) for model in (before, after))
    except DeconvfixError:
        return None
    for one, other in zip(old, new, strict=True):
        shown = one.is_floating_point() and one.dim() in (3, 4) and one.numel()
        if shown and one.shape == other.shape:
            return Pair(what, _array(one[0]), _array(other[0]))
    return None


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
