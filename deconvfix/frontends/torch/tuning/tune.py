"""Tuned fits: distillation from the original network on inputs without labels.

The converted layers start from their calibrated weights and follow the original's outputs (`descent`).
They cannot leave their form: a resize-convolution has no other kernels, and the other forms are trained
as Z w in the basis Z of the kernels that they can have (`forms.base.Design.basis`), beside what a strength
below 1 leaves of an equalized layer's imbalance. Both are folded away at the end. Training runs on a copy,
in eval mode, and its best state goes back into the model.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from deconvfix.core.rearrange import inverse, rearrange
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.fit.regression import MEMORY
from deconvfix.fit.tuning import Tuning
from deconvfix.forms import form
from deconvfix.forms.base import Design
from deconvfix.frontends.calibrate import fitted_decisions, kept_bytes
from deconvfix.frontends.torch.calibrate import directions_of
from deconvfix.frontends.torch.find import PLAIN, current_weight
from deconvfix.frontends.torch.inputs import Inputs, copy_model, flat_tensors
from deconvfix.frontends.torch.layers import (
    ConvertedConvTranspose,
    ConvTransposeModule,
    read_weight,
    spec_of,
)
from deconvfix.frontends.torch.samples import cut, endless, join, split
from deconvfix.frontends.torch.step_modules import LocalMeans
from deconvfix.frontends.torch.steps import carry_out, rearrange_tensor
from deconvfix.frontends.torch.surgery import exchange, put_weight, take_over
from deconvfix.frontends.torch.tuning.descent import SHORTEST_SIDE, Descent
from deconvfix.frontends.torch.tuning.parametrizations import KeptAlong, Subspace, WithMeans
from deconvfix.frontends.torch.tuning.processes import average
from deconvfix.frontends.torch.tuning.resume import Resume
from deconvfix.plan import Plan

__all__ = [
    "tune",
]

Array = NDArray[np.float64]


# Samples in a step: of those given, and at most of those drawn, where their outputs have so many values.
_GIVEN, _DRAWN, _MOST_VALUES = 8, 64, 2**20


def tune(
    before: nn.Module,
    after: nn.Module,
    plan: Plan,
    batches: Sequence[Inputs],
    supply: Iterator[Inputs] | None,
    tuning: Tuning,
    flat: Sequence[Inputs] = (),
    memory: float = MEMORY,
) -> tuple[Plan, list[str]]:
    """Distils, in place.

    Args:
        before: The original.
        after: The converted model, calibrated.
        plan: What was converted.
        batches: Calibration inputs; every fourth sample is held out.
        supply: Fresh inputs, one batch for each step, instead of the others.
        tuning: Budget and loss.
        flat: Inputs on which alone equalized layers must make no grid; none: on all.
        memory: For the original's outputs, in GiB; they are computed again where it is not enough.

    Returns:
        The plan with what was measured, and a note.
    """
    decisions = fitted_decisions(plan)
    names = [decision.name for decision in decisions]
    # On copies, as training changes the classes of layers.
    teacher = copy_model(before).eval().requires_grad_(False)
    student = copy_model(after).eval().requires_grad_(tuning.train_all)
    for decision in decisions:
        along = directions_of(after, decision.name, decision, flat) if flat else None
        student = _freed(student, decision.name, plan, before, along)
    matrices, parameters = _trained(student)
    # Given samples are used again and again, so the teacher's outputs are kept where there is memory for
    # them; drawn ones are new in each step, as many as have a million output values together.
    samples, independent = cut(teacher, batches)
    taught = _taught(teacher, samples, kept_bytes(memory)) if supply is None else None
    fitted, heldout = split(samples if taught is None else taught)
    if supply is None:
        size = min(tuning.batch_size or _GIVEN, len(fitted)) if independent else 1
        supplied = endless(fitted, size, tuning.seed)
    else:
        size = tuning.batch_size or _drawn_at_once(teacher, samples[0])
        draws = math.ceil(size * len(batches) / len(samples)) if independent else 1
        supplied = iter(lambda: list(itertools.islice(supply, draws)), [])
    loss = _Loss(teacher, student, tuning.loss or mean_squared, independent, taught is not None)
    resume = None
    if tuning.resume is not None:
        resume = Resume(Path(tuning.resume), _identity(tuning, plan, samples, flat))
    descent = Descent(
        parameters,
        len(matrices),
        supplied,
        loss,
        lambda: loss.mean(heldout, size),
        tuning,
        resume,
    )
    first, best = descent.run()
    # Only weights go back, folded into the form, so no parametrization stays in the model.
    _transfer(student, after, names)
    note = (
        f"Tuned: the loss on {len(heldout)} held-out samples went from {first:.3g} to "
        f"{best.loss:.3g} in {best.steps} steps at a learning rate of {best.rate:g}."
    )
    tuned = tuple(
        replace(decision, reason=f"{decision.reason}, then tuned")
        if decision.name in names
        else decision
        for decision in plan.decisions
    )
    return replace(plan, decisions=tuned), [note]


@dataclass(frozen=True)
class _Loss:
    """How far a student is from its teacher on some samples.

    Attributes:
        teacher: The original.
        student: The converted model.
        distance: Of two outputs, a scalar tensor.
        independent: Whether samples may be joined into batches.
        kept: Whether samples are pairs of inputs and the teacher's outputs.
    """

    teacher: nn.Module
    student: nn.Module
    distance: Callable[[Any, Any], Any]
    independent: bool
    kept: bool

    def __call__(self, samples: Sequence[Inputs]) -> Tensor:
        """The mean over the samples, with a gradient."""
        losses = []
        # Samples of one shape run together, unless they influence each other.
        for batch in join(samples) if self.independent else samples:
            if self.kept:
                inputs, old = batch.args
            else:
                inputs = batch
                with torch.no_grad():
                    old = self.teacher(*inputs.args, **inputs.kwargs)
            losses.append(self.distance(self.student(*inputs.args, **inputs.kwargs), old))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def mean(self, samples: Sequence[Inputs], size: int) -> float:
        """The mean over many samples, so many at a time, and over the processes."""
        parts = [samples[begin : begin + size] for begin in range(0, len(samples), size)]
        # Weighted by size, as the last part may be smaller.
        total = sum(float(self(part)) * len(part) for part in parts)
        [mean] = average(total / len(samples))
        return mean


def _trained(student: nn.Module) -> tuple[list[Any], list[Any]]:
    """The matrices that Muon moves, and all parameters that move, these matrices first."""
    matrices: list[Any] = [
        kernels.original
        for kernels in student.modules()
        if isinstance(kernels, parametrize.ParametrizationList)
        # A kernel kept along directions is no matrix of features and outputs.
        and type(kernels[0]) is Subspace
        and min(kernels.original.shape) >= SHORTEST_SIDE
    ]
    moving = [parameter for parameter in student.parameters() if parameter.requires_grad]
    # By identity: comparing tensors compares their elements.
    others = [
        parameter for parameter in moving if all(parameter is not matrix for matrix in matrices)
    ]
    return matrices, matrices + others


@torch.no_grad()
def _drawn_at_once(teacher: nn.Module, sample: Inputs) -> int:
    """Samples of a distribution in a step: they are free, and more of them lead further in a time."""
    outputs = flat_tensors(teacher(*sample.args, **sample.kwargs))
    values = sum(output.numel() for output in outputs)
    return max(_GIVEN, min(_DRAWN, _MOST_VALUES // max(1, values)))


def _identity(
    tuning: Tuning, plan: Plan, samples: Sequence[Inputs], flat: Sequence[Inputs]
) -> dict[str, Any]:
    """What must be the same for a distillation to go on; its budget may be another."""
    names = ("seed", "learning_rate", "batch_size", "train_all")
    digest = hashlib.sha256()
    for given in (*samples, *flat):
        for tensor in flat_tensors([given.args, given.kwargs]):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            flat_bytes = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(flat_bytes.numpy().tobytes())
    return {name: getattr(tuning, name) for name in names} | {
        "plan": plan.to_json(),
        # A function has no identity that outlives its process but its name.
        "loss": getattr(tuning.loss, "__qualname__", None if tuning.loss is None else "a loss"),
        "inputs": digest.hexdigest(),
    }


def _taught(
    teacher: nn.Module, samples: Sequence[Inputs], most_bytes: float
) -> list[Inputs] | None:
    """Each sample with the original's outputs, which are so computed once; None if they are too large.

    Outputs of classes that pytree does not know cannot be joined to batches: None for them too.
    """
    pairs: list[Inputs] = []
    size = 0
    for sample in samples:
        with torch.no_grad():
            old = teacher(*sample.args, **sample.kwargs)
        tensors = flat_tensors(old)
        size += sum(tensor.nbytes for tensor in tensors)
        if size > most_bytes or len(tensors) != len(
            [leaf for leaf in pytree.tree_leaves(old) if isinstance(leaf, Tensor)]
        ):
            return None
        pairs.append(Inputs((sample, old), {}))
    return pairs


def mean_squared(new: Any, old: Any) -> Tensor:
    """The mean squared error of all floating-point outputs, each relative to its power."""
    errors = [
        (one - other).square().mean()
        / other.square().mean().clamp_min(torch.finfo(other.dtype).tiny)
        for one, other in zip(flat_tensors(new), flat_tensors(old), strict=True)
        if other.is_floating_point()
    ]
    return torch.stack(errors).mean()


def _freed(
    student: nn.Module, name: str, plan: Plan, before: nn.Module, along: Array | None
) -> nn.Module:
    """A layer made trainable inside its form.

    A resize-convolution is left as it is; others are replaced by transposed convolutions of Z w.
    """
    layer = student.get_submodule(name)
    design, offset = _kernels(name, plan, before)
    if isinstance(layer, ConvertedConvTranspose):
        # Upsampling is a step of its own, so the convolution may have any kernel.
        if design.copies == 1:
            layer.requires_grad_(True)
            return student
        chosen = form(layer.form_name)
        verbs = chosen.compile(layer.spec, layer.settings).weight
        # Back to the layout of a transposed convolution, which trains faster.
        back = inverse(verbs, layer.kernel_shape, layer.groups)
        kernel = carry_out(back, layer.convolution.weight)
        grown, _ = chosen.spread(layer.spec, layer.settings, read_weight(kernel))
        # The local means are further input channels.
        wide = replace(grown, in_channels=len(kernel))
        means = layer.get_submodule("means")
        assert isinstance(means, LocalMeans)
        up = _plain(wide, kernel, layer.bias)
        new: nn.Module = WithMeans(means, up)
    else:
        assert isinstance(layer, ConvTransposeModule)
        kernel = current_weight(layer)
        new = up = _plain(spec_of(layer), kernel, layer.bias)
    if along is None:
        kernels: nn.Module = Subspace(design, offset, layer.groups, up.weight)
    else:
        kernels = KeptAlong(along, read_weight(kernel), kernel)
        # A bias answers to every input, so it would change what must stay on the flat ones.
        if up.bias is not None:
            up.bias.requires_grad_(False)
    parametrize.register_parametrization(up, "weight", kernels)
    return exchange(student, layer, take_over(new, layer))


def _plain(spec: ConvTransposeSpec, weight: Tensor, bias: Tensor | None) -> Any:
    """A transposed convolution with copies of a weight and a bias."""
    plain: Any = PLAIN[spec.ndim - 1]
    new = plain(
        spec.in_channels,
        spec.out_channels,
        spec.kernel_size,
        spec.stride,
        tuple(begin for begin, _ in spec.padding),
        spec.output_padding,
        spec.groups,
        bias is not None,
        spec.dilation,
        # Its weight is replaced at once, so none is allocated.
        device="meta",
    )
    new.weight = nn.Parameter(weight.detach().clone())
    new.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    return new


def _kernels(name: str, plan: Plan, before: nn.Module) -> tuple[Design, Array | None]:
    """Basis, in a design, and offset of the kernels that a layer may have; see `forms.base.Design`."""
    decision = plan[name]
    assert decision.spec is not None
    assert decision.form is not None
    assert decision.settings is not None
    chosen = form(decision.form)
    design = chosen.design(decision.spec, decision.settings)
    assert design is not None
    trained = read_weight(current_weight(before.get_submodule(name)))
    return design, design.offset(chosen.fit(decision.spec, decision.settings, trained))


@torch.no_grad()
def _transfer(
    student: nn.Module,
    after: nn.Module,
    names: Sequence[str],
) -> None:
    """Writes what was trained into the model, in place, each layer under its own parametrization."""
    own = dict(after.named_parameters())
    for key, parameter in student.named_parameters():
        # Names that training left alone: other layers, biases, and resize-convolutions.
        if key in own and own[key].shape == parameter.shape:
            own[key].copy_(parameter)
    for name in names:
        layer, trained = after.get_submodule(name), student.get_submodule(name)
        if isinstance(trained, WithMeans):
            assert isinstance(layer, ConvertedConvTranspose)
            compiled = form(layer.form_name).compile(layer.spec, layer.settings)
            weight = rearrange(compiled.weight, _trained_kernel(trained.up), layer.groups)
            layer.convolution.weight.copy_(torch.from_numpy(weight))
            if layer.convolution.bias is not None and trained.up.bias is not None:
                bias = rearrange_tensor(compiled.bias, trained.up.bias)
                layer.convolution.bias.copy_(bias)
        elif isinstance(layer, ConvTransposeModule):
            assert isinstance(trained, ConvTransposeModule)
            own_bias = None if trained.bias is None else read_weight(trained.bias)
            put_weight(layer, _trained_kernel(trained), own_bias, name)


def _trained_kernel(module: nn.Module) -> Array:
    """What was trained as Z w, multiplied in float64: phase sums are equal to the rounding of the weight."""
    parametrizations: Any = module.parametrizations
    [kernels] = parametrizations.weight
    if isinstance(kernels, KeptAlong):
        # The projection in float64: its rounding would be a change along the directions.
        kernels = copy_model(kernels).double()
        with torch.no_grad():
            return read_weight(kernels(parametrizations.weight.original.double()))
    matrix = read_weight(parametrizations.weight.original)
    # (C_in * free, C_out/g) -> (C_in, free, C_out/g) -> (C_in, C_out/g, free)
    numbers = matrix.reshape(-1, kernels.design.basis.shape[1], matrix.shape[1]).swapaxes(1, 2)
    kernel = kernels.design.kernel(numbers, kernels.groups)
    if kernels.fixed is not None:
        kernel = kernel + kernels.fixed
    return np.asarray(kernel.reshape(kernels.shape), np.float64)
