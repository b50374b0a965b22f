"""The writings of the exact form: its convolutions, and its pixel shuffle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from deconvfix.core.options import known

__all__ = ["Convolution", "PadsOf", "Shuffle", "Structure", "Writing"]

Convolution = Literal["cropped", "union", "phases"]
Shuffle = Literal["crd", "dcr", "whole", "axes", "slices", "identity"]
# What the numbers of a weight are used for.
Structure = Literal["none", "reduced", "passes", "matrices", "upsampling"]
# Which convolutions may have pads of their own.
PadsOf = Literal["all", "beyond 1x1", "none"]


@dataclass(frozen=True)
class Writing:
    """A way to write the exact form.

    Attributes:
        convolution: cropped: one, and a crop of its result; union: one over the windows of all phases;
            phases: one for each phase.
        shuffle: crd, dcr: DepthToSpace of that mode; whole: one Reshape, Transpose, Reshape; axes: the
            same for one axis after the other; slices: Split and Concat; identity: a depthwise ConvTranspose
            whose kernel moves pixels, and crops.
    """

    convolution: Convolution
    shuffle: Shuffle

    def __str__(self) -> str:
        return f"{self.convolution}/{self.shuffle}"

    @classmethod
    def parse(cls, name: str) -> Writing:
        """From "union/dcr".

        Raises:
            OptionError: If there is no such writing.
        """
        convolution, _, shuffle = name.partition("/")
        known("writing", convolution, get_args(Convolution))
        known("writing", shuffle, get_args(Shuffle))
        return cls(convolution, shuffle)  # type: ignore[arg-type]
