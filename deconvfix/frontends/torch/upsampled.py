"""Nearest upsampling in front of convolutions, found by a run of a torch model.

Results of `interpolate` are followed through operations that treat each element alike to the convolutions
that read them. Whatever else reads them, or their sizes, keeps the two as they are.
"""

from __future__ import annotations

import re
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from deconvfix.core.folded import Folded
from deconvfix.core.steps import PadMode
from deconvfix.errors import Refusal
from deconvfix.frontends.base import Findings
from deconvfix.frontends.folded import (
    NO_INPUTS,
    NOT_A_STORED_WEIGHT,
    NOTHING_SAVED,
    OTHER_BORDER,
    OTHER_STEPS,
    READ_ELSEWHERE,
    SERVES_OTHERS,
    WIDE_REFLECTION,
)
from deconvfix.frontends.torch.find import has_own_forward, owners_of_parameters
from deconvfix.frontends.torch.inputs import (
    as_inputs,
    copy_model,
    dtype_name,
    flat_tensors,
    names_of,
    run_model,
    running_modules,
)
from deconvfix.frontends.torch.layers import read_weight
from deconvfix.frontends.torch.shuffles import CONVOLUTIONS, ELEMENTWISE, class_of
from deconvfix.plan import Match

__all__ = ["find_upsampled", "folded_of", "match_of", "whole_factors"]

_NEAREST = ("nearest", "nearest-exact")
_MODES: dict[str, PadMode] = {"zeros": "zeros", "reflect": "reflect", "replicate": "replicate"}
_FUNCTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
# What says nothing of a map's size.
_TELLS_NOTHING: tuple[Any, ...] = (
    *(getattr(Tensor, name).__get__ for name in ("dtype", "device", "is_cuda", "layout", "ndim")),
    *(Tensor.dim, Tensor.is_floating_point),
)


@dataclass(frozen=True)
class _Upsampled:
    """A map that was upsampled.

    Attributes:
        tensor: Itself, as long as the model keeps it.
        place: The module whose code upsamples.
        factors: By how much.
        sizes: Of the small map.
    """

    tensor: weakref.ref[Tensor]
    place: nn.Module
    factors: tuple[int, ...]
    sizes: tuple[int, ...]


class _Follow(TorchFunctionMode):
    """Finds what convolutions get from nearest upsampling.

    Attributes:
        pairs: For each layer the upsampled maps that it got.
        calls: How often each layer ran.
        runs: How often each place upsampled by nearest neighbours.
        elsewhere: Places whose results others read.
        around: Modules around places.
    """

    def __init__(self, stack: list[nn.Module]) -> None:
        super().__init__()
        self.stack = stack
        self.followed: dict[int, _Upsampled] = {}
        self.pairs: dict[nn.Module, list[_Upsampled]] = {}
        self.calls: Counter[nn.Module] = Counter()
        self.runs: Counter[nn.Module] = Counter()
        self.elsewhere: set[nn.Module] = set()
        self.around: set[nn.Module] = set()

    def known(self, value: Any) -> _Upsampled | None:
        """What a tensor is known to be."""
        found = self.followed.get(id(value)) if isinstance(value, Tensor) else None
        return found if found is not None and found.tensor() is value else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = [found for found in map(self.known, _tensors((args, kwargs))) if found is not None]
        result = func(*args, **kwargs)
        layer = self.stack[-1] if self.stack else None
        if func in _FUNCTIONS and isinstance(layer, CONVOLUTIONS):
            self.calls[layer] += 1
        if read and func not in _TELLS_NOTHING:
            self._read(read, func, args, result, layer)
        factors = whole_factors(func, args, kwargs)
        if factors is not None and layer is not None:
            self.runs[layer] += 1
            self.around.update(self.stack[:-1])
            sizes = tuple(result.shape[2:])
            small = tuple(n // s for n, s in zip(sizes, factors, strict=True))
            self.followed[id(result)] = _Upsampled(weakref.ref(result), layer, factors, small)
        return result

    def _read(
        self, read: list[_Upsampled], func: Any, args: Any, result: Any, layer: nn.Module | None
    ) -> None:
        source = self.known(args[0]) if args else None
        name = re.sub("(?<=[a-z0-9])_$", "", getattr(func, "__name__", ""))
        if source is not None and len(read) == 1 and isinstance(result, Tensor):
            others = [value for value in _tensors(args[1:]) if value.numel() > 1]
            own_border = func is functional.pad and isinstance(layer, CONVOLUTIONS)
            alike = name in ELEMENTWISE and result.shape == args[0].shape and not others
            if alike or own_border:
                self.followed[id(result)] = _Upsampled(
                    weakref.ref(result), source.place, source.factors, source.sizes
                )
                return
            if func in _FUNCTIONS and isinstance(layer, CONVOLUTIONS):
                self.pairs.setdefault(layer, []).append(source)
                return
        self.elsewhere.update(one.place for one in read)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def whole_factors(func: Any, args: Sequence[Any], kwargs: Any) -> tuple[int, ...] | None:
    """The factors of a call that repeats each pixel a whole number of times; None for any other call."""
    if func is not functional.interpolate:
        return None
    names = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
    call = dict(zip(names, args, strict=False)) | kwargs
    x, size, scale = call["input"], call.get("size"), call.get("scale_factor")
    if call.get("mode", "nearest") not in _NEAREST:
        return None
    ndim = x.dim() - 2
    if size is not None:
        sizes = [size] * ndim if isinstance(size, int) else list(size)
        scales = [n / have for n, have in zip(sizes, x.shape[2:], strict=True)]
    else:
        scales = list(scale) if isinstance(scale, (list, tuple)) else [scale] * ndim
    if any(s < 1 or s != int(s) for s in scales) or max(scales) < 2:
        return None
    return tuple(int(s) for s in scales)


def folded_of(layer: nn.Module, factors: tuple[int, ...]) -> Folded | Refusal:
    """A convolution of torch's own behind nearest upsampling, if it can be folded."""
    assert isinstance(layer, CONVOLUTIONS)
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    if type(layer) not in CONVOLUTIONS or has_own_forward(layer) or hooks:
        return NOT_A_STORED_WEIGHT
    if {*layer.stride, *layer.dilation} != {1}:
        return OTHER_STEPS
    if layer.padding_mode not in _MODES:
        return OTHER_BORDER
    # Of the last axis first, as functional.pad takes them; that of "same" too.
    amounts = layer._reversed_padding_repeated_twice
    pairs = tuple(zip(amounts[::2], amounts[1::2], strict=True))[::-1]
    folded = Folded(
        factors=factors,
        kernel_size=tuple(layer.kernel_size),
        padding=pairs,
        mode=_MODES[layer.padding_mode],
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    if not folded.can_be_folded:
        return WIDE_REFLECTION
    return folded if folded.saves else NOTHING_SAVED


def find_upsampled(model: nn.Module, inputs: Any | None) -> Findings:
    """Convolutions that get an upsampled map and nothing else; see `frontends.folded.Folds`."""
    if inputs is None:
        return Findings((), (NO_INPUTS,))
    probe = copy_model(model).eval()
    with running_modules() as stack:
        follow = _Follow(stack)
        with follow:
            outputs = run_model(probe, as_inputs(inputs))
    for tensor in flat_tensors(outputs):
        found = follow.known(tensor)
        if found is not None:
            follow.elsewhere.add(found.place)
    names, owners = names_of(probe), owners_of_parameters(probe)
    matches, notes = [], []
    for layer, seen in follow.pairs.items():
        if layer not in names:
            continue
        folded = _foldable(follow, layer, seen, owners)
        if isinstance(folded, Refusal):
            notes.append(folded.sentence(names[layer]))
            continue
        match = match_of(names[layer], layer, folded, names[seen[0].place])
        sizes = tuple(dict.fromkeys(one.sizes for one in seen))
        matches.append(replace(match, input_sizes=sizes, calls=len(seen)))
    return Findings(tuple(matches), tuple(notes))


def match_of(name: str, layer: Any, folded: Folded, upsampling: str) -> Match:
    """A convolution of torch's own and what upsamples in front of it, as a match."""
    return Match(
        name=name,
        op=f"Upsample + {class_of(layer).__name__}",
        spec=folded.spec,
        dtype=dtype_name(layer.weight),
        read_weight=lambda: folded.transposed(read_weight(layer.weight)),
        macs=folded.macs_per_position(),
        upsampling=upsampling,
    )


def _foldable(
    follow: _Follow, layer: nn.Module, seen: list[_Upsampled], owners: dict[int, list[str]]
) -> Folded | Refusal:
    folded = folded_of(layer, seen[0].factors)
    if isinstance(folded, Refusal):
        return folded
    if any(len(owners[id(parameter)]) > 1 for parameter in layer.parameters()):
        return NOT_A_STORED_WEIGHT
    place = seen[0].place
    alike = all(one.place is place and one.factors == seen[0].factors for one in seen)
    # The place upsamples for this layer alone, and the layer gets nothing else.
    alone = alike and len(seen) == follow.calls[layer] == follow.runs[place]
    if not alone or place in follow.around or "forward" in vars(place):
        return SERVES_OTHERS
    return READ_ELSEWHERE if place in follow.elsewhere else folded
