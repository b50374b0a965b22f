"""Writing files whole or not at all, and never over a file that the same run reads."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from deconvfix.errors import DeconvfixError, OptionError

try:
    import fcntl
except ImportError:  # Windows: folders of killed runs stay there
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "NO_ROOM",
    "LateErrors",
    "check_apart",
    "check_output",
    "content_name",
    "inputs_kept",
    "note_read",
    "output_folder",
    "scratch_folder",
    "sha256",
    "write_text",
]

_READ: ContextVar[set[Path] | None] = ContextVar("read", default=None)
# What a system says when a file cannot become larger.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A folder that was made a moment ago may not be locked yet.
_YOUNG_SECONDS = 2.0


@contextlib.contextmanager
def inputs_kept() -> Iterator[None]:
    """No file that is read in the context (`note_read`) is written over in it.

    The command line is one such context. In Python, where a file may be read in one call and replaced on
    purpose in another, there is none.
    """
    token = _READ.set(set())
    try:
        yield
    finally:
        _READ.reset(token)


def note_read(path: Path) -> None:
    """Remembers that this run reads a file; see `inputs_kept`."""
    read = _READ.get()
    if read is not None:
        read.add(path.absolute())


def check_output(path: Path, *, overwrite: bool, inputs: tuple[Path, ...] = ()) -> None:
    """Refuses an output before any work is done for it.

    Raises:
        OptionError: If the file exists (and may not be overwritten), is read by this run under whatever
            name or link, or cannot be written because its folder is missing.
    """
    # By the file, not by the name: links and other ways to it count.
    for source in (*inputs, *sorted(_READ.get() or ())):
        if _same(path, source):
            raise OptionError(
                str(path),
                "the output is also an input"
                + ("" if source.name == path.name else f" ({source.name})"),
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
    if path.exists() and not path.is_file():
        raise OptionError(
            str(path),
            "it is a device or a pipe",
            "the output must be a file",
            "Correct the path",
        )
    if path.exists() and not overwrite:
        raise OptionError(
            str(path),
            "the file exists",
            "existing files are kept",
            "Give another output file, or allow overwriting (--force, overwrite=True)",
        )


def check_apart(*outputs: Path | None) -> None:
    """Refuses outputs of one run that are the same file.

    Raises:
        OptionError: If two of them are; None stands for an output that was not asked for.
    """
    given = [path for path in outputs if path is not None]
    for number, path in enumerate(given):
        if any(_same(path, other) for other in given[:number]):
            raise OptionError(
                str(path),
                "two outputs have this name",
                "each output needs a file of its own",
                "Give another name",
            )


def _same(one: Path, other: Path) -> bool:
    """Whether two names lead to one file, also before it exists."""
    try:
        return one.samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


@contextlib.contextmanager
def output_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `path`; what is in it at the end moves next to `path`, or vanishes on errors.

    The file called like `path` moves last. Where it refers to another file, that one is called by its
    content (`content_name`), so that a kill between the moves leaves the old pair or the new one.

    Raises:
        OptionError: If one of the files exists already and `overwrite` is False, or is read by this run;
            none is moved then.
        DeconvfixError: If the disk is full, or the folder cannot be written.
    """
    try:
        with _locked_folder(path.absolute().parent, _prefix(path)) as folder:
            yield folder
            _move(folder, path, overwrite)
    except OSError as error:
        raise _not_written(path, error) from error


def write_text(path: Path, content: str, *, overwrite: bool) -> None:
    """Writes a text file, whole or not at all; errors as of `output_folder`."""
    with output_folder(path, overwrite=overwrite) as folder:
        (folder / path.name).write_text(content, encoding="utf-8")


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what is needed only while this process runs.

    Raises:
        DeconvfixError: If the disk is full, or there is no place for such folders.
    """
    parent = Path(tempfile.gettempdir())
    try:
        with _locked_folder(parent, "deconvfix-scratch-") as folder:
            yield folder
    except OSError as error:
        raise _not_written(parent, error) from error


def _prefix(path: Path) -> str:
    # Not the name itself, which may be as long as a name can be.
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()
    return f".deconvfix-{digest[:12]}-"


def _move(folder: Path, path: Path, overwrite: bool) -> None:
    """Moves what was written to its place, all of it or nothing."""
    # All checks before the first move, and everything on the disk before that.
    written = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
    moves = []
    for file in written:
        target = path.absolute().parent / file.name
        if file.name != path.name and _is_named_by_content(file) and _equal(file, target):
            continue  # there already, perhaps as a part of another model
        check_output(target, overwrite=overwrite)
        moves.append((file, target))
    for file, _ in moves:
        with open(file, "rb+") as content:
            os.fsync(content.fileno())
    # The file that was asked for comes last: it decides.
    for file, target in moves:
        os.replace(file, target)


def content_name(path: Path, content: Path) -> str:
    """The name of a file that belongs to `path`: it tells what is in it, so that no other can be meant."""
    return f"{path.name}.{sha256(content)[:16]}.data"


def _is_named_by_content(file: Path) -> bool:
    return file.suffix == ".data" and file.stem.endswith(sha256(file)[:16])


def _equal(file: Path, target: Path) -> bool:
    return target.is_file() and sha256(file) == sha256(target)


def _not_written(path: Path, error: OSError) -> DeconvfixError:
    reason = error.strerror or str(error)
    return DeconvfixError(
        str(path),
        f"it could not be written ({reason[:1].lower()}{reason[1:]})",
        "a folder with enough space that may be written is needed",
        "Nothing was written; free some space, or choose another folder",
    )


@contextlib.contextmanager
def _locked_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder that is gone at the end; those that killed processes left with this prefix go first.

    A folder in use is locked, and the system takes the lock off when its process dies.
    """
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            _remove_abandoned(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    with _opened(folder) as descriptor:
        _locks(descriptor)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Removes a folder that no process holds a lock on; where locks do not work, it stays."""
    if time.time() - folder.stat().st_mtime < _YOUNG_SECONDS:
        return
    with _opened(folder) as descriptor:
        if _locks(descriptor):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else -1
    try:
        yield descriptor
    finally:
        if fcntl:
            os.close(descriptor)


def _locks(descriptor: int) -> bool:
    """Whether a folder is locked for this process now; some network file systems have no locks."""
    if not fcntl:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class LateErrors:
    """A file for writers that end the process when a write fails, as torch's writer of archives does.

    It takes everything, and says at the end that there was no room for it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Writes, unless an earlier write has failed."""
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing is held back."""

    def check(self) -> None:
        """Raises the first error."""
        if self.error is not None:
            raise self.error

    def tell(self) -> int:
        """How much is in the file."""
        return self.file.tell()


def sha256(path: Path) -> str:
    """Hash of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
