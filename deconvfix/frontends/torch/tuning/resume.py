"""Where a distillation is, in a file, so that it can go on after it was interrupted."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deconvfix.errors import OptionError
from deconvfix.files import output_folder
from deconvfix.frontends.torch.tuning.processes import rank

__all__ = ["Position", "Resume"]

_FORMAT = "deconvfix tuning 2"


@dataclass
class Position:
    """What a descent knows beside its parameters, its optimizer and its best state.

    Attributes:
        tried: The learning rates that had their trials, and what these gained.
        first: The loss at the start.
        used: Share of the budget that is behind the present trial or run.
        step: Of the present trial or run.
        spent: Its seconds.
        lowest: Its smallest loss so far.
        worse: Evaluations since that.
        last: Share of it at the last evaluation.
        pause: Share of it until the next one.
        batches: Taken from the supply so far.
        best_loss: See `descent.Best`.
        best_steps: See there.
        best_rate: See there.
        steps_before: Steps of the best state that it began with.
    """

    tried: list[tuple[float, float]] = field(default_factory=list)
    first: float = 0.0
    used: float = 0.0
    step: int = 0
    spent: float = 0.0
    lowest: float = math.inf
    worse: int = 0
    last: float = 0.0
    pause: float = 0.0
    batches: int = 0
    best_loss: float = 0.0
    best_steps: int = 0
    best_rate: float = 0.0
    steps_before: int = 0


@dataclass(frozen=True)
class Resume:
    """A file for the state of one distillation.

    Args:
        path: .safetensors; made by the first `save`.
        options: What must be the same when it goes on.
    """

    path: Path
    options: dict[str, Any]

    def fingerprint(self, start: Sequence[Tensor]) -> str:
        """Of the options and the state that the descent started from."""
        digest = hashlib.sha256(json.dumps(self.options, sort_keys=True).encode())
        for tensor in start:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(
        self,
        fingerprint: str,
        position: Position,
        parameters: Sequence[nn.Parameter],
        best: Sequence[Tensor],
        states: dict[int, dict[str, Any]],
    ) -> None:
        """Writes the file, whole or not at all; of several processes the first one does."""
        # All processes hold the same state.
        if rank() != 0:
            return
        tensors = {f"now.{i}": tensor.detach() for i, tensor in enumerate(parameters)}
        tensors |= {f"best.{i}": tensor for i, tensor in enumerate(best)}
        for i, state in states.items():
            # Steps are plain numbers in some states, and the format holds tensors alone.
            tensors |= {f"adam.{i}.{name}": torch.as_tensor(value) for name, value in state.items()}
        metadata = {"format": _FORMAT, "fingerprint": fingerprint, **_as_json(position)}
        with output_folder(self.path, overwrite=True) as folder:
            # safetensors refuses tensors that share memory.
            copies = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
            save_file(copies, folder / self.path.name, metadata=metadata)

    def load(
        self, fingerprint: str, parameters: Sequence[nn.Parameter]
    ) -> tuple[Position, list[Tensor], dict[int, dict[str, Tensor]]] | None:
        """Puts the parameters where they were; position, best state and the optimizers'. None without a file.

        Raises:
            OptionError: If the file is of another distillation, or none.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("format") != _FORMAT:
                raise ValueError("it is not the state of a distillation")
            if metadata.get("fingerprint") != fingerprint:
                raise ValueError("it is of another model, other inputs or other options")
            position = Position(**json.loads(metadata["position"]))
            best = [tensors[f"best.{i}"].to(tensor) for i, tensor in enumerate(parameters)]
            adam: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith("adam."):
                    _, i, key = name.split(".")
                    adam.setdefault(int(i), {})[key] = tensor
            # Last, when all else could be read.
            with torch.no_grad():
                for i, parameter in enumerate(parameters):
                    parameter.copy_(tensors[f"now.{i}"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise OptionError(
                str(self.path),
                f"the distillation cannot resume from it ({error})",
                "a state written by the same conversion is needed",
                "Give another file (or remove this one) to start again",
            ) from error
        return position, best, adam


def _as_json(position: Position) -> dict[str, str]:
    """safetensors holds strings beside tensors."""
    return {"position": json.dumps(asdict(position))}
