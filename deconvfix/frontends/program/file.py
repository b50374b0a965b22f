"""Exported programs in files: read as data, written by torch.

`torch.export.load` unpickles whatever a .pt2 file holds in half a dozen places. Here the archive is
looked through first, member by member; what holds only data goes into a new archive, and that one is
loaded. A stranger's file is never opened by torch itself.

    archive_format, archive_version, byteorder, .data/*   copied
    models/model.json                                     read by `program_text`, copied
    data/weights/*, data/constants/*                      raw values alone, copied
    data/sample_inputs/model.pt                           read with weights_only, written again
    anything else                                         refused
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.export import ExportedProgram

from deconvfix.errors import ModelError
from deconvfix.files import NO_ROOM, LateErrors, note_read, scratch_folder
from deconvfix.frontends.program.text import check_payloads, check_program
from deconvfix.frontends.torch.inputs import quiet_loggers

__all__ = ["SUFFIX", "read", "write"]

SUFFIX = ".pt2"
_FORMAT = ("archive_format", "archive_version")
_MARKS = ("byteorder", "version", ".format_version", ".storage_alignment")
_PROGRAM = "models/model.json"
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
# The folders with tensors: how their members are called, and the list of what is in them.
_TENSORS = {
    "data/weights/": ("weight_", "data/weights/model_weights_config.json"),
    "data/constants/": ("tensor_", "data/constants/model_constants_config.json"),
}
# Decoded, JSON needs about ten times its size in memory.
_LARGEST_JSON = 2**28
_MOST_MEMBERS = 2**17
_TRUST = "Give --trust (trust=True) if the file is your own"


def read(path: str | os.PathLike[str], *, trust: bool = False) -> ExportedProgram:
    """Loads an exported program; nothing in the file is executed unless it is trusted.

    Args:
        path: A .pt2 file of torch.export.save.
        trust: Load the file as torch does, pickles and all. Only for files of your own.

    Raises:
        ModelError: If there is no such file, if it is damaged, or if it holds more than a program of
            tensor operators with its values.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(
            str(path), "there is no such file", "a .pt2 file is needed", "Correct the path"
        )
    note_read(path)
    # torch's own loader, which runs what pickles say.
    if trust:
        return _load(path, path)
    with scratch_folder() as folder:
        # torch gets the copy alone, which holds nothing but what was looked at.
        copy = folder / f"vetted{SUFFIX}"
        with _archive(path, path) as source, zipfile.ZipFile(copy, "w") as vetted:
            _copy_data(path, source, vetted)
        return _load(copy, path)


def write(program: ExportedProgram, path: str | os.PathLike[str]) -> None:
    """Saves an exported program with torch.export.save; it loads without deconvfix.

    Raises:
        ModelError: If torch cannot save the program.
        OSError: If there is no room for it.
    """
    try:
        with (
            quiet_loggers("torch.export", "torch._export", level=logging.CRITICAL),
            open(path, "wb", buffering=0) as file,
        ):
            late = LateErrors(file)
            torch.export.save(program, cast("IO[bytes]", late))
            late.check()
    except OSError:
        raise  # no room
    except Exception as error:
        raise ModelError(
            str(path),
            f"torch.export.save fails ({_reason(error)})",
            "a program that torch can save is needed",
            "See the exception that this one was raised from",
        ) from error


def _load(path: Path, named: Path) -> ExportedProgram:
    try:
        with (
            quiet_loggers("torch.export", "torch._export", level=logging.CRITICAL),
            open(path, "rb") as file,
        ):
            return torch.export.load(file)
    except Exception as error:
        raise ModelError(
            str(named),
            f"torch.export.load fails ({_reason(error)})",
            "a program that this version of torch can load is needed",
            "Export and save the program again with this version of torch, and import the packages "
            "that register its operators",
        ) from error


def _reason(error: BaseException) -> str:
    # torch hides the cause behind a general sentence and logs it.
    root = error.__context__ if isinstance(error.__context__, RuntimeError) else error
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    return f"{type(root).__name__}: {lines[-1][:200] if lines else ''}".rstrip(": ")


# --- looking through an archive -----------------------------------------------------------------


def _refusal(path: Path, member: str, found: str, todo: str = _TRUST) -> ModelError:
    return ModelError(
        str(path),
        f"{member}: {found}",
        "a file is read as data, and nothing in it is executed",
        todo,
    )


@contextmanager
def _archive(path: Path, file: Path | IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """An archive whose members are what they say: stored, distinct, inside one folder.

    torch stores without compression, so the members together are no larger than the file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if not members or len(members) > _MOST_MEMBERS:
                raise zipfile.BadZipFile(f"{len(members)} members")
            # torch takes the folder's name from the first member as well.
            root = members[0].filename.split("/")[0]
            size = file.stat().st_size if isinstance(file, Path) else file.seek(0, io.SEEK_END)
            seen = set()
            for member in members:
                name = member.filename
                parts = name.split("/")
                # Tools unpack names as paths, so nothing may lead out of the folder.
                if parts[0] != root or len(parts) < 2 or {"", ".", ".."} & set(parts):
                    found = "it is outside the archive's folder, as in files older than torch 2.8"
                    raise _refusal(path, name, found)
                if not re.fullmatch(r"[\w.\-/ ]+", name):
                    raise _refusal(
                        path, repr(name), "its name has characters that torch never uses"
                    )
                # Of two members of one name, readers of archives differ in which one they take.
                if name in seen:
                    raise _refusal(path, name, "it occurs twice")
                seen.add(name)
                if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                    raise _refusal(
                        path, name, "it is compressed or encrypted, which torch never does"
                    )
            # Members that overlap could be far larger than the file.
            if sum(member.file_size for member in members) > size:
                raise zipfile.BadZipFile("its members are larger than the file")
            yield archive
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise  # it is the copy that could not be written
        raise ModelError(
            str(path),
            f"it cannot be read ({_reason(error)})",
            "an archive of torch.export.save is needed",
            "Export and save the program again",
        ) from error


def _copy_data(path: Path, source: zipfile.ZipFile, vetted: zipfile.ZipFile) -> None:
    """Copies what is data into `vetted`; raises for anything else."""
    # Below the archive's own folder, whose name is free.
    members = {member.filename.split("/", 1)[1]: member for member in source.infolist()}
    # What must be there comes first, so that the other messages can rely on it.
    for name in (*_FORMAT, _PROGRAM, *(config for _, config in _TENSORS.values())):
        if name not in members:
            raise ModelError(
                str(path),
                f"it has no {name}",
                "an archive of torch.export.save with a program called 'model' is needed",
                "Export and save the program again",
            )
    # First what is text: nothing is copied from a file whose program is more than data.
    described = _json(path, source, members[_PROGRAM])
    _check_devices(path, described)
    problem = check_program(described)
    if problem:
        raise _refusal(path, _PROGRAM, problem)
    copied = {_PROGRAM, *_FORMAT, *_MARKS}
    # Stored tensors: raw values alone, each in a member of the right name.
    for folder, (prefix, config) in _TENSORS.items():
        values = {
            name.removeprefix(folder): member.file_size
            for name, member in members.items()
            if re.fullmatch(re.escape(folder + prefix) + r"\d+", name)
        }
        problem = check_payloads(_json(path, source, members[config]), prefix, values)
        if problem:
            raise _refusal(path, config, problem)
        copied |= {config, *(folder + name for name in values)}
    # Then the copy, member by member. What is neither known nor harmless is refused.
    for name, member in members.items():
        if name in copied or name.startswith(".data/"):
            with source.open(member) as old, vetted.open(f"model/{name}", "w") as new:
                shutil.copyfileobj(old, new, 2**20)
        elif name.startswith("extra/") or name == _SAMPLE_INPUTS:
            continue  # not part of the program; the sample inputs are written below
        else:
            raise _refusal(path, name, "it is neither a program nor raw values")
    vetted.writestr(f"model/{_SAMPLE_INPUTS}", _sample_inputs(path, source, members))


def _check_devices(path: Path, described: Any) -> None:
    """torch ends the process for a kind of device that it was not built for.

    Raises:
        ModelError: If a tensor is on a device that is not there.
    """
    here = {"cpu", "meta"}
    if not hasattr(torch, "accelerator"):  # new in torch 2.6
        here.update(("cuda",) if torch.cuda.is_available() else ())
    elif torch.accelerator.is_available():
        here.add(torch.accelerator.current_accelerator().type)  # type: ignore[union-attr]
    stack = [described]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            device = value.get("device")
            kind = device.get("type") if isinstance(device, dict) else None
            if kind is not None and (not isinstance(kind, str) or kind not in here):
                raise ModelError(
                    str(path),
                    f"it holds tensors on the device {kind!r}",
                    f"a program for {' or '.join(sorted(here - {'meta'}))} is needed here",
                    "Export the model on the CPU, or convert the program where that device is",
                )
            stack.extend(value.values())


def _json(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    if member.file_size > _LARGEST_JSON:
        raise _refusal(path, member.filename, f"it has {member.file_size} bytes")
    try:
        return json.loads(archive.read(member).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            str(path),
            f"{member.filename} cannot be read as JSON ({_reason(error)})",
            "an archive of torch.export.save is needed",
            "Export and save the program again",
        ) from error


def _sample_inputs(
    path: Path, source: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]
) -> bytes:
    """The example inputs, read as data and written again; empty if there are none."""
    member = members.get(_SAMPLE_INPUTS)
    if member is None or not member.file_size:
        return b""
    content = io.BytesIO(source.read(member))
    buffer = io.BytesIO()
    # The sample inputs are an archive inside the archive, with the same rules.
    with _archive(path, content):
        pass
    content.seek(0)
    try:
        # Inputs that were saved on a GPU must load on a machine without one.
        device = None if torch.cuda.is_available() else "cpu"
        torch.save(torch.load(content, map_location=device, weights_only=True), buffer)
    except Exception as error:
        raise _refusal(
            path,
            _SAMPLE_INPUTS,
            f"the example inputs are more than tensors and plain values ({type(error).__name__})",
        ) from error
    return buffer.getvalue()
