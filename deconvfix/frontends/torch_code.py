"""Where a model's code calls conv_transpose*, read from the code: a search that runs nothing."""

from __future__ import annotations

import inspect
from types import CodeType
from typing import Any

from torch import nn

__all__ = ["callers_by_code", "mentions_transposed"]

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
                mentions_transposed(function)
                for each in cls.__mro__
                if each.__module__.split(".")[0] != "torch"
                for function in vars(each).values()
            )
        if verdicts[cls]:
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
    nested = (_all_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*nested)
