"""The new weights of quantised layers: fitted as floats, and rounded to integers again.

The integers keep their type, their zero points, and the axis of their scales. A scale stays as it was where
the new kernel fits, and grows as far as it must. Taps are rounded together (`fit.integers`), so that what
is free of the grid by its phase sums is so in integers. The bias of integers gets the scale that runtimes
ask for, that of the input times that of the weight. `integer_nodes` writes all this.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.decibels import LOWEST_DB
from deconvfix.core.phases import phase_of_taps
from deconvfix.errors import ModelError
from deconvfix.fit.integers import rounded_with_sums
from deconvfix.fit.least_squares import relative_distance
from deconvfix.frontends.onnx.find import Layer
from deconvfix.frontends.onnx.integers import Integers, Quantised
from deconvfix.grid.kernel import ripple_db
from deconvfix.plan import Fitted, Replaced

__all__ = [
    "as_stored",
    "bias_integers",
    "bias_scales",
    "copies_of",
    "lost_by_rounding",
    "widened",
]

Array = NDArray[np.float64]
# A tap may be so much larger than the largest integer times the scale: less than rounding it moves.
_SLACK = 1e-3
# A kernel that divides does so to float32 (`forms.resize`).
_EXACT = 1e-6
# Scales of a bias that are those of a product, in float32 or narrower.
_SAME = 1e-3


def as_stored(layer: Layer, decision: Replaced) -> Replaced:
    """A decision with the kernel, and the bias where it changes, as a quantised layer stores them.

    Floating-point layers, and forms that rearrange the integers, are left as they are.

    Raises:
        ModelError: If the integers of the bias cannot hold it.
    """
    own, fitted = layer.quantised, decision.fitted
    if (
        own is None
        or decision.target.is_exact
        or (fitted is not None and fitted.scales is not None)
    ):
        return decision
    kernel = decision.kernel(layer.read_weight())
    scales = _scales(own.weight, kernel, decision)
    taps = _rounded(own.weight, kernel / scales, decision)
    bias = None if fitted is None else fitted.bias
    if own.bias is not None:
        steps = bias_scales(own, scales, decision)
        if bias is None and not np.array_equal(steps, own.bias.scales()):
            bias = own.bias.real()
        if bias is not None:
            bias = bias_integers(own.bias, bias, steps, decision) * steps
    words = _in_words(own.weight, taps, scales, decision)
    return replace(
        decision,
        fitted=Fitted(taps * scales, bias, scales),
        reason=f"{decision.reason}; {words}",
    )


def _in_words(own: Integers, taps: Array, scales: Array, decision: Replaced) -> str:
    """What rounding did, for the report."""
    target = decision.target
    spread = target.spread(decision.spec, decision.settings, taps)
    even = target.evens_sums and ripple_db(*spread) <= LOWEST_DB
    before = widened(own.scales(), decision, copies_of(taps, decision))
    grown = float((scales / before).max(initial=1))
    return (
        f"rounded to {own.stored.dtype.name.lower()}"
        f"{' with equal phase sums' if even else ''}"
        f"{'' if grown == 1 else f', scales up to x{grown:.3g}'}"
    )


def lost_by_rounding(layer: Layer, stored: Replaced) -> float:
    """How far rounding moved the layer's kernel, relative to it; 0 up to what a fit may round."""
    assert stored.fitted is not None
    kernel = replace(stored, fitted=None).kernel(layer.read_weight())
    kernels = (
        stored.target.spread(stored.spec, stored.settings, taps)[1]
        for taps in (stored.fitted.kernel, kernel)
    )
    distance = relative_distance(*kernels)
    return 0.0 if distance <= _EXACT else distance


def copies_of(kernel: Array, decision: Replaced) -> int:
    """How many kernels there are for each channel of the layer."""
    return len(kernel) // decision.spec.in_channels


def widened(numbers: NDArray[Any], decision: Replaced, copies: int = 1) -> NDArray[Any]:
    """Numbers (C_in or 1, C_out / groups or 1, 1 ...) for the copies of each channel, group by group."""
    if len(numbers) == 1 or copies == 1:
        return numbers
    # (C_in, ...) -> (g, 1, C_in/g, ...) -> (g, copies, C_in/g, ...)
    parts = numbers.reshape(decision.spec.groups, 1, -1, *numbers.shape[1:])
    return np.repeat(parts, copies, 1).reshape(-1, *numbers.shape[1:])


def _scales(own: Integers, kernel: Array, decision: Replaced) -> Array:
    """The scales of a new kernel, (C_in or 1, C_out / groups or 1, 1 ...)."""
    copies = copies_of(kernel, decision)
    low, high = (widened(limit, decision, copies) for limit in own.limits())
    # What each tap asks of its scale, then the largest of all that have the same one.
    needed = np.maximum(kernel / high, kernel / low)
    old = own.scales()
    taps = tuple(range(2, kernel.ndim))
    needed = needed.max(taps, keepdims=True)
    if old.shape[1] == 1:
        needed = needed.max(1, keepdims=True)
    if len(old) == 1:
        needed = needed.max(0, keepdims=True)
    else:
        groups = needed.reshape(decision.spec.groups, copies, -1, *needed.shape[1:])
        needed = groups.max(1).reshape(-1, *needed.shape[1:])
    larger = needed.astype(own.scale.dtype).astype(np.float64)
    new = np.where(needed <= old * (1 + _SLACK), old, larger)
    return widened(new, decision, copies)


def _rounded(own: Integers, taps: Array, decision: Replaced) -> Array:
    """Taps in units of their scales, as integers; the copies of a channel share their sums."""
    spec, settings = decision.spec, decision.settings
    copies = copies_of(taps, decision)
    size = taps[0, 0].size
    everything = np.arange(copies * size)
    phases = [everything]
    if decision.target.evens_sums:
        grown, _ = decision.target.spread(spec, settings, taps)
        number = np.zeros((), np.int64)
        axes = phase_of_taps(grown.kernel_size, grown.stride, grown.dilation)
        for phase, s in zip(axes, grown.stride, strict=True):
            number = np.add.outer(number * s, phase)
        phase_of = np.tile(number.ravel(), copies)
        phases = [everything[phase_of == f] for f in np.unique(phase_of)]
    # (copies*C_in, C_out/g, *k) -> (g, copies, C_in/g, C_out/g, k) -> (C_in*C_out/g, copies*k)
    parts = taps.reshape(spec.groups, copies, -1, taps.shape[1], size)
    ordered = np.moveaxis(parts, 1, 3)
    pairs = (spec.in_channels, taps.shape[1])
    low, high = (
        np.broadcast_to(limit.reshape(limit.shape[:2]), pairs).ravel() for limit in own.limits()
    )
    rounded = rounded_with_sums(ordered.reshape(-1, copies * size), phases, low, high)
    return np.moveaxis(rounded.reshape(ordered.shape), 3, 1).reshape(taps.shape).astype(np.float64)


# --- the bias ------------------------------------------------------------------------------------------


def _of_outputs(scales: Array, decision: Replaced) -> Array | None:
    """The weight's scale for each output channel, (C_out,) or (1,); None where input channels have them."""
    spec = decision.spec
    if scales.size == 1:
        return scales.reshape(1)
    if len(scales) == 1:
        return np.tile(scales.reshape(-1), spec.groups)
    if spec.groups < spec.in_channels or spec.groups == 1:
        return None
    # Of a depthwise layer, with its copies: (C_in * copies) -> (C_in) -> (C_out)
    first = scales.reshape(spec.groups, -1)[:, 0]
    return np.repeat(first, spec.out_channels // spec.groups)


def bias_scales(own: Quantised, scales: Array, decision: Replaced) -> Array:
    """The scales of the bias, for new scales of the weight: as they were where they are no product."""
    assert own.bias is not None
    old, new = (_of_outputs(s, decision) for s in (own.weight.scales(), scales))
    current = own.bias.scales()
    if own.input_scale is None or old is None or new is None:
        return current
    step = float(own.input_scale.reshape(-1)[0])
    product = np.allclose(current, step * old, rtol=_SAME, atol=0)
    if not product or np.array_equal(old, new) or new.size > current.size:
        return current
    return (step * new).astype(own.bias.scale.dtype).astype(np.float64)


def bias_integers(own: Integers, bias: Array, scales: Array, decision: Replaced) -> Array:
    """A bias in units of its scales."""
    steps = np.rint(bias / scales)
    info = np.iinfo(np.int32)
    zeros = own.zeros()
    if not ((steps + zeros >= info.min) & (steps + zeros <= info.max)).all():
        raise ModelError(
            decision.name,
            "its new bias is larger than int32 can hold in units of its scale",
            "the scale is that of the input times that of the weight",
            "Quantise the model again with inputs of its real range, or exclude this layer",
        )
    return steps
