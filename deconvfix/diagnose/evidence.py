"""What the report shows of an intended change, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.diagnose.fidelity import OutputChange, Tone
from deconvfix.diagnose.measure import Runs, flat_tables, run_both
from deconvfix.frontends.base import Frontend, Kernel, ShowsKernels
from deconvfix.grid.spectra import axis_spectrum
from deconvfix.plan import Plan

__all__ = [
    "Evidence",
    "Pair",
    "Spectrum",
    "gather",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class Pair:
    """An output of the original and the same output of the converted model.

    Attributes:
        what: Of which input, in words.
        before: (C, H, W) of a picture, (C, T) of a signal, (C, D, H, W) of a volume.
        after: The same of the converted model.
    """

    what: str
    before: Array
    after: Array


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of an output along one axis, without what is no grid (`spectra.axis_spectrum`).

    Attributes:
        output: The number of the output.
        axis: The spatial axis.
        axes: How many there are.
        frequency: Cycles per pixel, (n,), from 0 to 1/2.
        before: The power at each, (n,).
        after: The same of the converted model.
        tones: The frequencies of grids on this axis.
        sample_rate: In Hz, for a signal.
    """

    output: int
    axis: int
    axes: int
    frequency: Array
    before: Array
    after: Array
    tones: tuple[Tone, ...]
    sample_rate: float | None = None


@dataclass(frozen=True)
class Evidence:
    """What is drawn for a fitted conversion.

    Attributes:
        flat: The answers to a constant input.
        sample: The outputs on an example.
        kernels: One for each converted layer whose weights are stored.
        spectra: Of the outputs on the example, along each axis.
    """

    flat: Pair | None
    sample: Pair | None
    kernels: tuple[Kernel, ...] = ()
    spectra: tuple[Spectrum, ...] = ()


# Pixels of a tiled answer along each axis.
_TILED = 32


_TILED_SIGNAL = 256


def gather(
    frontend: Frontend,
    before: Any,
    after: Any,
    plan: Plan,
    inputs: Any,
    outputs: Sequence[OutputChange],
    *,
    sample_rate: float | None = None,
) -> Evidence | None:
    """What the report draws of two models' outputs; None if one of the models does not run.

    Args:
        frontend: Of the models' kind.
        before: The original.
        after: The converted model.
        plan: What was converted.
        inputs: As `example_inputs` of `deconvfix.convert`. Real ones, where there are some: made-up ones
            say nothing to the eye.
        outputs: What was measured of them, on the same inputs.
        sample_rate: Of one-dimensional outputs, in Hz.
    """
    matches = frontend.find(before, inputs).matches
    # Both models once, on the same inputs, for everything that is drawn.
    runs = run_both(frontend, before, after, matches, inputs)
    if runs is None:
        return None
    spectra: list[Spectrum] = []
    for change in outputs:
        old, new = runs.shown[change.index][0], runs.compared(change.index)
        if new is not None and change.tones:
            spectra += _spectra(old, new, change, sample_rate)
    return Evidence(
        flat=_flat_pair(runs),
        sample=_pair("the example input", runs.before.outputs, runs.after.outputs),
        spectra=tuple(spectra),
        kernels=frontend.kernels(before, after, plan) if isinstance(frontend, ShowsKernels) else (),
    )


def _spectra(
    before: NDArray[Any], after: NDArray[Any], change: OutputChange, sample_rate: float | None
) -> list[Spectrum]:
    """One for each axis, with the tones on it."""
    found = []
    for axis in range(len(change.period)):
        lines = [axis_spectrum(values, change.period, axis) for values in (before, after)]
        tones = [
            tone
            for tone in change.tones
            if all((f != 0) == (a == axis) for a, f in enumerate(tone.frequency))
        ]
        # Too few periods for a spectrum, or no tone along this axis.
        if lines[0] is None or lines[1] is None or not tones:
            continue
        found.append(
            Spectrum(
                output=change.index,
                axis=axis,
                axes=len(change.period),
                frequency=lines[0][0],
                before=lines[0][1],
                after=lines[1][1],
                tones=tuple(tones),
                sample_rate=sample_rate if len(change.period) == 1 else None,
            )
        )
    return found


def _flat_pair(runs: Runs) -> Pair | None:
    """What was measured: one period away from the border, of the first sample, again and again."""
    old, new = flat_tables(runs)
    for index in old:
        if index in new:
            period = old[index].shape[2:]
            # At least two periods, so that a grid is seen as one.
            least = _TILED if len(period) > 1 else _TILED_SIGNAL
            times = (1, *(max(2, -(-least // s)) for s in period))
            tiled = (np.tile(table[index][0], times) for table in (old, new))
            return Pair("a constant input", *tiled)
    return None


def _pair(what: str, old: Sequence[NDArray[Any]], new: Sequence[NDArray[Any]]) -> Pair | None:
    """The first output that is a signal, a picture or a volume, of the first sample."""
    for one, other in zip(old, new, strict=False):
        shown = one.dtype.kind == "f" and one.ndim in (3, 4, 5) and one.size
        if shown and one.shape == other.shape and np.isfinite([one, other]).all():
            return Pair(what, one[0].astype(np.float64), other[0].astype(np.float64))
    return None
