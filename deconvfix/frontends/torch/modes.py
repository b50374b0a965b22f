"""Modes of torch's dispatcher: which transposed convolutions run, and how far rounding moves outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from deconvfix.frontends.torch.inputs import (
    Inputs,
    as_inputs,
    flat_tensors,
    innermost_name,
    names_of,
    run_model,
    running_modules,
)

__all__ = [
    "executed_transposed_convolutions",
    "is_transposed",
    "perturbed_outputs",
]


class _Watch(TorchDispatchMode):
    """Sees every operator below autograd, also those of TorchScript and of custom functions."""

    def __init__(self, stack: list[nn.Module], names: dict[nn.Module, str]) -> None:
        super().__init__()
        self.stack = stack
        self.names = names
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if is_transposed(func, args, kwargs or {}):
            # Modules that are not registered count as part of the module that calls them.
            self.seen.append(innermost_name(self.stack, self.names))
        return func(*args, **(kwargs or {}))


def is_transposed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator of the dispatcher is a transposed convolution (not the gradient of one)."""
    schema = getattr(func, "_schema", None)
    if schema is None or "backward" in schema.name:
        return False
    if "conv_transpose" in schema.name or "convolution_transpose" in schema.name:
        return True
    for position, argument in enumerate(schema.arguments):
        if argument.name == "transposed":
            value = kwargs.get("transposed", args[position] if position < len(args) else False)
            return value is True
    return False


def executed_transposed_convolutions(model: nn.Module, example_inputs: Any) -> list[str]:
    """Names of the modules in which a transposed convolution ran, once for each time.

    The model is run once; pass a copy where that matters (batch statistics).
    """
    with running_modules() as stack:
        watch = _Watch(stack, names_of(model))
        with watch:
            run_model(model, as_inputs(example_inputs))
    return watch.seen


class _MonteCarlo(TorchDispatchMode):
    """Moves the operands and the results of each operation by one eps of their dtype, at random."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        views = any(
            argument.alias_info is not None for argument in (*schema.arguments, *schema.returns)
        )
        real = any(
            isinstance(leaf, Tensor) and leaf.is_floating_point()
            for leaf in pytree.tree_leaves((args, kwargs))
        )
        if views or schema.is_mutable or not real:
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map_only(Tensor, self._moved, (args, kwargs))
        return pytree.tree_map_only(Tensor, self._moved, func(*args, **kwargs))

    def _moved(self, tensor: Tensor) -> Tensor:
        # Single numbers are often sizes: moving them would change what the model does.
        if not tensor.is_floating_point() or tensor.dim() == 0:
            return tensor
        eps = torch.finfo(tensor.dtype).eps
        noise = torch.randn(tensor.shape, generator=self.generator, dtype=torch.float32)
        return tensor + tensor * (eps * noise).to(tensor.dtype)


def perturbed_outputs(model: nn.Module, inputs: Inputs, runs: int = 3) -> list[list[Tensor]]:
    """The outputs of some runs under Monte Carlo arithmetic.

    The model should be in eval mode; it is run as it is.
    """
    results = []
    for seed in range(runs):
        with _MonteCarlo(seed):
            results.append(flat_tensors(run_model(model, inputs)))
    return results
