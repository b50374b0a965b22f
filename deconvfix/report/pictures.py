"""What the report shows of an intended change: arrays first, then pictures of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.diagnose.evidence import Evidence, Pair, Spectrum
from deconvfix.report import plots

__all__ = [
    "AMPLIFIED",
    "KERNELS",
    "Picture",
    "draw",
]

Array = NDArray[Any]
# The heading of the last pictures.
KERNELS = "Impulse responses of the layers, for the largest weight"
# How often the difference of two outputs is enlarged.
AMPLIFIED = 8.0
_SAMPLE_SIZE = 96
_AXES = {2: ("vertical", "horizontal"), 3: ("first", "second", "third")}


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
    drawn += map(_spectrum, evidence.spectra)
    for kernel in evidence.kernels:
        uri = plots.kernels(_plane(kernel.before), _plane(kernel.after))
        drawn.append(Picture(KERNELS, kernel.layer or "(model)", uri))
    return tuple(drawn)


def _flat(pair: Pair) -> list[Picture]:
    """One contrast for both, that of the original: what is left of a grid must not be hidden."""
    section = f"The grid: the output for {pair.what}, away from the border"
    if pair.before.ndim < 3:
        return _signals(section, pair, samples=256)
    # One scale for both pictures, so that they compare.
    old, new = (_deviations(_slice(array)) for array in (pair.before, pair.after))
    # Rounding must not be blown up to a pattern where there is nothing to see.
    least = 1e-6 * max(1e-30, float(np.abs(pair.before).max()))
    most = max(float(np.abs(old).max()), least)
    scale = f"black to white: {2 * most:.2g} around each channel's mean"
    return [
        Picture(section, f"{title}; {scale}", plots.image(deviations, -most, most))
        for title, deviations in (("before", old), ("after", new))
    ]


def _sample(pair: Pair) -> list[Picture]:
    section = f"The output for {pair.what}"
    if pair.before.ndim < 3:
        return _signals(section, pair, samples=1024)
    old, new = (_middle(_slice(array), _SAMPLE_SIZE) for array in (pair.before, pair.after))
    low, high = float(old.min()), float(old.max())
    half = (high - low) / (2 * AMPLIFIED)
    return [
        Picture(section, "before", plots.image(old, low, high)),
        Picture(section, "after", plots.image(new, low, high)),
        Picture(section, f"difference x{AMPLIFIED:g}", plots.image(new - old, -half, half)),
    ]


def _signals(section: str, pair: Pair, samples: int) -> list[Picture]:
    length = pair.before.shape[-1]
    start = max(0, (length - samples) // 2)
    window = slice(start, start + samples)
    lines = [("before", pair.before[0, window]), ("after", pair.after[0, window])]
    x = np.arange(length)[window]
    uri = plots.curves(x, lines, x_label="sample", y_label="value")
    return [Picture(section, "the centre of the signal", uri, wide=True)]


def _spectrum(spectrum: Spectrum) -> Picture:
    """Power in dB over the original's median, the tones marked with their layers."""
    unit, scale = "cycles per pixel", 1.0
    if spectrum.axes == 1:
        unit = "cycles per sample"
    if spectrum.sample_rate is not None:
        unit, scale = "Hz", spectrum.sample_rate
    # Both curves over one reference. The line at 0 is the level, and no part of a grid.
    reference = float(np.median(spectrum.before[1:])) or 1.0
    # What is 120 dB below is nothing, and would flatten the rest of the picture.
    floor = 1e-12 * max(float(spectrum.before.max()), 1e-300)
    lines = [
        (name, 10 * np.log10(np.maximum(power[1:], floor) / reference))
        for name, power in (("before", spectrum.before), ("after", spectrum.after))
    ]
    marks = [
        plots.Mark(
            scale * abs(tone.frequency[spectrum.axis]),
            tuple(layer or "(model)" for layer in tone.layers),
            tone.strength,
        )
        for tone in spectrum.tones
    ]
    uri = plots.curves(
        scale * spectrum.frequency[1:],
        lines,
        x_label=unit,
        y_label="power in dB",
        marks=marks,
    )
    along = "" if spectrum.axes == 1 else f"along the {_AXES[spectrum.axes][spectrum.axis]} axis; "
    title = f"{along}dotted: the frequencies of the layers' grids"
    section = "Spectrum of the output, with the frequencies of each layer's grid"
    if spectrum.output:
        section += f" (output {spectrum.output})"
    return Picture(section, title, uri, wide=True)


def _slice(array: Array) -> Array:
    """A picture of a volume: through its middle."""
    return array[:, array.shape[1] // 2] if array.ndim == 4 else array


def _middle(array: Array, size: int) -> Array:
    window = []
    for length in array.shape[1:]:
        start = max(0, (length - size) // 2)
        window.append(slice(start, start + size))
    cut: Array = array[(slice(None), *window)]
    return cut


def _deviations(array: Array) -> Array:
    """From the mean of each channel: their levels are no grid."""
    deviations: Array = array - array.mean((1, 2), keepdims=True)
    return deviations


def _plane(kernel: Array) -> Array:
    """Two axes of a kernel of one to three, through the middle of the first of three."""
    return kernel[len(kernel) // 2] if kernel.ndim == 3 else kernel
