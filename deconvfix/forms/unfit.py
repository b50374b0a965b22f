"""Weights that no form may change, whatever it would do to them."""

from __future__ import annotations

import numpy as np

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.errors import Refusal
from deconvfix.forms.base import ReadWeight
from deconvfix.grid.fixed_basis import fixed_basis

__all__ = ["not_finite", "why_unfit"]


def not_finite(what: str) -> Refusal:
    """For a weight or bias that no form can take, the exact one included.

    A rearranged kernel has taps that are zero, and the border is padded with zeros: NaN or infinity times
    zero is NaN, where the transposed convolution has no product at all.
    """
    return Refusal(
        f"its {what} holds NaN or infinite values",
        "finite numbers are needed",
        "Correct the checkpoint, or exclude this layer",
    )


def why_unfit(
    spec: ConvTransposeSpec, dtype: str, read_weight: ReadWeight | None, *, named: bool
) -> Refusal | None:
    """Why a layer keeps its weights; None if they may be changed.

    Args:
        spec: The layer.
        dtype: Of its weight, in torch's words.
        read_weight: Gives the weight, where it is stored.
        named: Whether the user asked for this layer, not for all of them.
    """
    if dtype.startswith(("int", "uint", "bool")):
        return Refusal(
            f"its weight is {dtype}",
            "another form computes new weights, which are no integers",
            "Convert this layer to 'subpixel', or exclude it",
        )
    if read_weight is None:
        return None
    weight = read_weight()
    if not np.isfinite(weight).all():
        return not_finite("weight")
    basis = None if named else fixed_basis(spec, weight)
    if basis is None:
        return None
    return Refusal(
        f"its weight is a fixed basis, {basis}",
        "another form would take what it computes on purpose for a grid",
        "Convert this layer to 'subpixel', or name it with include to change it all the same",
    )
