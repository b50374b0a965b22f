"""What the code of a model says without running: who calls conv_transpose*, and who asks for its class."""

from __future__ import annotations

import inspect
from types import CodeType
from typing import Any

from torch import nn

__all__ = ["asks_for_class", "callers_by_code", "mentions_transposed"]

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
