"""What a replaced layer still shows of its parameters: to be read, and an error where it is written to.

The trained numbers lie in another order in the new layer, so the old layout is computed when somebody asks
for it. Writing into that result would be without effect, and without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["refuse_to_set", "shown"]

_READS = ("requires_grad_",)


def shown(value: Tensor, where: str) -> Tensor:
    """A tensor that is read like any other, and raises where it is changed in place.

    Args:
        value: The numbers.
        where: The parameter that holds them, for the error.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return value  # a graph has no place for the error, nor for classes of tensors
    try:
        result = value.as_subclass(_Shown)
    except RuntimeError:
        if torch.__version__ >= "2.6":
            raise
        return value  # before, a run that is watched (by a TorchDispatchMode) had no such classes either
    result.place = where
    return result


class _Shown(Tensor):
    """See `shown`. What is computed from it is an ordinary tensor."""

    place: str = ""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        written = [*args[:1], kwargs.get("out"), kwargs.get("tensor"), kwargs.get("input")]
        target = next((value for value in written if isinstance(value, cls)), None)
        if target is not None and _writes(func, kwargs):
            raise RuntimeError(
                "this weight is shown in the layout of the layer that was replaced, and writing to it "
                f"changes nothing; write to `{target.place}`, or change the model before it is converted"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if target is not None and _is_alias(func):
            result = result.as_subclass(cls)
            result.place = target.place
        return result


def _writes(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Whether a function changes what it is given: torch ends the names of such functions with a line."""
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__") and name not in _READS
    operators = name == "__setitem__" or (name.startswith("__i") and name.endswith("__"))
    operators = operators and name not in ("__invert__", "__index__", "__int__")
    setter = name == "__set__" and "data" in str(getattr(func, "__self__", ""))
    return in_place or operators or setter or isinstance(kwargs.get("out"), _Shown)


def _is_alias(func: Callable[..., Any]) -> bool:
    """Whether the result is the same memory: writing to that would be without effect as well."""
    name = getattr(func, "__name__", "")
    return name == "detach" or (name == "__get__" and "data" in str(getattr(func, "__self__", "")))


def refuse_to_set(name: str, where: str) -> None:
    """Raises for an assignment to a parameter of the replaced layer.

    Raises:
        AttributeError: Always.
    """
    raise AttributeError(
        f"`{name}` of a converted layer shows the replaced layer's parameter and cannot be set; "
        f"set `{where}`, or change the model before it is converted"
    )
