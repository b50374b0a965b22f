"""What `inspect` tells about a model, as plain data.

The grids of layers are placed in the model's output on the assumption that the layers follow each other
in the order in which they were found. Where the model was run, the sizes that were seen are used instead,
which is right for layers side by side, and for outputs that are resized later.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from deconvfix.forms.base import Recommendation
from deconvfix.grid.flat_field import FlatField
from deconvfix.grid.periods import GridFrequency
from deconvfix.grid.spectra import Peak, RadialSpectrum
from deconvfix.grid.tones import LockedTones
from deconvfix.grid.variance import PhaseVariance
from deconvfix.grid.visible import VisibleGrid

__all__ = [
    "INSPECTION_FORMAT",
    "Inspection",
    "Layer",
    "OutputDiagnosis",
]

INSPECTION_FORMAT = "deconvfix.inspection/1"


@dataclass(frozen=True)
class Layer:
    """One transposed convolution of a model.

    Attributes:
        name: Where it is.
        op: What it is: a module's class or a function's name.
        ndim: Number of spatial axes; like the rest of the geometry None when it cannot be known.
        dtype: Of the weight.
        calls: How often it ran on the example inputs, None without.
        input_sizes: Spatial sizes it ran on.
        macs_per_position: Multiply-accumulates for each input pixel.
        uneven_overlap: Whether the kernel size is not divisible by the stride (Odena et al. 2016).
        ripple_db: Ripple in the answer to a constant, from the weights; None if they are computed
            while the model runs. -300 stands for none at all.
        refusal: Why it cannot be converted to the exact form; None if it can.
        sum_rule: Whether all phase sums are equal, to the rounding of `dtype` (Sugawara, Shiota, Kiya
            2018, arXiv:1806.02658): then it makes no grid. None without weights, like what follows.
        worst_ripple_db: Largest ripple at one frequency.
        worst_frequency: That frequency, in cycles per pixel of the layer's output, per axis; None if
            there is none.
        frequencies: The frequencies of its grid along each axis, with their ripples.
        period: Pixels of the model's output (samples, for one dimension) in which its grid repeats,
            per axis; see the module's text.
        recommendation: The form that suits it.
        flat_field: Its answer to a constant, of the mean of what it sees in each channel on the
            example inputs, up to 8 samples; None without, and then `ripple_db` is what can be said.
    """

    name: str
    op: str
    ndim: int | None
    in_channels: int | None
    out_channels: int | None
    kernel_size: tuple[int, ...] | None
    stride: tuple[int, ...] | None
    padding: tuple[tuple[int, int], ...] | None
    output_padding: tuple[int, ...] | None
    dilation: tuple[int, ...] | None
    groups: int | None
    bias: bool | None
    dtype: str
    calls: int | None
    input_sizes: tuple[tuple[int, ...], ...]
    macs_per_position: int | None
    uneven_overlap: bool | None
    ripple_db: float | None
    refusal: str | None
    sum_rule: bool | None = None
    worst_ripple_db: float | None = None
    worst_frequency: tuple[float, ...] | None = None
    frequencies: tuple[GridFrequency, ...] = ()
    period: tuple[int, ...] | None = None
    recommendation: Recommendation | None = None
    flat_field: FlatField | None = None


@dataclass(frozen=True)
class OutputDiagnosis:
    """The grid in one of the model's outputs on the example inputs.

    Attributes:
        index: The number of the output.
        shape: Of the output.
        period: The longest period of the layers' grids, in output pixels per axis.
        flat_field: The model's answer to constant inputs; None if the border, or a position that the
            model knows, reaches everywhere.
        phase_variances: Analysis of variance of the output by phase, for each period that a grid has,
            the longest first; not for those of which the output has too few.
        peaks: The spectrum at the frequencies of the grid.
        radial_spectrum: Power by frequency over all directions, for two dimensions.
        visible: The visible grid; None where the output has too few patches, and for sound.
        heard: The tones of a sound that are locked to the phase; None where it is too short, and for others.
    """

    index: int
    shape: tuple[int, ...]
    period: tuple[int, ...]
    flat_field: FlatField | None
    phase_variances: tuple[PhaseVariance, ...]
    peaks: tuple[Peak, ...]
    radial_spectrum: RadialSpectrum | None
    visible: VisibleGrid | None = None
    heard: LockedTones | None = None


@dataclass(frozen=True)
class Inspection:
    """All transposed convolutions of a model, and what grid there is.

    Attributes:
        layers: The transposed convolutions.
        notes: Sentences about what could not be seen.
        outputs: The outputs on the example inputs; none without.
        advice: Sentences about other layers: those whose gradient has a grid.
        sample_rate: Of one-dimensional outputs, in Hz, as it was given.
    """

    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()
    outputs: tuple[OutputDiagnosis, ...] = ()
    advice: tuple[str, ...] = ()
    sample_rate: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"format": INSPECTION_FORMAT, **asdict(self)}
