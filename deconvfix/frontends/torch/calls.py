"""Transposed convolutions as function calls: recognised, and observed while a model runs.

`torch.nn.functional.conv_transpose2d`, the aten operators behind it and `torch.convolution` with
`transposed=True` all pass a `TorchFunctionMode`, under autograd, torch.compile, torch.export and
torch.fx alike. What TorchScript and custom functions run passes a `TorchDispatchMode` alone, which is how
a converted model is searched for what is left.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.errors import Refusal
from deconvfix.frontends.torch import steps as torch_steps
from deconvfix.frontends.torch.inputs import (
    as_inputs,
    dtype_name,
    innermost_name,
    names_of,
    run_model,
    running_modules,
)

__all__ = [
    "GEOMETRY",
    "PADDING_ARGUMENT",
    "Call",
    "Observed",
    "asks_for_class",
    "callers_by_code",
    "dtype_obstacle",
    "executed_transposed_convolutions",
    "is_transposed",
    "mentions_transposed",
    "observe",
    "parse",
]

_aten = torch.ops.aten
_SIGNATURE = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "output_padding",
    "groups",
    "dilation",
)
_CONVOLUTION_SIGNATURE = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "dilation",
    "transposed",
    "output_padding",
    "groups",
)
# Elements of a weight that are taken at once where it is large: 16 MB in float64.
_AT_ONCE = 2**21
# What is said of the geometry besides the shape of the weight.
GEOMETRY = ("stride", "padding", "output_padding", "groups", "dilation")
# Its position in both.
PADDING_ARGUMENT = 4
_FUNCTIONS: dict[Any, str] = {
    function: f"conv_transpose{ndim}d"
    for ndim, functions in {
        1: (torch.conv_transpose1d, _aten.conv_transpose1d, _aten.conv_transpose1d.default),
        2: (torch.conv_transpose2d, _aten.conv_transpose2d, _aten.conv_transpose2d.input),
        3: (torch.conv_transpose3d, _aten.conv_transpose3d, _aten.conv_transpose3d.input),
    }.items()
    for function in functions
}
_CONVOLUTIONS: dict[Any, str] = {
    function: "convolution"
    for function in (torch.convolution, _aten.convolution, _aten.convolution.default)
}


@dataclass(frozen=True)
class Call:
    """The arguments of one transposed convolution, under the names of torch.conv_transpose2d."""

    function: str
    input: Any
    weight: Any
    bias: Any = None
    stride: Any = 1
    padding: Any = 0
    output_padding: Any = 0
    groups: Any = 1
    dilation: Any = 1

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `steps.conv_transpose`."""
        return {name: getattr(self, name) for name in _SIGNATURE}

    @property
    def is_large(self) -> bool:
        """Whether its weight is taken in parts. One with groups never is."""
        return int(self.groups) == 1 and self.weight.numel() > _AT_ONCE

    def parts(self) -> Iterator[tuple[Call, slice]]:
        """The same call for some output channels at a time, and for which; they do not depend on each other.

        In float64 the weight of one layer may take as much memory as the rest of its model.
        """
        c_in, count, *taps = self.weight.shape
        step = max(1, _AT_ONCE // (c_in * math.prod(taps))) if self.is_large else count
        for first in range(0, count, step):
            channels = slice(first, min(first + step, count))
            whole = step == count or self.bias is None
            bias = self.bias if whole else self.bias[channels]
            yield replace(self, weight=self.weight[:, channels], bias=bias), channels

    def wide(self) -> Call:
        """The same call in float64."""
        bias = None if self.bias is None else self.bias.double()
        return replace(self, input=self.input.double(), weight=self.weight.double(), bias=bias)

    def spec(self) -> ConvTransposeSpec:
        """Its geometry; the arguments must be real tensors and numbers."""
        c_in, per_group, *kernel_size = (int(n) for n in self.weight.shape)
        ndim = len(kernel_size)
        return ConvTransposeSpec.create(
            c_in,
            per_group * int(self.groups),
            kernel_size,
            stride=torch_steps.per_axis(self.stride, ndim),
            padding=torch_steps.per_axis(self.padding, ndim),
            output_padding=torch_steps.per_axis(self.output_padding, ndim),
            dilation=torch_steps.per_axis(self.dilation, ndim),
            groups=int(self.groups),
            bias=self.bias is not None,
        )


def parse(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """The call, if `function` is a transposed convolution."""
    # The two families of operators have their arguments in different orders.
    if function in _FUNCTIONS:
        bound = dict(zip(_SIGNATURE, args, strict=False)) | kwargs
        return Call(_FUNCTIONS[function], **bound)
    if function in _CONVOLUTIONS:
        bound = dict(zip(_CONVOLUTION_SIGNATURE, args, strict=False)) | kwargs
        if bound.pop("transposed", False) is True:
            return Call(_CONVOLUTIONS[function], **bound)
    return None


def dtype_obstacle(tensor: Tensor) -> Refusal | None:
    """Why tensors of this dtype are not converted."""
    if tensor.dtype.is_complex:
        return Refusal(
            f"its weight is complex ({dtype_name(tensor)})",
            "real numbers are supported",
            "Keep this layer (exclude it), or run real and imaginary parts as two layers",
        )
    if tensor.is_quantized:
        return Refusal(
            f"its weight is quantised ({dtype_name(tensor)})",
            "floating-point weights are supported",
            "Convert the model before quantising it",
        )
    return None


@dataclass(frozen=True)
class Observed:
    """A transposed convolution that ran, and the modules in which it did, the innermost last."""

    stack: tuple[nn.Module, ...]
    call: Call


# Attributes of tensors that tell nothing of their values.
_METADATA = ("device", "dtype", "is_leaf", "layout", "ndim", "requires_grad", "shape")
Record = Callable[[Observed], None]
Touch = Callable[[nn.Module | None, Tensor], None]


class _Observe(TorchFunctionMode):
    def __init__(self, stack: list[nn.Module], record: Record, touch: Touch | None) -> None:
        super().__init__()
        self.stack = stack
        self.record = record
        self.touch = touch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Recorded before it runs: an operation in place may change the operands afterwards.
        call = parse(func, args, kwargs or {})
        if call is not None:
            self.record(Observed(tuple(self.stack), call))
        # A question about a parameter's kind is no use of its values.
        asks = getattr(getattr(func, "__self__", None), "__name__", "") in _METADATA
        if self.touch is not None and not asks:
            for value in (*args, *(kwargs or {}).values()):
                if isinstance(value, nn.Parameter):
                    self.touch(self.stack[-1] if self.stack else None, value)
        return func(*args, **(kwargs or {}))


@contextmanager
def observe(record: Record, touch: Touch | None = None) -> Iterator[None]:
    """Reports every transposed convolution that runs in the context, before it runs.

    Args:
        record: Called for each one.
        touch: Called for each parameter that an operation gets, with the innermost module.
    """
    with running_modules() as stack, _Observe(stack, record, touch):
        yield


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
    return _seen_by(_Watch, model, example_inputs)


def _seen_by(kind: Any, model: nn.Module, example_inputs: Any) -> list[Any]:
    """What a mode has noted in `seen` after one run of a model."""
    with running_modules() as stack:
        watch = kind(stack, names_of(model))
        with watch:
            run_model(model, as_inputs(example_inputs))
    seen: list[Any] = watch.seen
    return seen


# --- by reading code ----------------------------------------------------------------------------

_FUNCTION_NAMES = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})


def callers_by_code(model: nn.Module) -> list[str]:
    """Names of the modules whose code mentions conv_transpose*: a search without running anything.

    Looks at the methods of each class outside torch, and at functions of the same package that they
    name, three calls deep.
    """
    verdicts: dict[type, bool] = {}
    found = []
    # One look at each class, however many modules are of it.
    for name, module in model.named_modules():
        cls = type(module)
        # One verdict for each class: models repeat the same blocks many times.
        if cls not in verdicts:
            verdicts[cls] = any(
                mentions_transposed(function)
                for base in cls.__mro__
                if base.__module__.split(".")[0] != "torch"
                for function in vars(base).values()
            )
        if verdicts[cls]:
            found.append(name)
    return found


def asks_for_class(model: nn.Module) -> list[str]:
    """Names of the modules whose code, besides building them, asks whether a layer is a ConvTranspose.

    What such code does with a converted layer is another branch.
    """
    found = []
    for name, module in model.named_modules():
        methods = [
            getattr(function, "__code__", None)
            for base in type(module).__mro__
            if base.__module__.split(".")[0] not in ("torch", "deconvfix")
            for method, function in vars(base).items()
            if method != "__init__"
        ]
        names = [_all_names(code) for code in methods if code is not None]
        if any(
            used & {"isinstance", "type"} and any(n.startswith("ConvTranspose") for n in used)
            for used in names
        ):
            found.append(name)
    return found


def mentions_transposed(function: Any, depth: int = 3) -> bool:
    """Whether a function's code, or a helper's of the same package, names conv_transpose*."""
    code, module_globals = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if code is None:
        return False
    names = _all_names(code)
    if names & _FUNCTION_NAMES:
        return True
    package = str(module_globals.get("__name__", "")).split(".")[0]
    for name in names:
        helper = module_globals.get(name)
        # A helper of another package is a library's, and no code of the model.
        same_package = str(getattr(helper, "__module__", "")).split(".")[0] == package
        if (
            depth
            and inspect.isfunction(helper)
            and same_package
            and mentions_transposed(helper, depth - 1)
        ):
            return True
    return False


def _all_names(code: CodeType) -> set[str]:
    # Lambdas, comprehensions and inner functions are constants of the code around them.
    nested = (_all_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*nested)
