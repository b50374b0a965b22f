"""What fidelity.py measures of a converted network, and of the time that a calibration takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case
from deconvfix.fixing.runs import periods_of
from deconvfix.frontends import calibrate as fits
from deconvfix.frontends.torch import frontend as torch_module
from deconvfix.frontends.torch.diagnose import probe_module
from deconvfix.frontends.torch.frontend import FRONTEND
from deconvfix.grid.flat_field import network_answers
from deconvfix.grid.visible import VisibleGrid, visible_grid

__all__ = [
    "CalibrationTime",
    "FlatRipple",
    "distance_db",
    "macs",
    "pass_seconds",
    "visible",
    "watched",
]

# More samples say nothing new about the answer to a constant.
_FLAT_SAMPLES = 8


@torch.no_grad()
def distance_db(case: Case, model: nn.Module) -> float | None:
    """PSNR of the held-out outputs against the original's, for sound SNR; None if they are equal.

    The peak of the PSNR is the range of the original's outputs, as in deconvfix's reports.
    """
    old, new = (network(case.inputs).double() for network in (case.model, model))
    error = float((old - new).square().mean())
    if error == 0:
        return None
    power = float(old.square().mean()) if case.is_sound else float(old.max() - old.min()) ** 2
    return 10 * math.log10(power / error)


@torch.no_grad()
def visible(
    case: Case, model: nn.Module, periods: Mapping[int, tuple[int, ...]]
) -> VisibleGrid | None:
    """The visible grid of the held-out outputs, in the smooth patches and the range of the original's."""
    old, new = (network(case.inputs).numpy() for network in (case.model, model))
    return visible_grid(new, periods[0], like=old) if 0 in periods else None


class FlatRipple:
    """The ripple of networks' answers to a constant input, away from the border, in dB.

    Args:
        case: Its held-out inputs give the constants; where a grid could be is seen on its model.
    """

    def __init__(self, case: Case) -> None:
        self.example = (case.inputs[:_FLAT_SAMPLES],)
        matches = FRONTEND.find(case.model, self.example).matches
        self.periods = periods_of(FRONTEND, case.model, matches, self.example)

    def __call__(self, model: nn.Module) -> float | None:
        """The largest of the outputs' ripples; None if no answer becomes periodic."""
        probe = probe_module(model, self.example, ())
        assert probe.run is not None
        answers = network_answers(probe.run, probe.inputs, self.periods)
        return max((answer.ripple_db for answer in answers.values()), default=None)


@torch.no_grad()
def macs(case: Case, model: nn.Module) -> int:
    """Multiply-accumulates of the layers in the case's places, for one sample."""
    with FlopCounterMode(display=False) as counter:
        model(case.inputs[:1])
    counts = counter.get_flop_counts()
    root = type(model).__name__
    return sum(sum(counts[f"{root}.{name}"].values()) // 2 for name in case.layers)


@torch.no_grad()
def pass_seconds(models: Sequence[nn.Module], batches: Sequence[tuple[Tensor]]) -> float:
    """One pass of all models over the batches: the fastest of three, after one to warm up."""
    took = []
    for _ in range(4):
        started = time.perf_counter()
        for model in models:
            for batch in batches:
                model(*batch)
        took.append(time.perf_counter() - started)
    return min(took[1:])


@dataclass
class CalibrationTime:
    """Seconds inside `calibrate`, and inside its solves, while being watched."""

    calibrate: float = 0.0
    solve: float = 0.0


@contextmanager
def watched() -> Iterator[CalibrationTime]:
    """Times calibrations. What is measured is replaced by what measures it, for a while."""
    spent = CalibrationTime()

    def timed(function: Callable[..., Any], field: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - started
                setattr(spent, field, getattr(spent, field) + took)

        return run

    calibrate, solve = torch_module.calibrate, fits.solve
    with (
        mock.patch.object(torch_module, "calibrate", timed(calibrate, "calibrate")),
        mock.patch.object(fits, "solve", timed(solve, "solve")),
    ):
        yield spent
