"""The steps of a form as ONNX writes them: cut at the convolution, for nodes to come between."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from deconvfix.core.rearrange import Merge, Permute, Split, Verb, ZeroExtend
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Conv, Crop, PhaseConvs, PixelShuffle, Step
from deconvfix.forms.base import Compiled, Form, Settings
from deconvfix.forms.subpixel import SUBPIXEL
from deconvfix.frontends.onnx.pixel_shuffle import by_phase

__all__ = ["Written", "written"]


@dataclass(frozen=True)
class Written:
    """The exact form as ONNX writes it: what to do before the shuffle, and after."""

    weight: tuple[Verb, ...]
    bias: tuple[Verb, ...]
    before: tuple[Step, ...]
    after: tuple[Step, ...]

    @property
    def channels(self) -> int:
        """Of the convolution's result, those of all phases."""
        conv = self.before[-1]
        if isinstance(conv, PhaseConvs):
            return conv.out_channels * len(conv.phases)
        assert isinstance(conv, Conv)
        return conv.out_channels


def written(form: Form, spec: ConvTransposeSpec, settings: Settings, *, plain: bool) -> Written:
    """A layer's steps, cut at the convolution; `plain`: nothing but a Conv before the shuffle."""
    folding = form.folding(spec, settings)
    if folding is not None:
        exact = written(SUBPIXEL, folding.spec, settings, plain=plain)
        border = () if folding.border is None else (folding.border,)
        return replace(exact, before=(*border, *exact.before))
    verbs: tuple[Verb, ...] = ()
    # Upsampling leaves no phase without a tap.
    if plain and (form.shuffles or not form.folds):
        spec, verbs = _dense(spec)
    compiled = form.compile(spec, settings)
    # Without padding in the spec no crop comes first. The crop at the end does its work.
    if form.is_exact and _crops_first(compiled):
        crop = Crop(spec.padding)
        spec = replace(spec, padding=((0, 0),) * spec.ndim)
        compiled = form.compile(spec, settings)
        compiled = replace(compiled, steps=(*compiled.steps, crop))
    steps = compiled.steps
    cut = 1 + next(i for i, step in enumerate(steps) if isinstance(step, (Conv, PhaseConvs)))
    if by_phase(settings.shuffle) and isinstance(steps[cut - 1], Conv):
        compiled = _by_phase(compiled)
    return Written((*verbs, *compiled.weight), compiled.bias, steps[:cut], steps[cut:])


def _by_phase(compiled: Compiled) -> Compiled:
    """The same, with the channels of the convolution's result ordered by phase; one group."""
    shuffle = next((step for step in compiled.steps if isinstance(step, PixelShuffle)), None)
    if shuffle is None:
        return compiled
    phases = math.prod(shuffle.factors)
    # (C*phases, C_in, *q) -> (C, phases, C_in, *q) -> (phases, C, C_in, *q) -> (phases*C, C_in, *q)
    order = (1, 0, *range(2, 3 + len(shuffle.factors)))
    weight: tuple[Verb, ...] = (Split(0, (-1, phases)), Permute(order), Merge(0, 1))
    bias: tuple[Verb, ...] = (Split(0, (-1, phases)), Permute((1, 0)), Merge(0, 1))
    return replace(compiled, weight=(*compiled.weight, *weight), bias=(*compiled.bias, *bias))


def _crops_first(compiled: Compiled) -> bool:
    """Whether a crop of the input follows a padding of it, which Conv's own pads cannot express."""
    kinds = [type(step) for step in compiled.steps]
    return Conv in kinds and Crop in kinds[: kinds.index(Conv)]


def _dense(spec: ConvTransposeSpec) -> tuple[ConvTransposeSpec, tuple[Verb, ...]]:
    """The same layer with all its taps written out, and zero taps for what no tap reaches.

    Returns:
        A spec without dilation and output_padding and with at least one tap for each phase, and the
        verbs that bring a weight, group axis first, to its kernel.
    """
    kernel = tuple(
        max(big_k + op, s)
        for big_k, op, s in zip(
            spec.effective_kernel_size, spec.output_padding, spec.stride, strict=True
        )
    )
    n = spec.ndim
    verbs: list[Verb] = []
    if max(spec.dilation) > 1:
        # (k) -> (k, 1) -> (k, d) -> (k*d)
        verbs += [Split(3 + i, (-1, 1)) for i in reversed(range(n))]
        gaps = (amount for d in spec.dilation for amount in (0, d - 1))
        verbs += [ZeroExtend((0, 0, 0, *gaps)), *(Merge(3 + i, 4 + i) for i in range(n))]
    spread = [k * d for k, d in zip(spec.kernel_size, spec.dilation, strict=True)]
    verbs.append(ZeroExtend((0, 0, 0, *(big - k for big, k in zip(kernel, spread, strict=True)))))
    grown = [
        big - big_k - op
        for big, big_k, op in zip(
            kernel, spec.effective_kernel_size, spec.output_padding, strict=True
        )
    ]
    dense = replace(
        spec,
        kernel_size=kernel,
        padding=tuple((b, e + more) for (b, e), more in zip(spec.padding, grown, strict=True)),
        output_padding=(0,) * n,
        dilation=(1,) * n,
    )
    return dense, tuple(verbs)
