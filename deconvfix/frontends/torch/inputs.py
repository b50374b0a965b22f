"""Example inputs in one shape, and running a model on them without side effects."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deconvfix.errors import ModelError

__all__ = [
    "Inputs",
    "Reached",
    "as_inputs",
    "copy_model",
    "copy_quietly",
    "dtype_name",
    "flat_tensors",
    "innermost_name",
    "map_tensors",
    "names_of",
    "quiet_loggers",
    "run_model",
    "running_modules",
]

Copied = TypeVar("Copied")


class Inputs(NamedTuple):
    """Positional and keyword arguments of a model's forward."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Reached(BaseException):
    """Ends a run after the last layer that is of interest; no error, so `run_model` lets it pass."""


def as_inputs(example_inputs: Any) -> Inputs:
    """Reads a tensor, a tuple of positional inputs, a dict of keyword inputs, or a pair of both."""
    if isinstance(example_inputs, Inputs):
        return example_inputs
    if isinstance(example_inputs, dict):
        return Inputs((), dict(example_inputs))
    if isinstance(example_inputs, list):
        return Inputs(tuple(example_inputs), {})
    if not isinstance(example_inputs, tuple):
        return Inputs((example_inputs,), {})
    if (
        len(example_inputs) == 2
        and isinstance(example_inputs[0], tuple)
        and isinstance(example_inputs[1], dict)
    ):
        return Inputs(example_inputs[0], dict(example_inputs[1]))
    return Inputs(example_inputs, {})


def copy_quietly(value: Copied, memo: dict[int, Any]) -> Copied:
    """A deep copy, without the warnings of torch about a class of its own in exported modules."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        return copy.deepcopy(value, memo)


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy.

    Old-style weight_norm leaves its computed weight behind as a tensor with a gradient history, for
    which torch has no deep copy; it is computed again at the next call, so its values are enough.
    """
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        return copy_quietly(model, memo)
    except Exception as error:
        raise ModelError(
            type(model).__name__,
            f"the model cannot be copied ({type(error).__name__}: {error})",
            "deconvfix works on a copy",
            "Pass inplace=True to convert the model itself, or make it support copy.deepcopy",
        ) from error


def run_model(model: nn.Module, inputs: Inputs) -> Any:
    """Runs the model without gradients, with a fixed seed, and leaves the random state alone.

    Raises:
        ModelError: If the model does not accept the inputs.
    """
    inputs = map_tensors(lambda tensor: tensor.clone(), inputs)
    accelerators = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=accelerators), torch.no_grad():
            torch.manual_seed(0)
            return model(*inputs.args, **inputs.kwargs)
    except Exception as error:
        shapes = [tuple(tensor.shape) for tensor in flat_tensors(inputs)]
        raise ModelError(
            type(model).__name__,
            f"it cannot be run on inputs of shapes {shapes} ({type(error).__name__}: {error})",
            "example inputs must be what the model's forward takes",
            "Correct the example inputs",
        ) from error


@contextmanager
def running_modules() -> Iterator[list[nn.Module]]:
    """A list that always holds the modules whose forward is running, the innermost last."""
    stack: list[nn.Module] = []

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        while stack and stack.pop() is not module:
            pass

    hooks = (
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield stack
    finally:
        for hook in hooks:
            hook.remove()


def innermost_name(stack: Sequence[nn.Module], names: Mapping[nn.Module, str]) -> str:
    """The name of the innermost module that has one; the root's, "", if none has."""
    return next((names[module] for module in reversed(stack) if module in names), "")


def names_of(model: nn.Module) -> dict[nn.Module, str]:
    """The name of each registered module, the first one of those that have several."""
    return {module: name for name, module in model.named_modules()}


def dtype_name(tensor: Tensor) -> str:
    """The dtype in torch's words, without "torch."."""
    return str(tensor.dtype).removeprefix("torch.")


def flat_tensors(value: Any) -> list[Tensor]:
    """All tensors in a nested value, in a fixed order; unknown objects are searched by attribute."""
    return list(_tensors(value, set()))


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type | nn.Module):
            # Output classes that pytree does not know, such as plain dataclasses.
            if id(leaf) in seen:
                continue
            seen.add(id(leaf))
            yield from _tensors(list(vars(leaf).values()), seen)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same nested value with the function applied to each tensor."""
    return pytree.tree_map_only(Tensor, function, value)


@contextmanager
def quiet_loggers(*names: str, level: int) -> Iterator[None]:
    """Without what torch warns of about its own internals; what matters comes as an error.

    Args:
        names: Of the loggers that are quiet.
        level: From which on they still log.
    """
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(level)
        try:
            yield
        finally:
            for logger, old in zip(loggers, levels, strict=True):
                logger.setLevel(old)
