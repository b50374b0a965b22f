"""What `inspect` tells about a model, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deconvfix.artifacts import ripple_db, uneven_overlap
from deconvfix.plan import Match

__all__ = ["INSPECTION_FORMAT", "Inspection", "Layer", "describe"]

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


@dataclass(frozen=True)
class Inspection:
    """All transposed convolutions of a model, and sentences about what could not be seen."""

    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"format": INSPECTION_FORMAT, **asdict(self)}


def describe(matches: Sequence[Match], notes: Sequence[str] = ()) -> Inspection:
    """Describes what a search found."""
    return Inspection(tuple(map(_layer, matches)), tuple(notes))


def _layer(match: Match) -> Layer:
    spec = match.spec
    ripple = None
    if spec is not None and match.obstacle is None and match.read_weight is not None:
        ripple = ripple_db(spec, match.read_weight())
    return Layer(
        name=match.name,
        op=match.op,
        ndim=None if spec is None else spec.ndim,
        in_channels=None if spec is None else spec.in_channels,
        out_channels=None if spec is None else spec.out_channels,
        kernel_size=None if spec is None else spec.kernel_size,
        stride=None if spec is None else spec.stride,
        padding=None if spec is None else spec.padding,
        output_padding=None if spec is None else spec.output_padding,
        dilation=None if spec is None else spec.dilation,
        groups=None if spec is None else spec.groups,
        bias=None if spec is None else spec.bias,
        dtype=match.dtype,
        calls=match.calls,
        input_sizes=match.input_sizes,
        macs_per_position=None if spec is None else spec.macs_per_position(),
        uneven_overlap=None if spec is None else uneven_overlap(spec),
        ripple_db=ripple,
        refusal=None if match.obstacle is None else match.obstacle.sentence(match.name),
    )
