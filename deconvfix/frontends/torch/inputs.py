"""Example inputs in one shape, running a model on them without side effects, and its results compared."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from deconvfix.errors import ModelError
from deconvfix.parity.bounds import Comparison, compare_arrays, equal_arrays, psnr
from deconvfix.parity.outputs import Output

__all__ = [
    "Inputs",
    "Reached",
    "as_inputs",
    "as_outputs",
    "compare_tensors",
    "copy_model",
    "copy_quietly",
    "copy_to_run",
    "dtype_name",
    "equal",
    "flat_tensors",
    "innermost_name",
    "input_variants",
    "map_tensors",
    "names_of",
    "psnr_db",
    "psnr_on",
    "quiet_loggers",
    "run_model",
    "running_modules",
    "snapshot",
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
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in _computed(model)}
    return _copied(model, memo)


def copy_to_run(model: nn.Module) -> nn.Module:
    """A copy for one run without gradients: of what a run may change, and not of the parameters.

    Code in train mode may write to parameters (running codebooks): those of modules in train mode are copied.
    """
    memo: dict[int, Any] = {id(value): value.detach() for value in _computed(model)}
    training = {
        id(parameter)
        for module in model.modules()
        if module.training
        for parameter in module.parameters(recurse=False)
    }
    memo |= {id(p): p for p in model.parameters() if id(p) not in training}
    return _copied(model, memo)


def snapshot(model: nn.Module, original: nn.Module) -> nn.Module:
    """A copy to run, of the original's parameters; of the model's where there are none yet.

    Args:
        model: What is converted.
        original: What it is a copy of, or the same. Its lazy layers have no parameters yet.
    """
    lazy = any(is_lazy(parameter) for parameter in original.parameters())
    return copy_to_run(model if lazy else original)


def _computed(model: nn.Module) -> Iterator[Tensor]:
    """Tensors with a gradient history that modules hold as attributes."""
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                yield value


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
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
    # A model that works in place must not change what the next run gets.
    inputs = map_tensors(lambda tensor: tensor.clone(), inputs)
    # Without CUDA in use its random state is not forked, which would start CUDA.
    accelerators = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        # What torch.compile has made of a module is run as the module: a search sees what it calls.
        # Before torch 2.6 it runs compiled.
        set_stance = getattr(torch.compiler, "set_stance", None)
        eager = set_stance("force_eager") if set_stance else nullcontext()
        with torch.random.fork_rng(devices=accelerators), torch.no_grad(), eager:
            # Dropout or noise in forward must be the same for the models that are compared.
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
        # A forward that raised may have left modules behind, above the one that ends now.
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
        # Modules and classes are no results, and their attributes have no end.
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


# --- results ------------------------------------------------------------------------------------


def compare_tensors(
    what: str, inputs: str, actual: Tensor, expected: Tensor, rounding: Tensor | float
) -> Comparison:
    """`parity.bounds.compare_arrays` for tensors of any dtype and device."""
    bound = _array(rounding) if isinstance(rounding, Tensor) else rounding
    return compare_arrays(what, inputs, _array(actual), _array(expected), bound)


def as_outputs(tensors: Sequence[Tensor]) -> list[Output]:
    """Tensors for `parity.outputs`; complex ones as pairs of real numbers, (.., 2)."""
    return [_output(tensor) for tensor in tensors]


def _output(tensor: Tensor) -> Output:
    if tensor.is_complex():
        # NumPy's comparisons of real numbers apply to the two parts.
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point():
        return Output(_array(tensor))
    info = torch.finfo(tensor.dtype)
    return Output(_array(tensor), info.eps, info.tiny)


def psnr_db(before: nn.Module, after: nn.Module, example_inputs: object) -> float | None:
    """`parity.bounds.psnr` of two models' outputs."""
    return psnr_on(before, after, [as_inputs(example_inputs)])


def psnr_on(before: nn.Module, after: nn.Module, batches: Sequence[Inputs]) -> float | None:
    """`parity.bounds.psnr` of two models' outputs on several batches, all together."""
    old, new = (
        [
            _array(output)
            # On a copy, as buffers may change in a run.
            for running in [copy_model(model)]
            for inputs in batches
            for output in flat_tensors(run_model(running, inputs))
        ]
        for model in (before, after)
    )
    return psnr(old, new)


def input_variants(example: Inputs) -> list[tuple[str, Inputs]]:
    """The example, and floating-point inputs of its shapes: seeded noise, a constant, zeros."""
    generator = torch.Generator().manual_seed(1)

    def noise(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        # Drawn on the CPU in float64, so that all dtypes and devices get the same noise.
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return drawn.to(tensor)

    def constant(tensor: Tensor) -> Tensor:
        return torch.full_like(tensor, 0.5) if tensor.is_floating_point() else tensor

    def zeros(tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor) if tensor.is_floating_point() else tensor

    return [
        ("example inputs", example),
        ("seeded noise", map_tensors(noise, example)),
        ("a constant", map_tensors(constant, example)),
        ("zeros", map_tensors(zeros, example)),
    ]


def equal(one: Tensor, other: Tensor) -> bool:
    """Equality where NaN equals NaN."""
    return equal_arrays(_array(one), _array(other))


def _array(tensor: Tensor) -> NDArray[Any]:
    """The values in NumPy; floats that NumPy does not have become float64, which holds them all."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    own = tensor.dtype in (torch.float64, torch.float32, torch.float16)
    if tensor.is_floating_point() and not own:
        tensor = tensor.double()
    array: NDArray[Any] = tensor.numpy()
    return array
