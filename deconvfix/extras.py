"""What is not installed with every deconvfix: said in one sentence where it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from deconvfix.errors import MissingPackageError

__all__ = ["needs", "undrawn"]

# Extra -> the packages that it brings, as they are imported.
_PACKAGES = {
    "report": ("matplotlib",),
    "torch": ("onnxscript", "safetensors", "torch"),
}


@contextmanager
def needs(extra: str, where: str) -> Iterator[None]:
    """A block whose imports need an extra of this package.

    Args:
        extra: Its name.
        where: What asks for it, for the error.

    Raises:
        MissingPackageError: If one of its packages is not installed. Every other error passes, so that a
            broken installation is not called a missing one.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES[extra]:
            raise
        raise MissingPackageError(
            where,
            f"the package {error.name} is not installed",
            "this part of deconvfix needs it",
            f"Install it with: pip install 'deconvfix[{extra}]'",
        ) from error


def undrawn() -> str | None:
    """Where the pictures of a report are, in a sentence, if they cannot be drawn; None if they can."""
    try:
        with needs("report", "The pictures are left out"):
            importlib.import_module("matplotlib")
    except MissingPackageError as error:
        return str(error)
    return None
