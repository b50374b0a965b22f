"""What the report shows of an intended change: arrays first, then pictures of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix import pictures

__all__ = ["Evidence", "Kernel", "Pair", "Picture", "draw"]

Array = NDArray[Any]
_AMPLIFIED = 8.0


@dataclass(frozen=True)
class Pair:
    """An output of the original and the same output of the converted model.

    Attributes:
        what: Of which input, in words.
        before: (C, H, W) of a picture, (C, T) of a signal.
        after: The same of the converted model.
    """

    what: str
    before: Array
    after: Array


@dataclass(frozen=True)
class Kernel:
    """The answer of a layer to one pixel, for the pair of channels with the largest weight.

    Attributes:
        layer: Name of the layer.
        before: Its kernel with a stride of pixels around it, one to three axes.
        after: The same of the converted layer.
    """

    layer: str
    before: Array
    after: Array


@dataclass(frozen=True)
class Evidence:
    """What is drawn for a fitted conversion.

    Attributes:
        flat: The answers to a constant input.
        sample: The outputs on an example.
        kernels: One for each converted layer whose weights are stored.
        period: Pixels after which the network's grid repeats, per axis.
    """

    flat: Pair | None
    sample: Pair | None
    kernels: tuple[Kernel, ...]
    period: tuple[int, ...]


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes:
        section: The heading that it stands under.
        title: What it is.
        uri: The picture itself, as data.
        wide: Whether it takes the whole width: curves do.
    """

    section: str
    title: str
    uri: str
    wide: bool = False


def draw(evidence: Evidence) -> tuple[Picture, ...]:
    """The pictures, in the order of the report."""
    drawn: list[Picture] = []
    if evidence.flat is not None:
        drawn += _flat(evidence.flat)
    if evidence.sample is not None:
        drawn += _sample(evidence.sample)
        drawn += _spectrum(evidence.sample, evidence.period)
    section = "Answers of the layers to one pixel, largest weight"
    for kernel in evidence.kernels:
        uri = pictures.kernels(_plane(kernel.before), _plane(kernel.after))
        drawn.append(Picture(section, kernel.layer or "(model)", uri))
    return tuple(drawn)


def _flat(pair: Pair) -> list[Picture]:
    """One contrast for both, that of the original: what is left of a grid must not be hidden."""
    section = f"Flat field: the answer to {pair.what}"
    if pair.before.ndim < 3:
        return _signals(section, pair, samples=256)
    old, new = (_middle(each, 48) for each in (pair.before, pair.after))
    spread = max(float(np.ptp(old)), 1e-6) / 2
    return [
        Picture(section, title, pictures.image(each, _mid(each) - spread, _mid(each) + spread))
        for title, each in (("before", old), ("after", new))
    ]


def _sample(pair: Pair) -> list[Picture]:
    section = f"Output on {pair.what}"
    if pair.before.ndim < 3:
        return _signals(section, pair, samples=1024)
    old, new = (_middle(each, 96) for each in (pair.before, pair.after))
    low, high = float(old.min()), float(old.max())
    half = (high - low) / (2 * _AMPLIFIED)
    return [
        Picture(section, "before", pictures.image(old, low, high)),
        Picture(section, "after", pictures.image(new, low, high)),
        Picture(section, f"difference x{_AMPLIFIED:g}", pictures.image(new - old, -half, half)),
    ]


def _signals(section: str, pair: Pair, samples: int) -> list[Picture]:
    length = pair.before.shape[-1]
    start = max(0, (length - samples) // 2)
    window = slice(start, start + samples)
    lines = [("before", pair.before[0, window]), ("after", pair.after[0, window])]
    x = np.arange(length)[window]
    uri = pictures.curves(x, lines, x_label="sample", y_label="value")
    return [Picture(section, "the middle of the signal", uri, wide=True)]


def _spectrum(pair: Pair, period: tuple[int, ...]) -> list[Picture]:
    """Power along the last axis, averaged over everything else, with the grid's frequencies marked."""
    frequency = np.fft.rfftfreq(pair.before.shape[-1])[1:]
    lines = []
    for name, array in (("before", pair.before), ("after", pair.after)):
        centred = array - array.mean(-1, keepdims=True)
        window = np.hanning(array.shape[-1])
        power = np.abs(np.fft.rfft(centred * window, axis=-1)) ** 2
        mean = power.reshape(-1, power.shape[-1]).mean(0)[1:]
        lines.append((name, 10 * np.log10(np.maximum(mean, 1e-30))))
    last = period[-1] if period else 1
    marks = [(j / last, f"{j}/{last}") for j in range(1, last // 2 + 1)] if last <= 32 else []
    uri = pictures.curves(
        frequency, lines, x_label="cycles per pixel, last axis", y_label="power in dB", marks=marks
    )
    title = "dotted: where the grid of the transposed convolutions lies"
    return [Picture("Spectrum of that output", title, uri, wide=True)]


def _middle(array: Array, size: int) -> Array:
    window = []
    for length in array.shape[1:]:
        start = max(0, (length - size) // 2)
        window.append(slice(start, start + size))
    cut: Array = array[(slice(None), *window)]
    return cut


def _mid(array: Array) -> float:
    return (float(array.min()) + float(array.max())) / 2


def _plane(kernel: Array) -> Array:
    """Two axes of a kernel of one to three, through the middle of the first of three."""
    return kernel[len(kernel) // 2] if kernel.ndim == 3 else kernel
