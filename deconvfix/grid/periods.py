"""The grids of stacked layers, and the frequencies that they have in the model's output.

A transposed convolution of stride s writes a grid of period s into its own output. Layers that follow
stretch it: with strides s_1 .. s_n, each layer after the other, the grid of layer i has the period

    P_i = s_i * s_(i+1) * .. * s_n     output pixels,

and its tones j/s_i, j < s_i, come out at j / P_i. Upsampling also makes images of them, so that the
grid of layer i may show at every multiple of 1 / P_i. The multiples of 1 / P_n are among those of
1 / P_(n-1), and so on: only tones that no later layer has tell which layer they come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

__all__ = [
    "GridFrequency",
    "Period",
    "frequencies_of",
    "layers_with",
    "longest_period",
    "measured_period",
    "stacked_periods",
]

Period = tuple[int, ...]


@dataclass(frozen=True)
class GridFrequency:
    """One tone of a layer's grid, along one axis.

    Attributes:
        axis: The spatial axis; the frequency is zero along the others.
        multiple: j: the frequency is j / stride cycles per pixel of the layer's output. It stands for
            stride - j too, which is the same tone.
        ripple_db: Its ripple in the answer to a constant, by the weights; None without weights.
        output_frequency: Cycles per pixel (per sample) of the model's output, without images; None
            where the output is too coarse for it.
        hz: The same in Hz, for one dimension with a sample rate.
        coincides_with: Other layers whose grids, or images of them, have the same frequency there.
    """

    axis: int
    multiple: int
    ripple_db: float | None
    output_frequency: float | None
    hz: float | None
    coincides_with: tuple[str, ...]


def stacked_periods(strides: Sequence[tuple[int, ...]]) -> list[Period]:
    """The periods P_i of layers that follow each other, in output pixels per axis.

    Args:
        strides: Of the layers, in the order in which they run. Layers with another number of axes
            count among themselves.

    The first layer has the widest grid, because all that follow enlarge it; a stride of 1 has none:

    >>> stacked_periods([(2, 2), (2, 1), (3, 3)])
    [(12, 6), (6, 1), (3, 3)]
    """
    periods: list[Period] = []
    scale: dict[int, Period] = {}
    # From the last layer, as a period is the product of all strides from its layer on.
    for stride in reversed(strides):
        after = scale.get(len(stride), (1,) * len(stride))
        period = tuple(s * n for s, n in zip(stride, after, strict=True))
        scale[len(stride)] = period
        periods.append(tuple(p if s > 1 else 1 for s, p in zip(stride, period, strict=True)))
    return periods[::-1]


def measured_period(
    stride: Sequence[int], layer_size: Sequence[int], output_size: Sequence[int]
) -> Period:
    """The period of a layer's grid, from the sizes that were seen.

    Args:
        stride: Of the layer.
        layer_size: Spatial size of its output.
        output_size: Spatial size of the model's output. Borders that are cropped on the way make the
            quotient inexact, so it is rounded.
    """
    return tuple(
        1 if s == 1 else max(1, round(s * out / size))
        for s, size, out in zip(stride, layer_size, output_size, strict=True)
    )


def longest_period(grids: Mapping[str, Period]) -> Period:
    """The longest of the grids' periods, per axis."""
    return tuple(max(axis) for axis in zip(*grids.values(), strict=True))


def layers_with(frequency: Sequence[Fraction], periods: Mapping[str, Period]) -> tuple[str, ...]:
    """The layers whose grids have a frequency, those of the shortest period first.

    Args:
        frequency: Cycles per output pixel, per axis.
        periods: Of each layer's grid.
    """
    having = [
        name
        for name, period in periods.items()
        if len(period) == len(frequency)
        and all((f * p).denominator == 1 for f, p in zip(frequency, period, strict=True))
    ]
    return tuple(sorted(having, key=lambda name: periods[name]))


def frequencies_of(
    name: str,
    stride: Sequence[int],
    ripples: Mapping[tuple[int, int], float],
    periods: Mapping[str, Period],
    sample_rate: float | None,
) -> tuple[GridFrequency, ...]:
    """The tones of a layer's grid, axis by axis.

    Args:
        name: Of the layer.
        stride: Of the layer.
        ripples: For each axis and multiple its ripple in dB, if the weights are known.
        periods: Of all layers, in output pixels.
        sample_rate: Of the output, in Hz.
    """
    found = []
    for axis, s in enumerate(stride):
        # Beyond one half the tones are those below it, mirrored.
        for multiple in range(1, s // 2 + 1):
            # A fraction, as only exact numbers tell whether a grid has a frequency.
            at = Fraction(multiple, periods[name][axis])
            shown = at <= Fraction(1, 2)
            everywhere = tuple(at if a == axis else Fraction(0) for a in range(len(stride)))
            others = layers_with(everywhere, periods) if shown else ()
            found.append(
                GridFrequency(
                    axis=axis,
                    multiple=multiple,
                    ripple_db=ripples.get((axis, multiple)),
                    output_frequency=float(at) if shown else None,
                    hz=float(at) * sample_rate
                    if shown and sample_rate is not None and len(stride) == 1
                    else None,
                    coincides_with=tuple(other for other in others if other != name),
                )
            )
    return tuple(found)
