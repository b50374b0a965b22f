"""What a command line names: a model file, what builds the model, and inputs for it. Plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from deconvfix.errors import OptionError
from deconvfix.files import note_read

__all__ = ["Described", "Source", "parse_arch_kwargs"]

# Example inputs that the command line makes up: 4 GiB in float32.
_MOST_ELEMENTS = 2**30


@dataclass(frozen=True)
class Described:
    """An input that was described as NAME=1x3x64x64 or NAME=1x77:int64.

    Attributes:
        name: Of the input.
        shape: Of the array.
        dtype: In words, float32 by default.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    def values(self, number: int) -> NDArray[Any]:
        """Seeded numbers: 0 and 1 for integers and booleans, else normal ones in float64."""
        rng = np.random.default_rng(number)
        if self.dtype.startswith(("int", "uint", "bool")):
            return rng.integers(0, 2, self.shape)
        return rng.standard_normal(self.shape)


@dataclass(frozen=True)
class Source:
    """A model file and what else was named for it.

    Attributes:
        path: The file.
        arch: "module:callable" that builds the model, for a checkpoint.
        arch_kwargs: Keyword arguments for it.
        state_key: Where the state dict is in a nested checkpoint.
        inputs: "NAME=1x3x64x64" or "NAME=1x77:int64" for each input.
        inputs_file: A .npz file with an array for each input.
        dynamic: "NAME=0,2,3": axes that may change.
        trust: Whether the file may run code when it is loaded (.pt2).
    """

    path: Path
    arch: str | None = None
    arch_kwargs: dict[str, Any] = field(default_factory=dict)
    state_key: str | None = None
    inputs: tuple[str, ...] = ()
    inputs_file: Path | None = None
    dynamic: tuple[str, ...] = ()
    trust: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return (self.path, *filter(None, (self.inputs_file,)))

    def described(self) -> tuple[Described, ...]:
        """The inputs that were described.

        Raises:
            OptionError: If a description cannot be read.
        """
        return tuple(map(_described, self.inputs))

    def stored(self) -> dict[str, NDArray[Any]]:
        """The inputs in the file that was named.

        Raises:
            OptionError: If it cannot be read.
        """
        path = self.inputs_file
        if path is None:
            return {}
        note_read(path)
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: np.array(arrays[name]) for name in arrays.files}
        except (OSError, ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
            raise OptionError(
                str(path),
                f"it cannot be read ({error})",
                "a .npz file with one array for each input is needed",
                "Write it with numpy.savez(path, NAME=array, ...)",
            ) from error

    def dynamic_shapes(self) -> dict[str, dict[int, str]] | None:
        """For torch.onnx.export: axis 0 is called "batch", the others NAME_axis."""
        if not self.dynamic:
            return None
        names = [*(described.name for described in self.described()), *self.stored()]
        shapes: dict[str, dict[int, str]] = {name: {} for name in names}
        for text in self.dynamic:
            name, _, axes = text.partition("=")
            if name not in shapes or not all(axis.isdecimal() for axis in axes.split(",")):
                raise OptionError(
                    "dynamic",
                    f"the value is {text!r}",
                    f"NAME=0,2,3 with a name of an input is needed ({', '.join(names)})",
                    "Correct the value",
                )
            shapes[name] = {
                int(axis): "batch" if axis == "0" else f"{name}_{axis}" for axis in axes.split(",")
            }
        return shapes


def parse_arch_kwargs(text: str) -> dict[str, Any]:
    """Reads --arch-kwargs.

    Raises:
        OptionError: If it is not a JSON object.
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise OptionError(
            "arch-kwargs",
            f"the value is {text!r}",
            "a JSON object is needed",
            'Write it like {"width": 64}',
        )
    return value


def _described(text: str) -> Described:
    name, _, rest = text.partition("=")
    sizes, _, dtype = rest.partition(":")
    digits: Sequence[str] = sizes.split("x") if sizes else []
    if not name or not rest or not all(size.isdecimal() and len(size) < 10 for size in digits):
        raise OptionError(
            "input",
            f"the value is {text!r}",
            "NAME=1x3x64x64 or NAME=1x77:int64 is needed",
            "Give the name of the input, its shape and, if not float32, its dtype",
        )
    shape = tuple(int(size) for size in digits)
    if math.prod(shape) > _MOST_ELEMENTS:
        raise OptionError(
            "input",
            f"{text!r} has {math.prod(shape):,} elements",
            f"at most {_MOST_ELEMENTS:,} are made up",
            "Describe a smaller input",
        )
    return Described(name, shape, dtype or "float32")
