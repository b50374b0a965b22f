"""What forms share that are written as a convolution of stride 1."""

from __future__ import annotations

from dataclasses import replace

from deconvfix.core.rearrange import Flip, Merge, Permute, Verb
from deconvfix.core.steps import Conv, Crop, Pad, Pairs, Step

__all__ = ["plain_layout", "zero_border"]


def zero_border(conv: Conv, amounts: Pairs) -> tuple[Step, ...]:
    """A convolution behind a border of zeros; negative amounts crop.

    Zeros that both ends share become the convolution's own padding. Padding comes before cropping,
    so that an input shorter than the crop still gets the right output: bias alone, by definition.

    Args:
        conv: The convolution, with padding 0.
        amounts: `(begin, end)` pixels per axis.
    """
    # Convolutions of torch pad both ends alike, so only what the ends share can be theirs.
    own = tuple(max(0, min(pair)) for pair in amounts)
    rest = [(b - o, e - o) for (b, e), o in zip(amounts, own, strict=True)]
    pads = tuple((max(b, 0), max(e, 0)) for b, e in rest)
    crops = tuple((max(-b, 0), max(-e, 0)) for b, e in rest)
    steps: list[Step] = []
    if any(map(any, pads)):
        steps.append(Pad(pads, "zeros"))
    if any(map(any, crops)):
        steps.append(Crop(crops))
    return (*steps, replace(conv, padding=own))


def plain_layout(ndim: int) -> tuple[Verb, ...]:
    """Kernel of a stride-1 transposed convolution -> weight of the convolution that equals it.

    (g, C_in/g, C_out/g, *taps) -> (C_out, C_in/g, *taps), each axis of taps reversed.
    """
    taps = tuple(range(3, 3 + ndim))
    return (Flip(taps), Permute((0, 2, 1, *taps)), Merge(0, 1))
