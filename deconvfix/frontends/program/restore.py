"""Programs of torch.export, trained as their modules; see `frontends.torch.tuning.restore`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from deconvfix.frontends.base import Probe, Restoration, Shuffle
from deconvfix.frontends.samples import calibration_inputs
from deconvfix.frontends.torch.diagnose import probe_module
from deconvfix.frontends.torch.inputs import copy_quietly
from deconvfix.frontends.torch.samples import TorchSamples, with_arrays
from deconvfix.frontends.torch.shuffles import executed_shuffles
from deconvfix.frontends.torch.tuning.restore import cost, restore
from deconvfix.frontends.torch.tuning.teacher import constant_like, cycle_spun, varied
from deconvfix.grid.periods import Period

__all__ = ["Runnable", "Trainable", "copy_program", "restored"]


class Runnable(nn.Module):
    """A program's module with modes: torch refuses to switch those of the module itself."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        self.program = program.module()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program."""
        return self.program(*args, **kwargs)

    def train(self, mode: bool = True) -> Runnable:
        """Its graph was exported in one mode, and stays in it."""
        self.training = mode
        return self


def copy_program(program: ExportedProgram) -> ExportedProgram:
    """A copy, with the names of its nodes."""
    copied: ExportedProgram = copy_quietly(program, {})
    # torch's copy renames nodes that are called like Python's builtins ("input"), and the
    # signature, which it does not rename, refers to nodes by their names.
    for old, new in zip(program.graph.nodes, copied.graph.nodes, strict=True):
        new.name = old.name
    return copied


class Trainable:
    """What `frontends.base.Restores` asks of a front end, for programs."""

    # Sizes of kernels are in the graph.
    can_grow = False

    def run(self, model: ExportedProgram, inputs: Any) -> Probe:
        """As a module."""
        return probe_module(Runnable(model), inputs, ())

    def shuffles(self, model: ExportedProgram, inputs: Any) -> list[Shuffle]:
        """As a module."""
        return executed_shuffles(Runnable(model), inputs)

    def cycle_spun(
        self,
        model: ExportedProgram,
        inputs: Any,
        periods: Mapping[int, Period],
        most: int,
        seed: int,
    ) -> list[NDArray[Any]] | None:
        """As a module; programs of fixed sizes take no shifted inputs."""
        return cycle_spun(Runnable(model), inputs, periods, most, seed)

    def drawn_batches(self, example_inputs: Any, distribution: str, seed: int) -> list[Any]:
        """See `frontends.samples.calibration_inputs`."""
        return list(calibration_inputs(TorchSamples(example_inputs, seed), distribution)[0])

    def with_arrays(self, inputs: Any, arrays: Sequence[NDArray[Any]]) -> Any:
        """See `samples.with_arrays`."""
        return with_arrays(inputs, arrays)

    def constant_like(self, inputs: Any, seed: int) -> Any:
        """See `tuning.teacher.constant_like`."""
        return constant_like(inputs, seed)

    def varied(self, inputs: Any, seed: int) -> Any | None:
        """See `tuning.teacher.varied`."""
        return varied(inputs, seed)

    def restore(self, model: ExportedProgram, task: Restoration) -> ExportedProgram:
        """See `restore.restored`."""
        return restored(model, copy_program(model), task)

    def cost(self, model: ExportedProgram, inputs: Any) -> float:
        """As a module."""
        return cost(Runnable(model), inputs)


@torch.no_grad()
def restored(
    program: ExportedProgram, copied: ExportedProgram, task: Restoration
) -> ExportedProgram:
    """A copy of a program, trained.

    Args:
        program: The original.
        copied: A copy of it, which gets the weights.
        task: See `restore`; kernels cannot grow, as their sizes are in the graph.
    """
    with torch.enable_grad():
        trained = restore(Runnable(program).eval(), task)
    own = dict(trained.named_parameters())
    for name, value in copied.state_dict.items():
        parameter = own.get(f"program.{name}")
        if parameter is not None:
            value.copy_(parameter)
    return copied
