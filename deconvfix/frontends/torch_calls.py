"""Transposed convolutions as function calls: recognised, and observed while a model runs.

`torch.nn.functional.conv_transpose2d`, the aten operators behind it and `torch.convolution` with
`transposed=True` all pass a `TorchFunctionMode`, under autograd, torch.compile, torch.export and
torch.fx alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    "dtype_obstacle",
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


@dataclass(frozen=True)
class Observed:
    """A transposed convolution that ran, and the modules in which it did, the innermost last."""

    stack: tuple[nn.Module, ...]
    call: Call


@contextmanager
def observe(
    record: Callable[[Observed], None],
    touch: Callable[[nn.Module | None, Tensor], None] | None = None,
) -> Iterator[None]:
    """Reports every transposed convolution that runs in the context, before it runs.

    Args:
        record: Called for each one.
        touch: Called for each parameter that an operation gets, with the innermost module.
    """
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
            if touch is not None:
                for value in (*args, *(kwargs or {}).values()):
                    if isinstance(value, nn.Parameter):
                        touch(stack[-1] if stack else None, value)
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
