"""The kinds of models and files: which front end takes a model, which function opens a file."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from deconvfix.errors import ModelError
from deconvfix.extras import needs
from deconvfix.frontends.base import Frontend, Translates
from deconvfix.plan import Plan

__all__ = [
    "FILES",
    "FRONTENDS",
    "SharesWeights",
    "enter",
    "frontend_of",
    "kept",
    "opened",
]


# Class that a model must have among its ancestors -> module with a FRONTEND. Nothing is imported
# before a model asks for it. The first match counts.
FRONTENDS: tuple[tuple[str, str], ...] = (
    ("torch.fx.graph_module.GraphModule", "deconvfix.frontends.torch.graph"),
    ("torch.nn.modules.module.Module", "deconvfix.frontends.torch.frontend"),
    ("torch.export.exported_program.ExportedProgram", "deconvfix.frontends.program.frontend"),
    ("onnx_ir.Model", "deconvfix.frontends.onnx.frontend"),
    ("onnx.onnx_ml_pb2.ModelProto", "deconvfix.frontends.onnx.proto"),
)


# Suffix of a file that holds a whole model -> module with a function that reads it.
FILES = {
    ".onnx": ("deconvfix.frontends.onnx.file", "read_proto"),
    ".pt2": ("deconvfix.frontends.program.file", "read"),
}


@runtime_checkable
class SharesWeights(Protocol):
    """A front end that can keep an original without a second copy of its weights."""

    def snapshot(self, model: Any, original: Any) -> Any:
        """A copy of the same parameters, good for as long as nothing writes to them.

        Args:
            model: What is converted.
            original: What it is a copy of, or the same: its parameters are shared where it has them all.
        """
        ...


def kept(frontend: Frontend, model: Any, original: Any, plan: Plan) -> Any:
    """A model as it is now, for what looks at it after the plan was carried out on it."""
    # Exact forms write to no parameter.
    exact = bool(plan.replaced) and all(layer.target.is_exact for layer in plan.replaced)
    if exact and isinstance(frontend, SharesWeights):
        return frontend.snapshot(model, original)
    return frontend.prepare(model, None, inplace=False)


def opened(model: Any) -> Any:
    """The model in a file, if `model` is a path; else the model itself.

    Raises:
        ModelError: If the file cannot be read, or holds no whole model.
    """
    if not isinstance(model, (str, os.PathLike)):
        return model
    path = Path(model)
    if path.suffix not in FILES:
        raise ModelError(
            str(path),
            f"the suffix is {path.suffix!r}",
            f"a file that holds a whole model is needed: {', '.join(FILES)}",
            "For a checkpoint, build the model and load the weights (deconvfix.load)",
        )
    module, function = FILES[path.suffix]
    with needs("torch", str(path)):
        read = getattr(importlib.import_module(module), function)
    return read(path)


def enter(model: Any) -> tuple[Frontend, Any]:
    """The front end for a model, and the model as the front end works on it.

    Args:
        model: A model of some kind, or the path of a file that holds one.

    Raises:
        ModelError: If there is no such front end, or the model cannot be read.
    """
    model = opened(model)
    frontend = frontend_of(model)
    return frontend, frontend.enter(model) if isinstance(frontend, Translates) else model


def frontend_of(model: Any) -> Frontend:
    """The front end for a model's kind.

    Raises:
        ModelError: If there is none.
    """
    # By name, so that no library is imported to ask for its classes.
    ancestors = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__}
    for name, module in FRONTENDS:
        if name in ancestors:
            with needs("torch", "model"):
                frontend: Frontend = importlib.import_module(module).FRONTEND
            return frontend
    raise ModelError(
        "model",
        f"it is a {type(model).__module__}.{type(model).__qualname__}",
        "a torch module, graph module or exported program, an ONNX model, or a path is needed",
        "Load the model first, for example with deconvfix.load for a checkpoint",
    )
