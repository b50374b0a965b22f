"""Tuned fits: distillation from the original network on inputs without labels.

The converted layers start from their calibrated weights and follow the original's outputs with Adam.
They cannot leave their form: a resize-convolution has no other kernels, and an equalized layer is trained
as Z w in the basis Z of the kernels with equal phase sums (`forms.base.Design.basis`), beside what a
strength below 1 leaves of its imbalance. Both are folded away at the end. Training runs on a copy, in eval
mode, and its best state goes back into the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deconvfix.fit.tuning import Tuning
from deconvfix.forms import form
from deconvfix.frontends.torch_calibrate import fitted_decisions
from deconvfix.frontends.torch_descent import Descent
from deconvfix.frontends.torch_find import PLAIN, current_weight
from deconvfix.frontends.torch_inputs import Inputs, copy_model, flat_tensors
from deconvfix.frontends.torch_layers import (
    ConvertedConvTranspose,
    ConvTransposeModule,
    read_weight,
)
from deconvfix.frontends.torch_processes import average
from deconvfix.frontends.torch_samples import cut, join, split
from deconvfix.frontends.torch_surgery import exchange, put_weight, take_over
from deconvfix.plan import Plan

__all__ = ["tune"]

Array = NDArray[np.float64]


class _Subspace(nn.Module):
    """Parametrization of a kernel as Z w + offset, (C_in, C_out / groups, free) -> (.., *kernel_size)."""

    basis: Tensor
    offset: Tensor | None

    def __init__(self, basis: Array, offset: Array | None, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("basis", torch.from_numpy(basis).to(weight))
        fixed = None if offset is None else torch.from_numpy(offset).to(weight)
        self.register_buffer("offset", fixed)
        self.kernel_size = tuple(weight.shape[2:])

    def forward(self, w: Tensor) -> Tensor:
        """The kernel Z w + offset."""
        flat = w @ self.basis.mT
        if self.offset is not None:
            flat = flat + self.offset
        kernel: Tensor = flat.unflatten(-1, self.kernel_size)
        return kernel

    def right_inverse(self, kernel: Tensor) -> Tensor:
        """The numbers w of a kernel of the form: Z is orthogonal to the offset."""
        return kernel.flatten(2) @ self.basis


def tune(
    before: nn.Module,
    after: nn.Module,
    plan: Plan,
    batches: Sequence[Inputs],
    supply: Iterator[Inputs] | None,
    tuning: Tuning,
) -> tuple[Plan, list[str]]:
    """Distils, in place.

    Args:
        before: The original.
        after: The converted model, calibrated.
        plan: What was converted.
        batches: Calibration inputs; every fourth sample is held out.
        supply: Fresh inputs, one batch for each step, instead of the others.
        tuning: Budget and loss.

    Returns:
        The plan with what was measured, and a note.
    """
    names = [each.name for each in fitted_decisions(plan)]
    teacher = copy_model(before).eval().requires_grad_(False)
    student = copy_model(after).eval().requires_grad_(tuning.train_all)
    for name in names:
        student = _freed(student, name, plan, before)
    parameters = [each for each in student.parameters() if each.requires_grad]
    samples, independent = cut(teacher, batches)
    fitted, heldout = split(samples)
    size = min(tuning.batch_size, len(fitted)) if independent else 1
    supplied = (
        _endless(fitted, size, tuning.seed) if supply is None else ([each] for each in supply)
    )
    distance = tuning.loss or mean_squared

    def loss_on(chosen: Sequence[Inputs]) -> Tensor:
        """The mean loss of some samples."""
        losses = []
        for inputs in join(chosen) if independent else chosen:
            with torch.no_grad():
                old = teacher(*inputs.args, **inputs.kwargs)
            losses.append(distance(student(*inputs.args, **inputs.kwargs), old))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def heldout_loss() -> float:
        parts = [heldout[i : i + size] for i in range(0, len(heldout), size)]
        [loss] = average(sum(float(loss_on(p)) * len(p) for p in parts) / len(heldout))
        return loss

    descent = Descent(parameters, supplied, loss_on, heldout_loss, tuning)
    first, best = descent.run()
    _transfer(student, after, names, plan, before)
    note = (
        f"Tuned: the loss on {len(heldout)} held-out samples went from {first:.3g} to "
        f"{best.loss:.3g} in {best.steps} steps at a learning rate of {best.rate:g}."
    )
    decided = tuple(
        replace(each, reason=f"{each.reason}, then tuned") if each.name in names else each
        for each in plan.decisions
    )
    return replace(plan, decisions=decided), [note]


def mean_squared(new: Any, old: Any) -> Tensor:
    """The mean squared error of all floating-point outputs, each relative to its power."""
    errors = [
        (one - other).square().mean()
        / other.square().mean().clamp_min(torch.finfo(other.dtype).tiny)
        for one, other in zip(flat_tensors(new), flat_tensors(old), strict=True)
        if other.is_floating_point()
    ]
    return torch.stack(errors).mean()


def _freed(student: nn.Module, name: str, plan: Plan, before: nn.Module) -> nn.Module:
    """A layer made trainable inside its form: an equalized one is replaced by a plain one of Z w."""
    layer = student.get_submodule(name)
    if isinstance(layer, ConvertedConvTranspose):
        layer.requires_grad_(True)
        return student
    assert isinstance(layer, ConvTransposeModule)
    plain: Any = next(each for each in PLAIN if isinstance(layer, each))
    new: Any = plain(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.output_padding,
        layer.groups,
        layer.bias is not None,
        layer.dilation,
        device="meta",
    )
    new.weight = nn.Parameter(current_weight(layer).detach().clone())
    new.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
    subspace = _Subspace(*_kernels(name, plan, before), new.weight)
    parametrize.register_parametrization(new, "weight", subspace)
    return exchange(student, layer, take_over(new, layer))


def _kernels(name: str, plan: Plan, before: nn.Module) -> tuple[Array, Array | None]:
    """Basis and offset of the kernels that a layer may have; see `forms.base.Design`."""
    decision = plan[name]
    assert decision.spec is not None
    assert decision.form is not None
    assert decision.settings is not None
    chosen = form(decision.form)
    design = chosen.design(decision.spec, decision.settings)
    assert design is not None
    trained = read_weight(current_weight(before.get_submodule(name)))
    return design.basis, design.offset(chosen.fit(decision.spec, decision.settings, trained))


@torch.no_grad()
def _transfer(
    student: nn.Module, after: nn.Module, names: Sequence[str], plan: Plan, before: nn.Module
) -> None:
    """Writes what was trained into the model, in place, each layer under its own parametrization."""
    own = dict(after.named_parameters())
    for key, parameter in student.named_parameters():
        if key in own and own[key].shape == parameter.shape:
            own[key].copy_(parameter)
    for name in names:
        layer, trained = after.get_submodule(name), student.get_submodule(name)
        if not isinstance(layer, ConvertedConvTranspose):
            assert isinstance(trained, ConvTransposeModule)
            bias = None if trained.bias is None else read_weight(trained.bias)
            trained_w: Any = trained.parametrizations
            basis, offset = _kernels(name, plan, before)
            # Multiplied in float64, so that the phase sums are equal to the rounding of the weight.
            kernel = read_weight(trained_w.weight.original) @ basis.T
            if offset is not None:
                kernel = kernel + offset
            put_weight(layer, kernel.reshape(tuple(trained.weight.shape)), bias, name)


def _endless(samples: Sequence[Inputs], size: int, seed: int) -> Iterator[Sequence[Inputs]]:
    """Batches of samples in a new random order for each round; a rest smaller than a batch is left."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(samples), generator=generator).tolist()
        for begin in range(0, len(samples) - size + 1, size):
            yield [samples[i] for i in order[begin : begin + size]]
