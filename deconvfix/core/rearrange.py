"""Weight rearrangements as data: a few array verbs that NumPy, torch and ONNX all have.

A form never touches weights. It says *how* the weight of a transposed convolution becomes the weight
of a convolution, as a tuple of verbs; each framework has its own dozen lines that carry them out. So
a weight keeps its dtype, device and gradient, and weights computed at run time work like stored ones.

No verb names a number of channels or groups, so that these may be unknown until the model runs.
Every verb can be undone (`inverse`), which is how a converted layer shows its weight in the layout
of the original layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Flip",
    "Merge",
    "Permute",
    "Pick",
    "Repeat",
    "Split",
    "Verb",
    "ZeroExtend",
    "inverse",
    "plain_layout",
    "rearrange",
]


@dataclass(frozen=True)
class Split:
    """Splits one axis into several of the given sizes, the first of which may be -1."""

    axis: int
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Merge:
    """Merges the axes `first` to `last`, both included, into one."""

    first: int
    last: int


@dataclass(frozen=True)
class ZeroExtend:
    """Appends zeros at the end of each axis; a negative amount cuts elements off there."""

    amounts: tuple[int, ...]


@dataclass(frozen=True)
class Permute:
    """Orders the axes: axis `i` of the result is axis `order[i]` of the operand."""

    order: tuple[int, ...]


@dataclass(frozen=True)
class Flip:
    """Reverses the elements along axes."""

    axes: tuple[int, ...]


@dataclass(frozen=True)
class Repeat:
    """Repeats each element of a 1-D array `times` times: ab -> aabb."""

    times: int


@dataclass(frozen=True)
class Pick:
    """Takes elements of an axis by their numbers, in the order given; an element may be taken again."""

    axis: int
    numbers: tuple[int, ...]


Verb = Split | Merge | ZeroExtend | Permute | Flip | Repeat | Pick


def rearrange(
    verbs: Sequence[Verb],
    array: NDArray[Any],
    groups: int = 1,
    appended: Literal["zeros", "copies"] = "zeros",
) -> NDArray[Any]:
    """Carries the verbs out in NumPy: the executable meaning of a rearrangement.

    Args:
        verbs: What to do, in order.
        array: A weight (C_in, C_out / groups, *k), which the verbs see with the group axis first,
            (groups, C_in / groups, C_out / groups, *k); or a bias (C_out,).
        groups: Groups of the layer.
        appended: What ZeroExtend appends; copies of the last element for an array that tells where each
            element comes from.

    A weight comes out without the group axis if a verb merges it into another, and with it if none does:

    >>> weight = np.zeros((8, 3, 5, 5))  # 8 input channels, 2 groups of 3 output channels
    >>> rearrange([Flip((3, 4))], weight, groups=2).shape
    (2, 4, 3, 5, 5)
    >>> rearrange([Permute((0, 2, 1, 3, 4)), Merge(0, 1)], weight, groups=2).shape
    (6, 4, 5, 5)

    A bias never has one:

    >>> rearrange([Repeat(2)], np.array([1, 2, 3]))
    array([1, 1, 2, 2, 3, 3])
    """
    if array.ndim > 1:
        array = array.reshape(groups, -1, *array.shape[1:])
    for verb in verbs:
        shape = array.shape
        match verb:
            case Split(axis, sizes):
                array = array.reshape(*shape[:axis], *sizes, *shape[axis + 1 :])
            case Merge(first, last):
                merged = math.prod(shape[first : last + 1])
                array = array.reshape(*shape[:first], merged, *shape[last + 1 :])
            case ZeroExtend(amounts):
                # A negative amount cuts here, a positive one is for the padding below.
                kept = array[tuple(slice(0, n + a) for n, a in zip(shape, amounts, strict=True))]
                mode: Literal["constant", "edge"] = "constant" if appended == "zeros" else "edge"
                array = np.pad(kept, [(0, max(a, 0)) for a in amounts], mode)
            case Permute(order):
                array = array.transpose(order)
            case Flip(axes):
                array = np.flip(array, axes)
            case Repeat(times):
                array = np.repeat(array, times)
            case Pick(axis, numbers):
                array = np.take(array, numbers, axis)
    return array


def plain_layout(ndim: int) -> tuple[Verb, ...]:
    """Kernel of a stride-1 transposed convolution -> weight of the convolution that equals it.

    (g, C_in/g, C_out/g, *taps) -> (C_out, C_in/g, *taps), each axis of taps reversed.
    """
    taps = tuple(range(3, 3 + ndim))
    return (Flip(taps), Permute((0, 2, 1, *taps)), Merge(0, 1))


def inverse(verbs: Sequence[Verb], shape: Sequence[int], groups: int = 1) -> tuple[Verb, ...]:
    """The verbs that lead back to a weight or bias of `shape`.

    They take the array as it is, without a group axis. Elements that the way there cut off come
    back as zeros, elements that it appended are dropped.
    """
    shape = tuple(shape)
    undone: list[Verb] = []
    if len(shape) > 1:
        shape = (groups, shape[0] // groups, *shape[1:])
        undone.append(Merge(0, 1))
    for verb in verbs:
        match verb:
            case Split(axis, sizes):
                undone.append(Merge(axis, axis + len(sizes) - 1))
                # A -1 makes the product negative, and its opposite is that of the other sizes.
                known = -math.prod(sizes) if -1 in sizes else math.prod(sizes)
                sizes = tuple(shape[axis] // known if n == -1 else n for n in sizes)
                shape = (*shape[:axis], *sizes, *shape[axis + 1 :])
            case Merge(first, last):
                merged = shape[first : last + 1]
                undone.append(Split(first, merged))
                shape = (*shape[:first], math.prod(merged), *shape[last + 1 :])
            case ZeroExtend(amounts):
                undone.append(ZeroExtend(tuple(-a for a in amounts)))
                shape = tuple(n + a for n, a in zip(shape, amounts, strict=True))
            case Permute(order):
                undone.append(Permute(tuple(order.index(i) for i in range(len(order)))))
                shape = tuple(shape[i] for i in order)
            case Flip():
                undone.append(verb)
            case Repeat(times):
                # Every copy is the same element: the first one of each run stands for it.
                undone += [Merge(0, 1), ZeroExtend((0, 1 - times)), Split(0, (-1, times))]
                shape = (shape[0] * times,)
            case Pick(axis, numbers):
                # Each element from its first place; those that were left out come back as zeros.
                lost = [n for n in range(shape[axis]) if n not in numbers]
                places = tuple(
                    len(numbers) if n in lost else numbers.index(n) for n in range(shape[axis])
                )
                back: list[Verb] = [Pick(axis, places)]
                if lost:
                    more = [0] * len(shape)
                    more[axis] = 1
                    back.insert(0, ZeroExtend(tuple(more)))
                undone += reversed(back)
                shape = (*shape[:axis], len(numbers), *shape[axis + 1 :])
    # The last verb is undone first, and the group axis last.
    return tuple(reversed(undone))
