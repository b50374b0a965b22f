"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deconvfix.errors import DeconvfixError, OptionError

__all__ = ["check_output", "output_folder", "sha256"]


def check_output(path: Path, *, overwrite: bool, inputs: tuple[Path, ...] = ()) -> None:
    """Refuses an output before any work is done for it.

    Raises:
        OptionError: If the file exists (and may not be overwritten), is an input, or cannot be
            written because its folder is missing.
    """
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise OptionError(
                str(path),
                "the output is also an input",
                "inputs are never overwritten",
                "Give another output file",
            )
    if path.is_dir() or not path.parent.is_dir():
        raise OptionError(
            str(path),
            "it is a folder" if path.is_dir() else f"the folder {path.parent} does not exist",
            "the output must be a file in an existing folder",
            "Correct the path, or create the folder",
        )
    if path.exists() and not overwrite:
        raise OptionError(
            str(path),
            "the file exists",
            "existing files are kept",
            "Give another output file, or allow overwriting (--force, overwrite=True)",
        )


@contextlib.contextmanager
def output_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `path`; what is in it at the end moves next to `path`, or vanishes on errors.

    The file called like `path` moves last, so that it never refers to files that are not there yet.

    Raises:
        OptionError: If one of the files exists already and `overwrite` is False; none is moved then.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise DeconvfixError(
            str(path),
            f"its folder cannot be written ({error.strerror})",
            "a place to write the output is needed",
            "Choose another folder",
        ) from error
    try:
        yield folder
        for written in folder.iterdir():
            check_output(path.parent / written.name, overwrite=overwrite)
        for written in sorted(folder.iterdir(), key=lambda written: written.name == path.name):
            with open(written, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(written, path.parent / written.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hash of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
