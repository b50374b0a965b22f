"""A model's own weights, trained so that its outputs lose their grid: same layers, same names.

The goal is a teacher without a grid (see `teacher`). The loss is the squared distance to it, and once more,
with a weight, what of that distance is locked to the phase: the mean of the error over a few periods, for
each phase. Everything else of an error is not seen as a grid. The mean of the error over each sample has a
weight too: it is a colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from deconvfix.errors import ModelError
from deconvfix.fit.tuning import Tuning
from deconvfix.frontends.base import Restoration
from deconvfix.frontends.torch.find import current_weight
from deconvfix.frontends.torch.inputs import (
    Inputs,
    as_inputs,
    copy_model,
    flat_tensors,
    run_model,
)
from deconvfix.frontends.torch.layers import ConvTransposeModule, read_weight, spec_of
from deconvfix.frontends.torch.samples import cut, endless, join, split
from deconvfix.frontends.torch.surgery import put_weight
from deconvfix.frontends.torch.tuning.descent import SHORTEST_SIDE, Descent
from deconvfix.grid.periods import Period
from deconvfix.grid.visible import REPEATS
from deconvfix.parity.progress import tell_time

__all__ = ["cost", "restore"]

# Weight of the part that is locked to the phase, in a mean patch and in a smooth one over that: there it is
# seen. With 40 everywhere a network of three layers kept 0.03 steps of 0.62 on held-out pictures, with these
# none, 0.3 dB further away from its goal; with 20 and 40 instead of the first 10 it was 0.4 and 1 dB further.
_LOCKED, _SMOOTH = 10.0, 10.0
# Weight of each sample's mean error in each channel.
_COLOUR = 10.0
_BATCH = 8
# One of so many samples says which state is best; most of them are versions of those that are trained on.
_HELDOUT_EVERY = 16
# Of the variance of all targets: what errors are relative to, at least.
_LEAST, _TINY = 1e-2, float(torch.finfo(torch.float32).tiny)


def cost(model: nn.Module, inputs: Any) -> float:
    """Floating-point operations of one run, of those operators that torch counts."""
    counter = FlopCounterMode(display=False)
    with counter:
        run_model(copy_model(model), as_inputs(inputs))
    return float(counter.get_total_flops())


def restore(model: nn.Module, task: Restoration) -> nn.Module:
    """A copy of a model, trained towards targets; batch statistics stay as they are.

    Raises:
        ModelError: If it has nothing to train, or cannot be trained.
    """
    student = copy_model(model).eval()
    for name in task.grow:
        _grow(student.get_submodule(name), name)
    batches = [as_inputs(inputs) for inputs in task.inputs]
    trained = {name: p for name, p in student.named_parameters() if p.is_floating_point()}
    if not trained:
        raise _untrainable(model, "it has no floating-point parameters")
    for parameter in trained.values():
        parameter.requires_grad_()
    matrices = _matrices(trained)
    others = [p for name, p in trained.items() if name not in matrices]
    device = next(iter(trained.values())).device
    goals = [[torch.from_numpy(value).to(device) for value in target] for target in task.targets]
    pairs, joined = _pairs(model, batches, goals)
    fitted, heldout = split(pairs, _HELDOUT_EVERY)
    # A batch of silence alone varies by nothing.
    least = [
        max(_LEAST * float(np.mean([np.var(value) for value in values])), _TINY)
        for values in zip(*task.targets, strict=True)
    ]
    loss = _Loss(student, matrices, task.periods, joined, least)
    descent = Descent(
        [*matrices.values(), *others],
        len(matrices),
        endless(fitted, min(_BATCH, len(fitted)) if joined else 1, task.seed),
        loss,
        lambda: loss.mean(heldout),
        Tuning(
            seconds=task.seconds,
            seed=task.seed,
            learning_rate=task.rate,
            progress=lambda at: tell_time("Training", at.fraction * task.seconds, task.seconds),
        ),
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


def _matrices(trained: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The kernels as the matrices that Muon moves, in the same memory, by their names."""
    found = {
        name: nn.Parameter(p.detach().view(len(p), -1))
        for name, p in trained.items()
        if p.dim() > 2 and p.is_contiguous()
    }
    return {name: matrix for name, matrix in found.items() if min(matrix.shape) >= SHORTEST_SIDE}


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
    """The distance to the targets, its part that is locked to the phase, and its mean."""

    def __init__(
        self,
        student: nn.Module,
        matrices: Mapping[str, nn.Parameter],
        periods: Mapping[int, Period],
        joined: bool,
        least: Sequence[float],
    ) -> None:
        self.student = student
        self.matrices = matrices
        self.shapes = {name: student.get_parameter(name).shape for name in matrices}
        self.periods = periods
        self.joined = joined
        self.least = least

    def __call__(self, pairs: Sequence[Inputs]) -> Tensor:
        losses = []
        kernels = {name: matrix.view(self.shapes[name]) for name, matrix in self.matrices.items()}
        for batch in join(pairs) if self.joined else pairs:
            inputs, goals = batch.args
            outputs = flat_tensors(
                functional_call(self.student, kernels, inputs.args, dict(inputs.kwargs))
            )
            for i, (output, goal) in enumerate(zip(outputs, goals, strict=True)):
                if not output.is_floating_point():
                    continue
                # Relative to how far the target varies: outputs may have any units.
                scale = goal.var().clamp_min(self.least[i])
                error = output - goal
                loss = error.square().mean()
                if i in self.periods:
                    if error.dim() == 1 + len(self.periods[i]):  # an output without a channel axis
                        error, goal = error[:, None], goal[:, None]
                    loss = loss + _LOCKED * _locked(error, goal, self.periods[i])
                    loss = loss + _COLOUR * error.flatten(2).mean(2).square().mean()
                losses.append(loss / scale)
        return torch.stack(losses).mean()

    @torch.no_grad()
    def mean(self, pairs: Sequence[Inputs]) -> float:
        """Over many samples."""
        parts = [pairs[i : i + _BATCH] for i in range(0, len(pairs), _BATCH)]
        return sum(float(self(part)) * len(part) for part in parts) / len(pairs)


def _locked(error: Tensor, goal: Tensor, period: Period) -> Tensor:
    """The mean square of what a few periods of an error have in common, phase by phase.

    Where the goal varies little it counts more, up to `_SMOOTH` times as much as in a mean patch.
    """
    ndim = len(period)
    shape: list[int] = [*error.shape[:2]]
    for axis, n in enumerate(period, 2):
        repeats = min(REPEATS[ndim], error.shape[axis] // n)
        if not repeats:
            return error.new_zeros(())
        cells = error.shape[axis] // (repeats * n)
        error, goal = (value.narrow(axis, 0, cells * repeats * n) for value in (error, goal))
        shape += [cells, repeats, n]
    # (N, C, cells, repeats, phases, cells, ...)
    repeats_at, phases_at = [3 + 3 * i for i in range(ndim)], [4 + 3 * i for i in range(ndim)]
    means = error.reshape(shape).mean(repeats_at, keepdim=True)
    means = means - means.mean(phases_at, keepdim=True)
    rough = goal.reshape(shape).var([*repeats_at, *phases_at], correction=0, keepdim=True)
    rough = rough.mean(1, keepdim=True)
    mean = rough.mean().clamp_min(torch.finfo(goal.dtype).tiny)
    weight = _SMOOTH * mean / ((_SMOOTH - 1) * rough + mean)
    return (weight * means.square()).mean()
