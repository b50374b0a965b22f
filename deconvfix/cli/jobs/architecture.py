"""A model on the command line: its checkpoint, its architecture, inputs for it."""

from __future__ import annotations

import functools
import importlib
import inspect as python_inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import deconvfix.frontends.torch.checkpoint as checkpoints
from deconvfix.cli.source import Described, Source
from deconvfix.errors import DeconvfixError, ModelError, OptionError
from deconvfix.files import note_read
from deconvfix.frontends.torch.inputs import Inputs
from deconvfix.frontends.torch.pretrained import build, is_folder_class, is_named, loaded

__all__ = ["BoundFiles", "CheckpointSource", "bound_inputs"]


class CheckpointSource(Source):
    """A checkpoint, its architecture, and inputs for it, as named on the command line."""

    @classmethod
    def of(cls, source: Source) -> CheckpointSource:
        """The same named things.

        Raises:
            OptionError: If nothing builds the model.
        """
        if source.arch is None:
            raise OptionError(
                str(source.path),
                "nothing says which code builds the model",
                "a checkpoint holds weights only",
                "Name the code with --arch module:callable",
            )
        return cls(**{known.name: getattr(source, known.name) for known in fields(source)})

    @functools.cached_property
    def checkpoint(self) -> checkpoints.Checkpoint:
        """The file, read as data."""
        return checkpoints.read(self.path, self.state_key)

    def architecture(self) -> nn.Module:
        """A new instance of the architecture, in eval mode.

        Seeded: what a model draws when it is built and no checkpoint holds is the same in each instance.
        """
        assert self.arch is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _build(self.arch, self.arch_kwargs, self.path).eval()

    def model(self, *, wide: bool = False) -> tuple[nn.Module, tuple[str, ...]]:
        """The model with its weights (converted, if the checkpoint is), and notes about the file.

        Args:
            wide: Make it float64 if the file is, so that no digit is lost.
        """
        checkpoint = self.checkpoint
        if self.path.is_dir() and checkpoint.recipe is None and is_folder_class(str(self.arch)):
            # The library knows what it renamed and tied since the folder was written.
            read: nn.Module = _called(
                str(self.arch), lambda: loaded(str(self.arch), self.arch_kwargs, self.path)
            )
            return read.eval(), ()
        model = self.architecture()
        if wide and any(value.dtype == torch.float64 for value in checkpoint.state.values()):
            model = model.double()
        if checkpoint.recipe is not None:
            note = f"The checkpoint was converted before ({checkpoint.recipe.to})."
            return checkpoints.restore(checkpoint, model), (note,)
        unused = checkpoints.load_state(model, checkpoint)
        notes = []
        if checkpoint.state_key:
            notes.append(f"The weights were taken from {checkpoint.state_key!r}.")
        if checkpoint.left_out:
            notes.append(f"Ignored entries of the checkpoint: {', '.join(checkpoint.left_out)}.")
        if unused:
            notes.append(f"Not in the architecture, ignored: {', '.join(unused[:8])}.")
        return model, tuple(notes)

    def example_inputs(self, model: nn.Module) -> Inputs | None:
        """Inputs by the names of forward's arguments; None if none were described."""
        return bound_inputs(self, model, list(model.parameters()))

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


@dataclass(frozen=True)
class BoundFiles:
    """Calibration files as arguments of a model, batch by batch.

    Attributes:
        files: Named arrays.
        model: Its forward's arguments have their names; floating-point arrays get its dtype.
    """

    files: Iterable[Mapping[str, NDArray[Any]]]
    model: nn.Module

    def __iter__(self) -> Iterator[Inputs]:
        """One batch after the other, always the same."""
        state = (*self.model.parameters(), *self.model.buffers())
        dtypes = {value.dtype for value in state if value.is_floating_point()}
        for batch in self.files:
            named = {name: torch.from_numpy(array) for name, array in batch.items()}
            if len(dtypes) == 1:  # NumPy's own float64 says nothing of what the model takes
                [own] = dtypes
                named = {n: x.to(own) if x.is_floating_point() else x for n, x in named.items()}
            yield _bind(self.model, named)


def bound_inputs(source: Source, model: nn.Module, state: Sequence[Tensor]) -> Inputs | None:
    """The inputs that a source names as arguments of a model; None if it names none.

    Args:
        source: Names them.
        model: Its forward's arguments have these names.
        state: The model's tensors; if they are all float64, the inputs are too.
    """
    named = {
        described.name: _tensor(described, number)
        for number, described in enumerate(source.described())
    }
    try:
        named |= {name: torch.from_numpy(array) for name, array in source.stored().items()}
    except TypeError as error:
        raise OptionError(
            str(source.inputs_file),
            f"it contains arrays that torch has no tensors for ({error})",
            "arrays of numbers are needed",
            "Write it with numpy.savez(path, NAME=array, ...)",
        ) from error
    if not named:
        return None
    if {value.dtype for value in state if value.is_floating_point()} == {torch.float64}:
        named = {n: x.double() if x.is_floating_point() else x for n, x in named.items()}
    return _bind(model, named)


def _tensor(described: Described, number: int) -> Tensor:
    dtype = getattr(torch, described.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise OptionError(
            "input",
            f"torch has no dtype {described.dtype!r}",
            "NAME=1x3x64x64 or NAME=1x77:int64 is needed",
            "Correct the dtype, or omit it for float32",
        )
    return torch.from_numpy(described.values(number)).to(dtype)


def _build(arch: str, arch_kwargs: dict[str, Any], path: Path) -> nn.Module:
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

    def built() -> Any:
        if is_named(arch):
            return build(arch, arch_kwargs, path)
        module = importlib.import_module(module_name)
        if getattr(module, "__file__", None):
            note_read(Path(str(module.__file__)))
        builder: Any = functools.reduce(getattr, attribute.split("."), module)
        return builder(**arch_kwargs)

    return _called(arch, built)


def _called(arch: str, builder: Callable[[], Any]) -> nn.Module:
    """What the code of a model builds."""
    try:
        model = builder()
    except DeconvfixError:
        raise
    except Exception as error:
        raise ModelError(
            arch,
            f"building the model fails ({type(error).__name__}: {error})",
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


def _bind(model: nn.Module, named: dict[str, Tensor]) -> Inputs:
    """Positional where forward allows it, so that the exported inputs get their names."""
    parameters = python_inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
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
