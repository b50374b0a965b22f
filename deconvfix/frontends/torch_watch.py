"""The last check: which transposed convolutions does a model really execute?"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from deconvfix.frontends.torch_inputs import as_inputs, run_model

__all__ = ["executed_transposed_convolutions"]


class _Watch(TorchDispatchMode):
    """Sees every operator below autograd, also those of TorchScript and of custom functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if is_transposed(func, args, kwargs or {}):
            self.seen.append(self.stack[-1] if self.stack else "")
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
    watch = _Watch()
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        # Modules that are not registered count as part of the module that calls them.
        watch.stack.append(names.get(module, watch.stack[-1] if watch.stack else ""))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if watch.stack:
            watch.stack.pop()

    hooks = (
        torch.nn.modules.module.register_module_forward_pre_hook(enter),
        torch.nn.modules.module.register_module_forward_hook(leave, always_call=True),
    )
    try:
        with watch:
            run_model(model, as_inputs(example_inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return watch.seen
