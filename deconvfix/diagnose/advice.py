"""Which form suits a layer, in a word and a sentence with its cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Interpolation
from deconvfix.errors import Refusal
from deconvfix.forms.base import Form, Settings, Settled
from deconvfix.forms.equalized import EQUALIZED
from deconvfix.forms.resize import RESIZE
from deconvfix.forms.subpixel import SUBPIXEL
from deconvfix.grid.kernel import sum_rule_holds
from deconvfix.plan import Match

__all__ = ["Recommendation", "recommend"]

# Taps smaller than this part of the largest are rounding.
_NEGLIGIBLE = 1e-5


@dataclass(frozen=True)
class Recommendation:
    """What to do about a layer.

    Attributes:
        form: "subpixel", "resize", "equalized", or "keep" for the layer as it is.
        reason: A sentence: why, and at what cost.
        relative_macs: Multiply-accumulates of that form, relative to the layer.
    """

    form: str
    reason: str
    relative_macs: float


def recommend(match: Match) -> Recommendation | None:
    """The form that suits a layer; None if its geometry is not known.

    Free of a grid already: the form that computes the same function. Otherwise the smallest change
    that takes the grid away. Where the weight cannot be read or replaced, the exact form is left.
    """
    spec = match.spec
    if spec is None:
        return None
    if match.obstacle is not None:
        return Recommendation("keep", f"It cannot be converted: {match.obstacle.found}.", 1.0)
    if max(spec.stride) == 1:
        return Recommendation("keep", "Stride 1: it has no phases, and so no grid.", 1.0)
    exact = _settled(SUBPIXEL, match, Settings())
    if exact is None:
        return Recommendation("keep", "Its dense kernel would be too large to convert.", 1.0)
    cost = _cost(SUBPIXEL, spec, exact)
    if match.read_weight is None:
        return Recommendation(
            "subpixel",
            "Its weight is computed while the model runs: only the exact form can be had, at "
            f"x{cost:.2f} multiply-accumulates, which keeps whatever grid there is.",
            cost,
        )
    weight = match.read_weight()
    if sum_rule_holds(spec, weight, match.dtype):
        divided = None if match.exact_only else _divides(match, weight)
        if divided is not None:
            return divided
        return Recommendation(
            "subpixel",
            f"Its phase sums are equal, there is no grid to lose: the exact form, at x{cost:.2f} "
            "multiply-accumulates.",
            cost,
        )
    found = "Its phase sums differ, which makes a grid"
    if match.exact_only is not None:
        return Recommendation(
            "subpixel",
            f"{found}, but {match.exact_only.found}: the exact form, at x{cost:.2f} "
            "multiply-accumulates, keeps the grid.",
            cost,
        )
    if match.fixed_weight is None and _settled(EQUALIZED, match, Settings()) is not None:
        return Recommendation(
            "equalized",
            f"{found}: the same layer with corrected weights, at x1.00 multiply-accumulates; "
            "calibrate them on a few inputs, weights alone lose much.",
            1.0,
        )
    fitted = None
    if "nearest" not in match.no_upsampling:
        fitted = _settled(RESIZE, match, Settings())
    if fitted is not None:
        cost = _cost(RESIZE, spec, fitted)
        return Recommendation(
            "resize",
            f"{found}, and its own weights cannot be corrected: a resize-convolution has no grid, "
            f"at x{cost:.2f} multiply-accumulates; calibrate it on a few inputs.",
            cost,
        )
    return Recommendation(
        "subpixel",
        f"{found}, and no other form can be had: the exact form, at x{cost:.2f} "
        "multiply-accumulates, keeps the grid.",
        cost,
    )


def _divides(match: Match, weight: NDArray[np.float64]) -> Recommendation | None:
    """A resize-convolution that is the same function, if there is one; with the fewest taps."""
    assert match.spec
    spec = match.spec
    best: tuple[int, Interpolation, float, NDArray[np.float64]] | None = None
    for kind in get_args(Interpolation):
        settings = Settings(interpolation=kind, init="exact")
        settled = None if kind in match.no_upsampling else _settled(RESIZE, match, settings)
        if settled is None or not settled.exact:
            continue
        kernel = RESIZE.fit(spec, replace(settled.settings, init="fit"), weight)
        needed = np.abs(kernel) > _NEGLIGIBLE * np.abs(kernel).max(initial=0)
        taps = int(np.any(needed, axis=(0, 1)).sum())
        if best is None or taps < best[0]:
            best = (taps, kind, _cost(RESIZE, spec, settled), needed)
    if best is None:
        return None
    taps, kind, cost, needed = best
    connected = np.any(needed, axis=tuple(range(2, needed.ndim)))
    per_channel = spec.groups == spec.in_channels == spec.out_channels or (
        spec.groups == 1
        and spec.in_channels == spec.out_channels > 1
        and not connected[~np.eye(spec.in_channels, dtype=bool)].any()
    )
    if taps <= 1 and per_channel:
        more = f"; one tap per channel is not zero, so {kind} upsampling alone is enough"
    elif per_channel and spec.groups == 1:
        more = "; each channel depends on itself alone, so a depthwise convolution is enough"
    else:
        more = ""
    return Recommendation(
        "resize",
        f"Its kernel divides by that of {kind} upsampling: a resize-convolution is the same "
        f"function, at x{cost:.2f} multiply-accumulates{more}.",
        cost,
    )


def _settled(form: Form, match: Match, settings: Settings) -> Settled | None:
    assert match.spec
    settled = form.settle(match.spec, settings, match.read_weight)
    return None if isinstance(settled, Refusal) else settled


def _cost(form: Form, spec: ConvTransposeSpec, settled: Settled) -> float:
    return form.compile(spec, settled.settings).macs_per_position / spec.macs_per_position()
