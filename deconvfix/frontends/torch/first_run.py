"""One run of an original: what its layers get, what comes out, and how much work it is.

A layer is local, so what it gets is kept as a crop: so much of the map that both borders and the interior
are in it, along each axis, with every phase.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.frontends.torch.calls import Call, Observed, observe
from deconvfix.frontends.torch.inputs import (
    Inputs,
    copy_to_run,
    flat_tensors,
    innermost_name,
    names_of,
    run_model,
)

__all__ = ["FirstRun", "cropped", "first_run", "is_long", "small_sizes"]

# Beyond this a model runs as often as it must: a run in float64 takes a fifth of a second then, on one core,
# and a whole comparison has two dozen of them.
_MOST_OPERATIONS = 2 * 10**9
_MOST_WEIGHTS = 2**24
# Samples of a batch that are kept of what a layer gets.
_SAMPLES = 2


@dataclass(frozen=True)
class FirstRun:
    """What one run of a model showed.

    Attributes:
        calls: The transposed convolutions that ran, by the names of the modules that call them, on crops.
        outputs: The tensors that came out.
        operations: Multiplications and additions of its products and convolutions.
    """

    calls: dict[str, list[Call]] = field(default_factory=dict)
    outputs: Sequence[Tensor] = ()
    operations: int = 0


class _Operations(TorchDispatchMode):
    """Counts them as `torch.utils.flop_counter` does, and leaves the operators as they are."""

    # Branches and loops run as they do without it; what is inside them is not counted.
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(getattr(func, "_overloadpacket", None))
        if count is not None:
            self.count += int(count(*args, **(kwargs or {}), out_val=result))
        return result


def first_run(model: nn.Module, example: Inputs) -> FirstRun:
    """Runs a copy of a model.

    Raises:
        ModelError: If it does not run on these inputs.
    """
    calls: dict[str, list[Call]] = {}
    probe = copy_to_run(model)
    names = names_of(probe)

    def record(observed: Observed) -> None:
        # The values of a vmap cannot be used outside it.
        if not torch._C._functorch.is_functorch_wrapped_tensor(observed.call.input):
            name = innermost_name(observed.stack, names)
            calls.setdefault(name, []).append(cropped(observed.call))

    with observe(record), _Operations() as counted:
        result = run_model(probe, example)
    return FirstRun(calls, flat_tensors(result), counted.count)


def is_long(run: FirstRun, model: nn.Module) -> bool:
    """Whether a run of the model is so much work, or takes so much memory, that runs are counted."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    return run.operations > _MOST_OPERATIONS or weights > _MOST_WEIGHTS


def cropped(call: Call) -> Call:
    """The same call on the first corner of its input, of a few windows along each axis."""
    spec = call.spec()
    windows = [
        math.ceil(k / s) for k, s in zip(spec.effective_kernel_size, spec.stride, strict=True)
    ]
    sizes: list[int] = []
    for small, window in zip(small_sizes(spec), windows, strict=True):
        size = small + 2 * window
        # Different on each axis, so that swapped axes are seen.
        while size in sizes:
            size += 1
        sizes.append(size)
    corner: Tensor = call.input.detach()
    if corner.dim() == spec.ndim + 2:
        corner = corner[:_SAMPLES]
    for axis, size in enumerate(sizes, corner.dim() - spec.ndim):
        corner = corner.narrow(axis, 0, min(size, corner.shape[axis]))
    return replace(call, input=corner.clone())


def small_sizes(spec: ConvTransposeSpec) -> tuple[int, ...]:
    """A small input size, different on each axis, for which the layer has an output."""
    sizes = []
    for axis, (s, big_k, (b, e)) in enumerate(
        zip(spec.stride, spec.effective_kernel_size, spec.padding, strict=True)
    ):
        # Enough for one output pixel, and some more, so many that axes of one geometry differ.
        sizes.append(max(1, math.ceil((b + e - big_k + 1) / s) + 1) + 3 + axis)
    return tuple(sizes)
