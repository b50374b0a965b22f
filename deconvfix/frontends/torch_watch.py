"""The last check: which transposed convolutions does a model really execute?"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from deconvfix.frontends.torch_inputs import (
    as_inputs,
    innermost_name,
    names_of,
    run_model,
    running_modules,
)

__all__ = ["executed_transposed_convolutions", "is_transposed"]


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
