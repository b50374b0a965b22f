"""State dicts inside what a checkpoint file holds: found, and put back."""

from __future__ import annotations

import copy
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deconvfix.errors import CheckpointError

__all__ = ["find_state", "nested", "objects_in", "prefix_of"]

_MOST_OBJECTS = 4
_LARGEST_PICKLE = 2**26
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


def nested(content: Any, keys: list[str], state: dict[str, Tensor]) -> Any:
    """What a file holds, with another state dict under a path of keys; nothing else without a file."""
    if not isinstance(content, Mapping):
        content = {}
    content = copy.copy(content)  # the original is needed as it is
    if keys:
        content[keys[0]] = nested(content.get(keys[0]), keys[1:], state)
    else:
        content.update(state)
    return content


def is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(tensor, Tensor) for tensor in value.values())
        and all(isinstance(key, str) for key in value)
    )


def find_state(
    path: Path, content: Any, state_key: str | None
) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """The state dict of a model in the content of a file.

    Args:
        path: The file, for errors.
        content: What is in it.
        state_key: Dotted path of the state dict; without one the usual names are tried.

    Returns:
        The state dict, its path, and the names of other entries at the top.

    Raises:
        CheckpointError: If there is none, or it is not clear which one is meant.
    """
    if state_key:
        value = content
        for part in state_key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not is_state(value):
            raise CheckpointError(
                str(path),
                f"there is no state dict under {state_key!r}",
                "the state key must lead to a dict of tensors",
                f"Choose from: {', '.join(_state_paths(content)) or 'nothing: the file has none'}",
            )
        return dict(value), state_key, _others(content, state_key)
    if is_state(content):
        return dict(content), "", ()
    # Nested: the names that training codes use for the best weights go first.
    paths = _state_paths(content)
    # Averaged weights (EMA) go before those of the last step: they are what users deploy.
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
    # With a path the first branch answers, so this recursion ends after one step.
    return find_state(path, content, chosen)


def _state_paths(content: Any, prefix: str = "", depth: int = 3) -> list[str]:
    """Dotted paths of all dicts of tensors, the outer ones first."""
    if not isinstance(content, Mapping) or depth == 0:
        return []
    found = []
    for key, value in content.items():
        # A dict of tensors is a leaf: what it holds belongs to one model.
        if isinstance(key, str) and is_state(value):
            found.append(f"{prefix}{key}")
        elif isinstance(key, str):
            found += _state_paths(value, f"{prefix}{key}.", depth - 1)
    return found


def _others(content: Mapping[str, Any], state_key: str) -> tuple[str, ...]:
    first = state_key.split(".")[0]
    return tuple(str(key) for key in content if key != first)


def prefix_of(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What stands before all of the model's names in the file: "", "module.", "model.", ..."""
    if not expected:
        return ""
    candidates: list[str] = []
    for probe in expected:
        # Whole dotted parts alone: "xup.weight" ends in "up.weight" and is another layer.
        ends = [name.removesuffix(probe) for name in state if name.endswith(probe)]
        candidates = [prefix for prefix in ends if prefix == "" or prefix.endswith(".")]
        if candidates:  # the names of a converted layer are new; any other tells the prefix
            break
    # The prefix that fits the most names, and the shortest one of equals.
    return max(
        candidates or [""],
        key=lambda prefix: (sum(prefix + name in state for name in expected), -len(prefix)),
    )


def objects_in(path: Path) -> str:
    """The Python objects in a file of torch.save, in words: "argparse.Namespace under 'args'".

    They are found by reading the pickle's instructions; none is carried out.

    Returns:
        The first few with the key that stands before them; "" if the file cannot be read so, or has none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.save writes one pickle, and tensors as raw members.
            [member] = [m for m in archive.infolist() if m.filename.endswith("/data.pkl")]
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > _LARGEST_PICKLE:
                return ""
            instructions = [*pickletools.genops(archive.read(member))]
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        return ""
    found: dict[str, str] = {}
    key = ""
    for instruction, argument, _ in instructions:
        # A dict's key is, as a rule, the last string pushed before its value is built.
        if instruction.name in ("BINUNICODE", "SHORT_BINUNICODE"):
            key = str(argument)
        # Protocol 2, torch.save's default, names classes by GLOBAL "module name".
        elif instruction.name == "GLOBAL":
            name = str(argument).replace(" ", ".")
            if name in unsafe:
                found.setdefault(name, key)
    words = [f"{name} under {key!r}" if key else name for name, key in found.items()]
    if not words:
        return ""
    more = f" and {len(words) - _MOST_OBJECTS} more" if len(words) > _MOST_OBJECTS else ""
    return f"Python objects: {', '.join(words[:_MOST_OBJECTS])}{more}"
