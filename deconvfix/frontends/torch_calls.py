"""Transposed convolutions as function calls: recognised, observed while a model runs, rerouted.

`torch.nn.functional.conv_transpose2d`, the aten operators behind it and `torch.convolution` with
`transposed=True` all pass a `TorchFunctionMode`, under autograd, torch.compile, torch.export and
torch.fx alike. So a call is converted where it happens, whatever computed its weight.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deconvfix.forms.base import Refusal
from deconvfix.frontends import torch_steps
from deconvfix.spec import ConvTransposeSpec

__all__ = [
    "Call",
    "Observed",
    "Reroute",
    "Rerouted",
    "Untouched",
    "callers_by_code",
    "dtype_obstacle",
    "is_rerouted",
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
        """Keyword arguments for `torch_steps.conv_transpose`."""
        return {name: getattr(self, name) for name in _SIGNATURE}

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
            f"its weight is complex ({_name(tensor.dtype)})",
            "real numbers are supported",
            "Keep this layer (exclude it), or run real and imaginary parts as two layers",
        )
    if tensor.is_quantized:
        return Refusal(
            f"its weight is quantised ({_name(tensor.dtype)})",
            "floating-point weights are supported",
            "Convert the model before quantising it",
        )
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Reroute(TorchFunctionMode):
    """Runs every transposed convolution inside it as a sub-pixel convolution.

    Args:
        excluded: Geometries to leave as they are.
    """

    def __init__(self, excluded: frozenset[ConvTransposeSpec] = frozenset()) -> None:
        super().__init__()
        self.excluded = excluded

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        call = parse(func, args, kwargs or {})
        if call is None or (isinstance(call.weight, Tensor) and dtype_obstacle(call.weight)):
            return func(*args, **(kwargs or {}))
        if self.excluded and call.spec() in self.excluded:
            return func(*args, **(kwargs or {}))
        return torch_steps.conv_transpose(**call.arguments)


class Rerouted:
    """Stands in as the `forward` of one module, which keeps its class, parameters and names.

    An attribute of the instance, so that it is copied, pickled and exported with the module.
    """

    def __init__(
        self, module: nn.Module, excluded: frozenset[ConvTransposeSpec] = frozenset()
    ) -> None:
        self.module = module
        self.excluded = excluded

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's own forward, rerouted."""
        with Reroute(self.excluded):
            return type(self.module).forward(self.module, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """Of the module's own forward: torch.export reads the names of the inputs from it."""
        return inspect.signature(type(self.module).forward.__get__(self.module))

    @property
    def __code__(self) -> CodeType:
        """Of the module's own forward: torch.export names the source of the inputs by it."""
        return type(self.module).forward.__code__


class Untouched(Rerouted):
    """Keeps one excluded layer as it is inside a module that is rerouted."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's own forward, out of reach of the modes around it."""
        with torch._C.DisableTorchFunction():
            return type(self.module).forward(self.module, *args, **kwargs)


def is_rerouted(module: nn.Module) -> bool:
    """Whether the transposed convolutions of this module run as sub-pixel convolutions already."""
    forward = vars(module).get("forward")
    return isinstance(forward, Rerouted) and not isinstance(forward, Untouched)


@dataclass(frozen=True)
class Observed:
    """A transposed convolution that ran, and the modules in which it did, the innermost last."""

    stack: tuple[nn.Module, ...]
    call: Call


@contextmanager
def observe(record: Callable[[Observed], None]) -> Iterator[None]:
    """Reports every transposed convolution that runs in the context, before it runs."""
    stack: list[nn.Module] = []

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(module)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        while stack and stack.pop() is not module:
            pass

    class Observe(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            call = parse(func, args, kwargs or {})
            if call is not None:
                record(Observed(tuple(stack), call))
            return func(*args, **(kwargs or {}))

    hooks = (
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    )
    try:
        with Observe():
            yield
    finally:
        for hook in hooks:
            hook.remove()


_FUNCTION_NAMES = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})


def callers_by_code(model: nn.Module) -> list[str]:
    """Names of the modules whose code mentions conv_transpose*: a search without running anything.

    Looks at the methods of each class outside torch, and at functions of the same package that they
    name, three calls deep.
    """
    verdicts: dict[type, bool] = {}
    found = []
    for name, module in model.named_modules():
        cls = type(module)
        if cls not in verdicts:
            verdicts[cls] = any(
                _mentions(function, 3)
                for each in cls.__mro__
                if each.__module__.split(".")[0] != "torch"
                for function in vars(each).values()
            )
        if verdicts[cls]:
            found.append(name)
    return found


def _mentions(function: Any, depth: int) -> bool:
    code, module_globals = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if code is None:
        return False
    names = _all_names(code)
    if names & _FUNCTION_NAMES:
        return True
    package = str(module_globals.get("__name__", "")).split(".")[0]
    for name in names:
        helper = module_globals.get(name)
        same_package = str(getattr(helper, "__module__", "")).split(".")[0] == package
        if depth and inspect.isfunction(helper) and same_package and _mentions(helper, depth - 1):
            return True
    return False


def _all_names(code: CodeType) -> set[str]:
    nested = (_all_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*nested)
