"""Checkpoint files: state dicts read without running anything in them, written with their recipe.

The recipe is inside the file: in the metadata of .safetensors, and as a member of the archive that a .pt,
.pth or .ckpt file is, where torch.load does not look. So weights and recipe always belong together.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deconvfix.errors import CheckpointError
from deconvfix.files import LateErrors, note_read
from deconvfix.frontends.torch.find import is_uninitialized
from deconvfix.frontends.torch.frontend import FRONTEND
from deconvfix.frontends.torch.pretrained import build, class_of, loaded, weight_files
from deconvfix.frontends.torch.state_dicts import find_state, nested, objects_in, prefix_of
from deconvfix.plan import Plan

__all__ = [
    "SUFFIXES",
    "Checkpoint",
    "load",
    "load_state",
    "read",
    "restore",
    "stored_dtypes",
    "write",
]

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
RECIPE_KEY = "deconvfix.recipe"
# A recipe is small; what is larger is something else.
_LARGEST_RECIPE = 2**26
# Its name in an archive of torch.save, inside the archive's own folder.
_MEMBER = "extra/deconvfix.recipe.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        path: The file.
        state: The state dict, names as in the file.
        state_key: Dotted path of the state dict inside the file, "" if it is the whole file.
        left_out: Other entries of the file, such as the optimizer's state.
        recipe: The plan that the checkpoint's model was converted with, if it was.
        content: All of the file, tensors and plain values.
        metadata: The text entries of a .safetensors file.
    """

    path: Path
    state: dict[str, Tensor]
    state_key: str
    left_out: tuple[str, ...]
    recipe: Plan | None
    content: Any = field(default=None, repr=False, compare=False)
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)


def read(path: str | os.PathLike[str], state_key: str | None = None) -> Checkpoint:
    """Reads a checkpoint; nothing in it is executed.

    Args:
        path: A .safetensors, .pt, .pth or .ckpt file, or a folder as transformers and diffusers save it.
        state_key: Dotted path of the state dict in a nested file; by default the usual names are
            tried.

    Raises:
        CheckpointError: If there is no state dict that can be read as data.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise CheckpointError(
            str(path), "there is no such file", "a checkpoint file is needed", "Correct the path"
        )
    note_read(path)
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
        # weights_only restricts the unpickler to tensors and plain containers.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        objects = objects_in(path)
        raise CheckpointError(
            str(path),
            f"it holds {objects}" if objects else f"it cannot be read as data ({_reason(error)})",
            "a file of tensors and plain values is needed; nothing else is executed",
            "Save the model's state_dict() alone where you trust the file, best as .safetensors",
        ) from error
    state, key, left_out = find_state(path, content, state_key)
    return Checkpoint(path, state, key, left_out, _recipe_of(path), content)


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
    # All problems are collected before the load, as the message has their numbers.
    expected = model.state_dict()
    prefix = prefix_of(checkpoint.state, expected)
    state = {
        name[len(prefix) :]: value
        for name, value in checkpoint.state.items()
        if name.startswith(prefix)
    }
    for name in expected:
        if name in state:
            _check_entry(checkpoint.path, prefix + name, state[name], expected[name])
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
    # Entries that the model does not have are left out here and returned, so strict stays on.
    model.load_state_dict({name: state[name] for name in expected}, strict=True)
    used = {prefix + name for name in expected}
    return tuple(name for name in checkpoint.state if name not in used)


def _check_entry(path: Path, name: str, stored: Tensor, own: Tensor) -> None:
    """An entry must hold numbers that the model's own entry can take.

    Raises:
        CheckpointError: If it does not.
    """
    found = None
    if stored.is_nested or stored.layout != torch.strided:
        found = "a nested or sparse tensor"
    elif stored.is_meta:
        found = "a tensor without values (on the meta device)"
    elif stored.is_quantized:
        found = "a quantised tensor"
    elif stored.is_complex() and not own.is_complex():
        found = "a tensor of complex numbers"
    if found is not None:
        raise CheckpointError(
            str(path),
            f"its entry {name!r} is {found}",
            "an ordinary tensor of numbers is needed",
            "Save the state_dict() of the model as it was trained",
        )


def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    state_key: str | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Rebuilds the converted architecture around a model and loads a checkpoint into it.

    Args:
        path: A checkpoint that `deconvfix convert` wrote (one without a recipe is loaded as it is).
        model: The original architecture; its weights do not matter. None for a folder whose config.json names
            a class of transformers or diffusers.
        state_key: See `read`.
        inplace: Change `model` itself.

    Returns:
        The converted model with the checkpoint's weights.

    Raises:
        CheckpointError: If the file cannot be read, or does not belong to this architecture.
        ModelError: If the recipe names layers that the model does not have.
    """
    checkpoint = read(path, state_key)
    if model is not None:
        return restore(checkpoint, FRONTEND.prepare(model, None, inplace=inplace))
    arch = class_of(checkpoint.path)
    if checkpoint.recipe is None:
        original: nn.Module = loaded(arch, {}, checkpoint.path).eval()
        return original
    return restore(checkpoint, build(arch, {}, checkpoint.path).eval())


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

    Names have the prefix that they have in the original file. Where the conversion keeps all names, every
    other entry of that file is kept, too, so that the code that loaded the original loads the result.

    Args:
        path: .safetensors, .pt, .pth or .ckpt; the state dict is nested as in `source`.
        model: The converted model.
        recipe: The plan that leads from the original architecture to it.
        source: The original checkpoint.
        dtypes: See `stored_dtypes`.

    Raises:
        OSError: If there is no room for it.
    """
    state = {
        name: value.detach().cpu().to((dtypes or {}).get(name, value.dtype))
        for name, value in model.state_dict().items()
    }
    # Wrappers such as DataParallel put "module." in front of every name.
    prefix = prefix_of(source.state, state) if source else ""
    # The user's own loading code finds its names again.
    state = {prefix + name: value for name, value in state.items()}
    # Forms that keep the layer keep its names. Others have new ones ("up.conv.weight").
    keeps_names = source is not None and source.state.keys() >= state.keys()
    if source is not None and keeps_names:
        state = {name: state.get(name, value) for name, value in source.state.items()}
    if path.suffix == ".safetensors":
        # Tied entries share memory, which the format does not have.
        own = {name: value.contiguous().clone() for name, value in state.items()}
        metadata = {"format": "pt", **(source.metadata if source else {})}
        _save_safetensors(own, path, {**metadata, RECIPE_KEY: recipe.to_json()})
        return
    keys = source.state_key.split(".") if source and source.state_key else []
    # An optimizer's state belongs to the old parameters, so it is kept only while names stay.
    content = source.content if source is not None and keeps_names else None
    # A failed write would end the process inside torch, so errors wait until it is done.
    with open(path, "wb", buffering=0) as file:
        late = LateErrors(file)
        torch.save(nested(content, keys, state), cast("IO[bytes]", late))
        late.check()
    # All members of torch's archives stand in one folder, so the recipe stands in it too.
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{folder}/{_MEMBER}", recipe.to_json())


def _save_safetensors(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(state, path, metadata=metadata)
    except SafetensorError as error:
        # The error has the number of the system's error in its text alone.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


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
    prefix = prefix_of(source.state, before)
    origins = {}
    # Entries of converted layers are new: their dtype is that of the entry they are made from.
    for layer in plan.replaced:
        path = f"{layer.name}." if layer.name else ""
        origins[f"{path}conv.weight"] = f"{path}weight"
        origins[f"{path}conv.bias"] = origins[f"{path}add_bias.bias"] = f"{path}bias"
    found = {name: source.state.get(prefix + origins.get(name, name)) for name in after}
    return {name: tensor.dtype for name, tensor in found.items() if tensor is not None}


def _reason(error: Exception) -> str:
    """torch's words, without its advice to switch the protection off."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    known = [line for line in lines if "weights_only" not in line]
    return f"{type(error).__name__}: {known[0][:200] if known else ''}".rstrip(": ")


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            # The format is a JSON header and raw bytes, so nothing in it can run.
            metadata = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            str(path),
            f"it cannot be read ({error})",
            "a safetensors file is needed",
            "Check that the file is complete",
        ) from error
    recipe = metadata.pop(RECIPE_KEY, None)
    plan = None if recipe is None else Plan.from_json(recipe)
    return Checkpoint(path, state, "", (), plan, metadata=metadata)


def _read_folder(folder: Path) -> Checkpoint:
    """All files of a folder's weights as one checkpoint."""
    parts = []
    for path in weight_files(folder):
        note_read(path)
        parts.append(_read_safetensors(path))
    state = {name: value for part in parts for name, value in part.state.items()}
    return replace(parts[0], path=folder, state=state)


def _recipe_of(path: Path) -> Plan | None:
    """The recipe in an archive of torch.save, or in a file beside it, where it was written formerly."""
    text: bytes | None = None
    where = path.with_name(f"{path.name}.recipe.json")
    # torch's own reader forgives damage that Python's does not.
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    for member in archive.infolist():
                        if member.filename.partition("/")[2] == _MEMBER:
                            text, where = _recipe_member(archive, member), path
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise CheckpointError(
            str(path),
            f"its archive cannot be searched for a recipe ({error})",
            "an archive as torch.save writes it is needed",
            "Load it with torch, and save it again",
        ) from error
    # The recipe inside the archive has precedence over a file beside it.
    if text is None and where != path and where.is_file():
        if where.stat().st_size > _LARGEST_RECIPE:
            return None
        note_read(where)
        text = where.read_bytes()
    if text is None:
        return None
    try:
        return Plan.from_json(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(
            str(where),
            f"it is not text ({error.reason})",
            "the recipe of the checkpoint is needed",
            "Remove the recipe if the checkpoint was not converted",
        ) from error


def _recipe_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """As torch writes members: not compressed, so that it is no larger than the file."""
    # A compressed member could unpack to any size.
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > _LARGEST_RECIPE:
        raise zipfile.BadZipFile("the recipe is compressed or too large")
    return archive.read(member)
