"""A model's own weights, trained so that its outputs lose their grid: same layers, same names.

The goal is a teacher without a grid. Where an input and an output correspond pixel by pixel that is the mean
over all shifts of the input, shifted back (cycle spinning; Coifman and Donoho 1995, "Translation-invariant
de-noising"): whatever is locked to the phase averages out, and so do part of the errors. The loss is the
squared distance to it, and once more, with a weight, what of that distance is locked to the phase: the mean
of the error over a few periods, for each phase. Everything else of an error is not seen as a grid.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from deconvfix.errors import DeconvfixError, ModelError
from deconvfix.fit.tuning import Tuning
from deconvfix.frontends.base import Restoration
from deconvfix.frontends.torch.find import current_weight
from deconvfix.frontends.torch.inputs import (
    Inputs,
    as_inputs,
    copy_model,
    flat_tensors,
    map_tensors,
    run_model,
)
from deconvfix.frontends.torch.layers import ConvTransposeModule, read_weight, spec_of
from deconvfix.frontends.torch.samples import cut, endless, join, split
from deconvfix.frontends.torch.surgery import put_weight
from deconvfix.frontends.torch.tuning.descent import Descent
from deconvfix.grid.periods import Period
from deconvfix.grid.visible import REPEATS

__all__ = ["constant_like", "cost", "cycle_spun", "restore"]

# Weight of the part that is locked to the phase. With 10 and 100 in place of it a network of three layers
# kept a grid of 0.44 and 0.32 steps, at 0.1 and 0.25 dB less of quality.
_LOCKED = 20.0
# For all weights of a network that is close to its goal already.
_RATE = 1e-3
_BATCH = 8


def cost(model: nn.Module, inputs: Any) -> float:
    """Floating-point operations of one run, of those operators that torch counts."""
    counter = FlopCounterMode(display=False)
    with counter:
        run_model(copy_model(model), as_inputs(inputs))
    return float(counter.get_total_flops())


def constant_like(inputs: Any) -> Inputs:
    """Each channel of each sample at its mean: what a network makes of it is a grid and nothing else."""

    def constant(tensor: Tensor) -> Tensor:
        if tensor.dim() < 3 or not tensor.is_floating_point():
            return tensor
        return tensor.mean(tuple(range(2, tensor.dim())), keepdim=True).expand_as(tensor)

    result: Inputs = map_tensors(constant, as_inputs(inputs))
    return result


@torch.no_grad()
def cycle_spun(
    model: nn.Module, inputs: Any, periods: Mapping[int, Period], most: int, seed: int
) -> list[NDArray[Any]] | None:
    """The mean of the outputs over shifts of the input, each shifted back.

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
        every = list(itertools.product(*map(range, shifts)))
        chosen = random.Random(seed).sample(every, min(most, len(every)))
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
    return [(total / len(chosen)).cpu().numpy() for total in totals]


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


def restore(model: nn.Module, task: Restoration) -> nn.Module:
    """A copy of a model, trained towards targets; batch statistics stay as they are.

    Raises:
        ModelError: If it has nothing to train, or cannot be trained.
    """
    student = copy_model(model).eval()
    for name in task.grow:
        _grow(student.get_submodule(name), name)
    batches = [as_inputs(inputs) for inputs in task.inputs]
    parameters = [p for p in student.parameters() if p.is_floating_point()]
    if not parameters:
        raise _untrainable(model, "it has no floating-point parameters")
    for parameter in parameters:
        parameter.requires_grad_()
    device = parameters[0].device
    goals = [[torch.from_numpy(value).to(device) for value in target] for target in task.targets]
    pairs, joined = _pairs(model, batches, goals)
    fitted, heldout = split(pairs)
    loss = _Loss(student, task.periods, joined)
    descent = Descent(
        parameters,
        0,
        endless(fitted, min(_BATCH, len(fitted)) if joined else 1, task.seed),
        loss,
        lambda: loss.mean(heldout),
        Tuning(seconds=task.seconds, seed=task.seed, learning_rate=_RATE),
    )
    try:
        descent.run()
    except (RuntimeError, NotImplementedError) as error:
        raise _untrainable(model, f"training fails ({error})") from error
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    for name, parameter in student.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name not in frozen)
            parameter.grad = None
    return student.train(model.training)


def _untrainable(model: nn.Module, found: str) -> ModelError:
    return ModelError(
        type(model).__name__,
        found,
        "its own layers are trained to take a grid out",
        "Give the model as it was trained, in floats",
    )


@torch.no_grad()
def _grow(layer: nn.Module, name: str) -> None:
    """A tap more at each end of each axis with a stride, zero at first; the output keeps its size."""
    assert isinstance(layer, ConvTransposeModule)
    spec = spec_of(layer)
    more = [int(s > 1) for s in spec.stride]
    kernel = np.pad(read_weight(current_weight(layer)), [(0, 0), (0, 0), *((n, n) for n in more)])
    layer.kernel_size = tuple(k + 2 * n for k, n in zip(spec.kernel_size, more, strict=True))
    padding = zip(spec.padding, more, spec.dilation, strict=True)
    layer.padding = tuple(begin + n * d for (begin, _), n, d in padding)
    # Through a norm, where the weight has one.
    put_weight(layer, kernel, None, name)


def _pairs(
    model: nn.Module, batches: Sequence[Inputs], goals: Sequence[Sequence[Tensor]]
) -> tuple[list[Inputs], bool]:
    """Inputs with their targets, sample by sample where the model treats samples independently."""
    samples, independent = cut(model, batches)
    if not independent:
        return [
            Inputs((batch, list(goal)), {}) for batch, goal in zip(batches, goals, strict=True)
        ], False
    single = [[value[i : i + 1] for value in goal] for goal in goals for i in range(len(goal[0]))]
    return [Inputs(pair, {}) for pair in zip(samples, single, strict=True)], True


class _Loss:
    """The distance to the targets, and its part that is locked to the phase."""

    def __init__(self, student: nn.Module, periods: Mapping[int, Period], joined: bool) -> None:
        self.student = student
        self.periods = periods
        self.joined = joined

    def __call__(self, pairs: Sequence[Inputs]) -> Tensor:
        losses = []
        for batch in join(pairs) if self.joined else pairs:
            inputs, goals = batch.args
            outputs = flat_tensors(self.student(*inputs.args, **inputs.kwargs))
            for i, (output, goal) in enumerate(zip(outputs, goals, strict=True)):
                if not output.is_floating_point():
                    continue
                # Relative to how far the target varies: outputs may have any units.
                scale = goal.var().clamp_min(torch.finfo(goal.dtype).tiny)
                error = output - goal
                loss = error.square().mean()
                if i in self.periods:
                    loss = loss + _LOCKED * _locked(error, self.periods[i])
                losses.append(loss / scale)
        return torch.stack(losses).mean()

    @torch.no_grad()
    def mean(self, pairs: Sequence[Inputs]) -> float:
        """Over many samples."""
        parts = [pairs[i : i + _BATCH] for i in range(0, len(pairs), _BATCH)]
        return sum(float(self(part)) * len(part) for part in parts) / len(pairs)


def _locked(error: Tensor, period: Period) -> Tensor:
    """The mean square of what a few periods of an error have in common, phase by phase."""
    ndim = len(period)
    shape: list[int] = [*error.shape[:2]]
    for axis, n in enumerate(period, 2):
        repeats = min(REPEATS[ndim], error.shape[axis] // n)
        if not repeats:
            return error.new_zeros(())
        cells = error.shape[axis] // (repeats * n)
        error = error.narrow(axis, 0, cells * repeats * n)
        shape += [cells, repeats, n]
    split_up = error.reshape(shape)
    means = split_up.mean([3 + 3 * i for i in range(ndim)], keepdim=True)
    means = means - means.mean([4 + 3 * i for i in range(ndim)], keepdim=True)
    return means.square().mean()
