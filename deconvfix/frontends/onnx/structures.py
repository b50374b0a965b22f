"""What is used of a layer's stored weight, and how it is said in a plan.

Quantised layers, computed weights, and crops that are known when the model runs are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.structure import Reduced, reduced, separated
from deconvfix.forms.base import Settings
from deconvfix.frontends.onnx.find import Layer
from deconvfix.frontends.onnx.folded import ORIGIN
from deconvfix.frontends.onnx.pixel_shuffle import why_not
from deconvfix.frontends.onnx.steps import NEWEST_WITHOUT_BROADCAST
from deconvfix.frontends.onnx.structured import Structured, macs_of
from deconvfix.frontends.onnx.values import is_quantizer
from deconvfix.plan import Replaced
from deconvfix.targets.writing import Shuffle, Structure

__all__ = ["as_reduced", "resolved", "structure_of", "structures_of", "told"]

_DTYPES = ("float16", "float32", "float64")

# ONNX Runtime 1.32, one thread, times the speed of the ConvTranspose that is not depthwise (21 channels),
# followed by another operator; passes, matrices, and the reduced layer (union/axes):
#     k64 s32 on 16    10.6   18.9    4.9        k8 s4 on 64      8.9    8.1   10.6
#     k32 s16 on 32     9.2   19.1    6.2        k6 s3 on 64      5.3    4.6    4.9
#     k16 s8 on 64      7.4   11.1    5.4        k4 s2 on 128     4.7    3.0    5.4
_STRIDE_FOR_MATRICES = 8
# Convolutions of single phases, for a stride and a dilation without a common factor.
_MOST_PHASES = 64
_BY_PHASES: tuple[Shuffle, ...] = ("slices", "dcr", "whole")


def structures_of(layer: Layer, decision: Replaced) -> tuple[Structure, ...]:
    """What a layer's weight can be used for, the fastest first and "none" last: candidates to time."""
    return (*(found.structure for found in _found(layer, decision)), "none")


def structure_of(layer: Layer, decision: Replaced) -> Structured | None:
    """What is used of a layer's weight: what the settings ask for, or the next best that it has."""
    asked = decision.settings.structure
    if asked == "none":
        return None
    found = {one.structure: one for one in _found(layer, decision)}
    if asked in found:
        return found[asked]
    # What writes the convolution and the shuffle in a certain way is said of the reduced layer.
    if asked is not None or decision.settings.convolution or decision.settings.shuffle:
        return found.get("reduced")
    return next(iter(found.values()), None)


def _found(layer: Layer, decision: Replaced) -> Iterator[Structured]:
    """All that there is, the fastest first."""
    if not _is_free(layer, decision):
        return
    assert layer.weight is not None
    less = reduced(decision.spec, np.asarray(layer.weight.numpy()))
    spec, is_open = less.spec, None in layer.input_size
    old = layer.opset <= NEWEST_WITHOUT_BROADCAST
    depthwise = spec.groups == spec.in_channels == spec.out_channels
    if depthwise and not old and _is_constant(less):
        yield Structured("upsampling", less)
    # Products of small numbers in float16 are below its normal ones, where rounding is not relative.
    separable = depthwise and layer.dtype != "float16"
    factors = separated(less.weight, less.weight.dtype) if separable else None
    ways: list[Structured] = []
    if factors is not None:
        if not is_open and not old and min(spec.kernel_size) > 1:
            ways.append(Structured("matrices", less, factors))
        ways.append(Structured("passes", less, factors))
        if min(spec.stride) < _STRIDE_FOR_MATRICES:
            ways.reverse()
    # Shuffles of single axes of open sizes are slow.
    first = ways if not is_open else []
    yield from first
    if less.changed:
        yield Structured("reduced", less)
    yield from [way for way in ways if way not in first]


def _is_free(layer: Layer, decision: Replaced) -> bool:
    """Whether a layer has a stored weight, and nothing around it that needs another form."""
    x = layer.node.inputs[0]
    source = None if x is None else x.producer()
    return (
        decision.target.is_exact
        and decision.target.shuffles
        and decision.upsampling is None
        and ORIGIN not in layer.node.meta
        and layer.weight is not None
        and layer.dynamic_size is None
        and layer.dtype in _DTYPES
        and (source is None or not is_quantizer(source, "DequantizeLinear"))
    )


def _is_constant(less: Reduced) -> bool:
    spec = less.spec
    ends = zip(spec.padding, spec.output_padding, strict=True)
    flat = less.weight.reshape(spec.in_channels, -1)
    return (
        spec.kernel_size == spec.stride
        and math.prod(spec.stride) > 1
        and all(d == 1 or k == 1 for d, k in zip(spec.dilation, spec.kernel_size, strict=True))
        and all(more <= end for (_, end), more in ends)
        and bool((flat == flat[..., :1]).all())
    )


# --- what is decided -----------------------------------------------------------------------------------


def as_reduced(layer: Layer, decision: Replaced) -> Replaced:
    """A decision with the geometry that is written; not to be carried out."""
    found = structure_of(layer, decision)
    return decision if found is None else replace(decision, spec=found.layer.spec)


def resolved(layer: Layer, decision: Replaced) -> Replaced:
    """A decision whose settings say what is used of the weight, with its reason and its cost."""
    if not _is_free(layer, decision):
        return decision
    found = structure_of(layer, decision)
    structure: Structure = "none" if found is None else found.structure
    settings = replace(decision.settings, structure=structure)
    if found is None or found.structure == "reduced":
        spec = decision.spec if found is None else found.layer.spec
        settings = _without_zero_taps(layer, spec, settings)
    return told(layer, replace(decision, settings=settings), found)


def told(layer: Layer, decision: Replaced, found: Structured | None) -> Replaced:
    """A decision whose settings are made, with the reason and the cost of what is used of the weight."""
    spec = decision.spec if found is None else found.layer.spec
    if found is not None and found.structure != "reduced":
        macs = macs_of(layer, found)
    else:
        macs = decision.target.compile(spec, decision.settings).macs_per_position
    reason = decision.reason if found is None else f"{decision.reason}; {found.words()}"
    return replace(decision, reason=reason, macs_after=macs)


def _without_zero_taps(layer: Layer, spec: ConvTransposeSpec, settings: Settings) -> Settings:
    """A stride and a dilation without a common factor: single phases have no taps of zero between theirs.

    One convolution has d times the taps on each such axis. k3 s2 d3 (64 to 32 channels on 32 x 32) runs at
    0.92 instead of 0.19 times the speed of the ConvTranspose, k3 s2 d5 (32 on 48 x 48) at 1.02 instead of
    0.12; with dcr at 0.66 and 0.63, with whole at 0.41 and 0.35.
    """
    if settings.convolution or settings.shuffle:
        return settings
    wasted = any(
        k > 1 and s // math.gcd(s, d) > 1 and d // math.gcd(s, d) > 1
        for k, s, d in zip(spec.kernel_size, spec.stride, spec.dilation, strict=True)
    )
    if not wasted or math.prod(spec.stride) > _MOST_PHASES:
        return settings
    for shuffle in _BY_PHASES:
        if why_not(shuffle, spec.stride, layer.input_size, layer.opset, apart=True) is None:
            return replace(settings, convolution="phases", shuffle=shuffle)
    return settings
