"""A model on the command line: its checkpoint, its architecture, inputs for it."""

from __future__ import annotations

import functools
import importlib
import inspect as python_inspect
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

import deconvfix.checkpoint as checkpoints
from deconvfix.errors import ModelError, OptionError
from deconvfix.frontends.torch_inputs import Inputs

__all__ = ["Source", "parse_arch_kwargs"]

# Example inputs that the command line makes up: 4 GiB in float32.
_MOST_ELEMENTS = 2**30


@dataclass(frozen=True)
class Source:
    """A checkpoint, its architecture, and inputs for it, as named on the command line.

    Attributes:
        path: The checkpoint.
        arch: "module:callable" that builds the model.
        arch_kwargs: Keyword arguments for it.
        state_key: Where the state dict is in the file.
        inputs: "NAME=1x3x64x64" or "NAME=1x77:int64" for each input.
        inputs_file: A .npz file with an array for each input.
        dynamic: "NAME=0,2,3": axes that may change.
    """

    path: Path
    arch: str
    arch_kwargs: dict[str, Any]
    state_key: str | None = None
    inputs: tuple[str, ...] = ()
    inputs_file: Path | None = None
    dynamic: tuple[str, ...] = ()

    @functools.cached_property
    def checkpoint(self) -> checkpoints.Checkpoint:
        """The file, read as data."""
        return checkpoints.read(self.path, self.state_key)

    def architecture(self) -> nn.Module:
        """A new instance of the architecture, in eval mode."""
        return _build(self.arch, self.arch_kwargs).eval()

    def model(self, *, wide: bool = False) -> tuple[nn.Module, tuple[str, ...]]:
        """The model with its weights (converted, if the checkpoint is), and notes about the file.

        Args:
            wide: Make it float64 if the file is, so that no digit is lost.
        """
        checkpoint = self.checkpoint
        model = self.architecture()
        if wide and any(each.dtype == torch.float64 for each in checkpoint.state.values()):
            model = model.double()
        if checkpoint.recipe is not None:
            note = f"The checkpoint was converted before ({checkpoint.recipe.to})."
            return checkpoints.restore(checkpoint, model), (note,)
        unused = checkpoints.load_state(model, checkpoint)
        notes = []
        if checkpoint.state_key:
            notes.append(f"The weights are those under {checkpoint.state_key!r}.")
        if checkpoint.left_out:
            notes.append(f"Left out of the checkpoint: {', '.join(checkpoint.left_out)}.")
        if unused:
            notes.append(f"Not in the architecture, left out: {', '.join(unused[:8])}.")
        return model, tuple(notes)

    def example_inputs(self, model: nn.Module) -> Inputs | None:
        """Inputs by the names of forward's arguments; None if none were described."""
        named = {**_described(self.inputs), **_stored(self.inputs_file)}
        if not named:
            return None
        floats = {each.dtype for each in model.parameters() if each.is_floating_point()}
        if floats == {torch.float64}:
            named = {n: x.double() if x.is_floating_point() else x for n, x in named.items()}
        return _bind(model, named)

    def required_inputs(self, model: nn.Module, reason: str) -> Inputs:
        """The same where the job needs them.

        Raises:
            OptionError: If none were described; `reason` says why they are needed.
        """
        example = self.example_inputs(model)
        if example is None:
            raise OptionError(
                "input",
                "no example inputs are given",
                reason,
                "Describe each input, for example --input x=1x3x64x64, or give --inputs FILE.npz",
            )
        return example

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return (self.path, *filter(None, (self.inputs_file,)))

    def dynamic_shapes(self) -> dict[str, dict[int, str]] | None:
        """For torch.onnx.export: axis 0 is called "batch", the others NAME_axis."""
        return _dynamic(self.dynamic, self.inputs, self.inputs_file) if self.dynamic else None


def _build(arch: str, arch_kwargs: dict[str, Any]) -> nn.Module:
    module_name, _, attribute = arch.partition(":")
    if not module_name or not attribute:
        raise OptionError(
            "arch",
            f"the value is {arch!r}",
            "'module:callable' is needed",
            "Name the Python module and the callable that builds the model",
        )
    # The user's own code lies where the command is run.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        builder: Any = functools.reduce(
            getattr, attribute.split("."), importlib.import_module(module_name)
        )
        model = builder(**arch_kwargs)
    except Exception as error:
        raise ModelError(
            arch,
            f"it does not build ({type(error).__name__}: {error})",
            "a callable that returns the model is needed",
            "Run the command where the module can be imported, and check --arch-kwargs",
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            arch,
            f"it returns a {type(model).__name__}",
            "a torch.nn.Module is needed",
            "Name the callable that builds the model",
        )
    return model


def _described(descriptions: Sequence[str]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    named = {}
    for text in descriptions:
        name, _, rest = text.partition("=")
        sizes, _, dtype_name = rest.partition(":")
        dtype = getattr(torch, dtype_name or "float32", None)
        digits = sizes.split("x") if sizes else []
        if (
            not name
            or not rest
            or not isinstance(dtype, torch.dtype)
            or not all(each.isdecimal() and len(each) < 10 for each in digits)
        ):
            raise OptionError(
                "input",
                f"the value is {text!r}",
                "NAME=1x3x64x64 or NAME=1x77:int64 is needed",
                "Give the name of forward's argument, its shape and, if not float32, its dtype",
            )
        shape = [int(each) for each in digits]
        if math.prod(shape) > _MOST_ELEMENTS:
            raise OptionError(
                "input",
                f"{text!r} has {math.prod(shape):,} elements",
                f"at most {_MOST_ELEMENTS:,} are made up",
                "Describe a smaller input",
            )
        if dtype.is_floating_point or dtype.is_complex:
            named[name] = torch.randn(shape, generator=generator).to(dtype)
        else:
            named[name] = torch.randint(0, 2, shape, generator=generator).to(dtype)
    return named


def _stored(path: Path | None) -> dict[str, Tensor]:
    if path is None:
        return {}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise OptionError(
            str(path),
            f"it cannot be read ({error})",
            "a .npz file with one array for each input is needed",
            "Write it with numpy.savez(path, NAME=array, ...)",
        ) from error


def _bind(model: nn.Module, named: dict[str, Tensor]) -> Inputs:
    """Positional where forward allows it, so that the exported inputs get their names."""
    parameters = python_inspect.signature(model.forward).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    unknown = [name for name in named if name not in parameters and not takes_any]
    if unknown:
        raise OptionError(
            "input",
            f"forward has no argument {', '.join(map(repr, unknown))}",
            f"the names of forward's arguments are needed: {', '.join(parameters)}",
            "Correct the names",
        )
    args = []
    for name, parameter in parameters.items():
        if name not in named or parameter.kind is parameter.KEYWORD_ONLY:
            break
        args.append(named[name])
    positional = list(parameters)[: len(args)]
    return Inputs(tuple(args), {name: x for name, x in named.items() if name not in positional})


def _dynamic(
    dynamic: Sequence[str], inputs: Sequence[str], inputs_file: Path | None
) -> dict[str, dict[int, str]]:
    names = [*(text.partition("=")[0] for text in inputs), *_stored(inputs_file)]
    shapes: dict[str, dict[int, str]] = {name: {} for name in names}
    for text in dynamic:
        name, _, axes = text.partition("=")
        if name not in shapes or not all(each.isdecimal() for each in axes.split(",")):
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
