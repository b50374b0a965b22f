"""Everything that deconvfix raises on purpose.

    DeconvfixError
    ├── SpecError        the description of a layer contradicts itself
    ├── OptionError      an option has a value that does not exist, or two options exclude each other
    ├── ModelError       the model (or its inputs) cannot be used as it was given
    ├── CheckpointError  a checkpoint file cannot be read, written or loaded
    ├── RefusedError     a layer was refused and `strict` was asked for
    ├── ParityError      the converted model does not compute what the original computes
    ├── ExportError      the model could not be written as ONNX
    ├── RuntimeCrashError  ONNX Runtime crashed, or ran out of time
    └── MissingPackageError  what is asked for needs a package that is not installed

Every message has the same four parts: where it happened, what was found, what is needed, what to do.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

__all__ = [
    "CheckpointError",
    "DeconvfixError",
    "ExportError",
    "MissingPackageError",
    "ModelError",
    "OptionError",
    "ParityError",
    "Refusal",
    "RefusedError",
    "RuntimeCrashError",
    "SpecError",
    "printable",
    "sentence",
]

# Control characters of both ranges (Cc), characters that turn text around or are not seen (Cf), half
# characters, as in names of files that are no UTF-8 (Cs), and further ends of lines (Zl, Zp).
_OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")


class DeconvfixError(Exception):
    """Base of all errors of deconvfix.

    Args:
        where: The layer, option or file that is concerned.
        found: What was found there.
        needed: What is needed instead.
        todo: What the user can do about it.
    """

    def __init__(self, where: str, found: str, needed: str, todo: str) -> None:
        super().__init__(where, found, needed, todo)
        self.where = where
        self.found = found
        self.needed = needed
        self.todo = todo

    def __str__(self) -> str:
        return sentence(self.where, self.found, self.needed, self.todo)


class SpecError(DeconvfixError):
    """The description of a transposed convolution contradicts itself."""


class OptionError(DeconvfixError):
    """An option has an unknown value, or excludes another one."""


class ModelError(DeconvfixError):
    """The model, or an input given for it, cannot be used."""


class CheckpointError(DeconvfixError):
    """A checkpoint file cannot be read, written or loaded."""


class RefusedError(DeconvfixError):
    """A layer was refused although `strict` was asked for."""


class ParityError(DeconvfixError):
    """The converted model differs from the original by more than rounding."""


class ExportError(DeconvfixError):
    """The model could not be exported to ONNX."""


class RuntimeCrashError(DeconvfixError):
    """ONNX Runtime did not fail but crash, or did not come to an end in time."""


class MissingPackageError(DeconvfixError, ImportError):
    """What was asked for needs a package that is not installed; the last part names the extra to install."""


def sentence(where: str, found: str, needed: str, todo: str) -> str:
    """The one wording of errors and refusals: 'where: found; needed. todo.'"""
    return printable(f"{where}: {found}; {needed}. {todo}.")


def printable(text: str) -> str:
    r"""Words of a stranger without what a terminal obeys: such characters are shown as escapes.

    Names of layers, tensors and files come from files that may be anybody's. Ends of lines and tabs stay.

    >>> print(printable("up\x1b[31m"))
    up\x1b[31m
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _OBEYED and character not in "\n\t"
        else character
        for character in text
    )


@dataclass(frozen=True)
class Refusal:
    """Why a layer is not converted; `sentence(name)` is the text that the report shows."""

    found: str
    needed: str
    todo: str

    def sentence(self, name: str) -> str:
        """The refusal of the layer `name`, in the wording of all errors."""
        return sentence(name or "(model)", self.found, self.needed, self.todo)
