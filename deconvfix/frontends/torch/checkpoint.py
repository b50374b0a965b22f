"""Checkpoint files: state dicts read without running anything in them, written with their recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deconvfix.errors import CheckpointError
from deconvfix.frontends.torch.find import is_uninitialized
from deconvfix.frontends.torch.frontend import FRONTEND
from deconvfix.plan import Plan

__all__ = [
    "SUFFIXES",
    "Checkpoint",
    "load",
    "load_state",
    "read",
    "recipe_path",
    "restore",
    "stored_dtypes",
    "write",
]

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
RECIPE_KEY = "deconvfix.recipe"
# Where training codes put the weights, the best ones first.
_STATE_KEYS = (
    "params_ema",
    "g_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "params",
    "generator",
    "netG",
    "net",
    "weights",
)
# A recipe is small; a larger file beside a checkpoint is something else.
_LARGEST_RECIPE = 2**26


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        path: The file.
        state: The state dict, names as in the file.
        state_key: Dotted path of the state dict inside the file, "" if it is the whole file.
        left_out: Other entries of the file, such as the optimizer's state.
        recipe: The plan that the checkpoint's model was converted with, if it was.
    """

    path: Path
    state: dict[str, Tensor]
    state_key: str
    left_out: tuple[str, ...]
    recipe: Plan | None


def read(path: str | os.PathLike[str], state_key: str | None = None) -> Checkpoint:
    """Reads a checkpoint; nothing in it is executed.

    Args:
        path: A .safetensors, .pt, .pth or .ckpt file.
        state_key: Dotted path of the state dict in a nested file; by default the usual names are
            tried.

    Raises:
        CheckpointError: If there is no state dict that can be read as data.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            str(path), "there is no such file", "a checkpoint file is needed", "Correct the path"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            str(path),
            f"the suffix is {path.suffix!r}",
            f"one of {', '.join(SUFFIXES)} is needed",
            "Rename the file if it is such a checkpoint",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise CheckpointError(
            str(path),
            f"it cannot be read as data ({type(error).__name__}: {reason})",
            "a file of tensors and plain values is needed; nothing else is executed",
            "Save the model's state_dict() alone, best as .safetensors",
        ) from error
    state, key, left_out = _find_state(path, content, state_key)
    return Checkpoint(path, state, key, left_out, _recipe_beside(path))


def load_state(model: nn.Module, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Loads a state dict into a model, in place; a common prefix of the names is taken off.

    Returns:
        Names in the checkpoint that the model does not have.

    Raises:
        CheckpointError: If entries are missing or have other shapes.
    """
    if any(map(is_uninitialized, model.modules())):
        raise CheckpointError(
            str(checkpoint.path),
            f"{type(model).__name__} has lazy layers without a shape",
            "an architecture with all its shapes is needed",
            "Run the model once before loading",
        )
    expected = model.state_dict()
    prefix = _prefix(checkpoint.state, expected)
    state = {
        name[len(prefix) :]: value
        for name, value in checkpoint.state.items()
        if name.startswith(prefix)
    }
    missing = [name for name in expected if name not in state]
    wrong = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or wrong:
        problem = (
            f"{len(missing)} entries are missing ({', '.join(missing[:3])})" if missing else ""
        )
        shapes = f"{len(wrong)} have other shapes ({'; '.join(wrong[:3])})" if wrong else ""
        raise CheckpointError(
            str(checkpoint.path),
            " and ".join(filter(None, (problem, shapes))),
            f"the state dict of {type(model).__name__} is needed",
            "Check the architecture and its arguments, or choose another entry with the state key",
        )
    model.load_state_dict({name: state[name] for name in expected}, strict=True)
    used = {prefix + name for name in expected}
    return tuple(name for name in checkpoint.state if name not in used)


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    state_key: str | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Rebuilds the converted architecture around a model and loads a checkpoint into it.

    Args:
        path: A checkpoint that `deconvfix convert` wrote (one without a recipe is loaded as it is).
        model: The original architecture; its weights do not matter.
        state_key: See `read`.
        inplace: Change `model` itself.

    Returns:
        The converted model with the checkpoint's weights.

    Raises:
        CheckpointError: If the file cannot be read, or does not belong to this architecture.
        ModelError: If the recipe names layers that the model does not have.
    """
    return restore(read(path, state_key), FRONTEND.prepare(model, None, inplace=inplace))


def restore(checkpoint: Checkpoint, model: nn.Module) -> nn.Module:
    """What `load` does, for a checkpoint that is read and a model that may be changed."""
    if checkpoint.recipe is not None:
        model = FRONTEND.apply(model, checkpoint.recipe)
    load_state(model, checkpoint)
    return model


def write(
    path: Path,
    model: nn.Module,
    recipe: Plan,
    source: Checkpoint | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Writes the state dict of a converted model with its recipe.

    Args:
        path: .safetensors (the recipe goes into its metadata), or .pt, .pth, .ckpt (the recipe goes
            into a file beside it; the state dict is nested as in `source`).
        model: The converted model.
        recipe: The plan that leads from the original architecture to it.
        source: The original checkpoint.
        dtypes: See `stored_dtypes`.
    """
    state = {
        name: value.detach().cpu().to((dtypes or {}).get(name, value.dtype))
        for name, value in model.state_dict().items()
    }
    if path.suffix == ".safetensors":
        # Tied entries share memory, which the format does not have.
        own = {name: value.contiguous().clone() for name, value in state.items()}
        save_file(own, path, metadata={"format": "pt", RECIPE_KEY: recipe.to_json()})
        return
    nested: Any = state
    for key in reversed(source.state_key.split(".") if source and source.state_key else []):
        nested = {key: nested}
    torch.save(nested, path)
    recipe_path(path).write_text(recipe.to_json(), encoding="utf-8")


def stored_dtypes(
    source: Checkpoint, before: Mapping[str, Tensor], after: Mapping[str, Tensor], plan: Plan
) -> dict[str, torch.dtype]:
    """The dtype of each entry of a converted model, as the original file stored it.

    Args:
        source: The original file.
        before: State dict of the model that the file was loaded into.
        after: State dict of the converted model.
        plan: What was converted; new entries have the dtype of the entry they come from.
    """
    prefix = _prefix(source.state, before)
    origins = {}
    for layer in plan.replaced:
        path = f"{layer.name}." if layer.name else ""
        origins[f"{path}conv.weight"] = f"{path}weight"
        origins[f"{path}conv.bias"] = origins[f"{path}add_bias.bias"] = f"{path}bias"
    found = {name: source.state.get(prefix + origins.get(name, name)) for name in after}
    return {name: tensor.dtype for name, tensor in found.items() if tensor is not None}


def recipe_path(path: Path) -> Path:
    """The recipe beside a .pt, .pth or .ckpt file."""
    return path.with_name(f"{path.name}.recipe.json")


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            str(path),
            f"it cannot be read ({error})",
            "a safetensors file is needed",
            "Check that the file is complete",
        ) from error
    recipe = metadata.get(RECIPE_KEY)
    return Checkpoint(path, state, "", (), None if recipe is None else Plan.from_json(recipe))


def _recipe_beside(path: Path) -> Plan | None:
    beside = recipe_path(path)
    if not beside.is_file() or beside.stat().st_size > _LARGEST_RECIPE:
        return None
    try:
        return Plan.from_json(beside.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(
            str(beside),
            f"it is not text ({error.reason})",
            "the recipe of the checkpoint is needed",
            "Remove the file if the checkpoint was not converted",
        ) from error


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(tensor, Tensor) for tensor in value.values())
        and all(isinstance(key, str) for key in value)
    )


def _find_state(
    path: Path, content: Any, state_key: str | None
) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    if state_key:
        value = content
        for part in state_key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not _is_state(value):
            raise CheckpointError(
                str(path),
                f"there is no state dict under {state_key!r}",
                "the state key must lead to a dict of tensors",
                f"Choose from: {', '.join(_state_paths(content)) or 'nothing: the file has none'}",
            )
        return dict(value), state_key, _others(content, state_key)
    if _is_state(content):
        return dict(content), "", ()
    paths = _state_paths(content)
    ranked = sorted(
        (path for path in paths if path.split(".")[-1] in _STATE_KEYS),
        key=lambda path: _STATE_KEYS.index(path.split(".")[-1]),
    )
    chosen = ranked[0] if ranked else (paths[0] if len(paths) == 1 else None)
    if chosen is None:
        raise CheckpointError(
            str(path),
            f"it holds {len(paths)} dicts of tensors ({', '.join(paths[:5])})",
            "it must be clear which one is the model",
            "Name it with the state key (--state-key)",
        )
    return _find_state(path, content, chosen)


def _state_paths(content: Any, prefix: str = "", depth: int = 3) -> list[str]:
    """Dotted paths of all dicts of tensors, the outer ones first."""
    if not isinstance(content, Mapping) or depth == 0:
        return []
    found = []
    for key, value in content.items():
        if isinstance(key, str) and _is_state(value):
            found.append(f"{prefix}{key}")
        elif isinstance(key, str):
            found += _state_paths(value, f"{prefix}{key}.", depth - 1)
    return found


def _others(content: Mapping[str, Any], state_key: str) -> tuple[str, ...]:
    first = state_key.split(".")[0]
    return tuple(str(key) for key in content if key != first)


def _prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What stands before all of the model's names in the file: "", "module.", "model.", ..."""
    if not expected:
        return ""
    probe = next(iter(expected))
    candidates = [name.removesuffix(probe) for name in state if name.endswith(probe)]
    candidates = [prefix for prefix in candidates if prefix == "" or prefix.endswith(".")]
    return max(
        candidates or [""],
        key=lambda prefix: (sum(prefix + name in state for name in expected), -len(prefix)),
    )
