"""Second moments of a layer's features and outputs, summed in float64 where the arrays are.

For each phase of a form's `Design` the rows z = (u, 1, y) hold the features (tap, input channel), a one
for the bias, and the target outputs, with the group axis first. `fit.regression` needs only
H = sum of z z^T. The arrays are NumPy's or another library's: `Arrays` has the few things that differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Step, run
from deconvfix.fit.design import Design
from deconvfix.fit.products import Waiting, add_products, samples_at_once
from deconvfix.fit.regression import HELDOUT_EVERY

__all__ = ["NUMPY", "Arrays", "Moments"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Arrays:
    """What moments need of an array library, besides arithmetic.

    Attributes:
        zeros: Zeros in float64 of a shape, on the device of an array.
        join: A list of arrays, along the first axis.
        run: Steps without a convolution on an input, (N, C, *L), in float64; and a number of groups.
        moveaxis: An array with one axis moved.
        numpy: An array in NumPy.
        turn: Number of this process, and of all, which take turns with the samples.
        total: Replaces arrays by their sums over all processes, in place.
    """

    zeros: Callable[[tuple[int, ...], Any], Any]
    join: Callable[[list[Any]], Any]
    run: Callable[[Sequence[Step], Any, int], Any]
    moveaxis: Callable[[Any, int, int], Any]
    numpy: Callable[[Any], NDArray[Any]]
    turn: Callable[[], tuple[int, int]]
    total: Callable[[list[Any]], None]


NUMPY = Arrays(
    zeros=lambda shape, like: np.zeros(shape),
    join=np.concatenate,
    # The weight is that of the step Conv, which a design does not have.
    run=lambda steps, x, groups: run(steps, x.astype(np.float64), np.zeros(())),
    moveaxis=np.moveaxis,
    numpy=np.asarray,
    turn=lambda: (0, 1),
    total=lambda arrays: None,
)


class Moments:
    """Sums over samples, batches, calls and processes for one layer in one form.

    Args:
        spec: The layer.
        design: Its form as a linear model; or a function that gives it for any output_padding, where a
            call may have an output_size of its own.
        arrays: The library of the samples.

    Attributes:
        design: The form as a linear model, for the layer's own output_padding.
        samples: How many were added.
        held: How many of these are held out.
    """

    def __init__(
        self,
        spec: ConvTransposeSpec,
        design: Design | Callable[[ConvTransposeSpec], Design],
        arrays: Arrays = NUMPY,
    ) -> None:
        self.spec = spec
        self.design = design if isinstance(design, Design) else design(spec)
        self.samples = self.held = 0
        self._design_of = None if isinstance(design, Design) else design
        self._arrays = arrays
        # Of the samples to fit to, and of those held out; made when the first samples say where.
        self._sums: list[list[Any] | None] = [None, None]
        self._waiting = [Waiting(arrays.join) for _ in range(2)]

    @property
    def groups(self) -> int:
        """Groups of the layer's channels."""
        return self.spec.groups

    @property
    def has_heldout(self) -> bool:
        """Whether there are samples to choose on that were not fitted to."""
        return self.held > 0

    def add(self, x: Any, y: Any) -> None:
        """Adds samples.

        Args:
            x: Input, (N, C_in, *L) or (C_in, *L).
            y: Target output, (N, C_out, *L_out) or (C_out, *L_out).

        Raises:
            ValueError: If the layer has no output of that shape for the input.
        """
        # Unbatched: one sample.
        if x.ndim == self.spec.ndim + 1:
            x, y = x[None], y[None]
        # Raises before anything is added, so that sums and counts agree.
        self._output_padding(x.shape, y.shape)
        # Where the processes take turns with the samples, the same are held out as in one process.
        rank, world = self._arrays.turn()
        numbers = rank + world * (np.arange(len(x)) + self.samples)
        # By the number of the sample among all processes: the same are held out however many share them.
        heldout = numbers % HELDOUT_EVERY == HELDOUT_EVERY - 1
        self.samples += len(x)
        self.held += int(heldout.sum())
        for part, chosen in enumerate((~heldout, heldout)):
            rows = np.flatnonzero(chosen)
            # Small batches wait for others of their shape.
            for some_x, some_y in self._waiting[part].put(x[rows], y[rows]):
                self._add(part, some_x, some_y)

    def gather(self) -> None:
        """Adds the sums of all processes, where several share the samples."""
        self._add_all()
        counts = np.array([self.samples, self.held])
        self._arrays.total([*itertools.chain(*map(self._part, range(2))), counts])
        self.samples, self.held = counts.tolist()

    def of_group(self, group: int) -> tuple[list[Array], list[Array]]:
        """H_f of each phase, of the samples to fit to and of those held out."""
        self._add_all()
        fitted, heldout = (
            [self._arrays.numpy(h[group]) for h in self._part(part)] for part in range(2)
        )
        return fitted, heldout

    def _part(self, part: int, like: Any = None) -> list[Any]:
        """The sums of one part, (groups, size, size) for each phase."""
        sums = self._sums[part]
        if sums is None:
            groups = self.spec.groups
            sums = self._sums[part] = [
                self._arrays.zeros((groups, size, size), like)
                for size in self.design.moment_sizes(self.spec)
            ]
        return sums

    def _add_all(self) -> None:
        """Adds what still waits."""
        for part, waiting in enumerate(self._waiting):
            for x, y in waiting.take():
                self._add(part, x, y)

    def _add(self, part: int, x: Any, y: Any) -> None:
        """Adds to one of the parts, those to fit to and those held out."""
        # Nothing can be learned from an empty batch.
        if 0 in (*x.shape, *y.shape):
            return
        padding = self._output_padding(x.shape, y.shape)
        design = self.design
        # Another output_padding changes border and phases, and not the kernel.
        if self._design_of is not None and padding != self.spec.output_padding:
            design = self._design_of(replace(self.spec, output_padding=padding))
        sums = self._part(part, x)
        for some_x, some_y in _pieces(design, x, y):
            add_products(
                sums,
                design.phases,
                self._channels_last(
                    self._arrays.run(design.steps, some_x, self.groups), design.copies
                ),
                self._channels_last(some_y, 1)[0],
                lambda shape: self._arrays.zeros(shape, x),
            )

    def _output_padding(self, x: Sequence[int], y: Sequence[int]) -> tuple[int, ...]:
        """The output_padding that explains the shapes of an input and an output."""
        spec = self.spec
        expected = (x[0], spec.out_channels, *spec.output_size(x[2:]))
        if x[1] == spec.in_channels and tuple(y) == expected:
            return spec.output_padding
        has_channels = x[1] == spec.in_channels and tuple(y[:2]) == expected[:2]
        if self._design_of is not None and has_channels:
            # torch lets a call choose an output_size, which is an output_padding of its own.
            least = replace(spec, output_padding=(0,) * spec.ndim).output_size(x[2:])
            more = tuple(n - low for n, low in zip(y[2:], least, strict=True))
            if min(more) >= 0:
                return more
        raise ValueError(f"its outputs have the shape {tuple(y)}, its geometry gives {expected}")

    def _channels_last(self, values: Any, copies: int) -> Any:
        """(N, groups * copies * C, *L) -> (copies, groups, N, *L, C)."""
        # (N, g, copies, C, *L) -> (copies, g, N, C, *L), then the channels last.
        split = values.reshape(len(values), self.groups, copies, -1, *values.shape[2:])
        return self._arrays.moveaxis(split.swapaxes(0, 2), 3, -1)


def _pieces(design: Design, x: Any, y: Any) -> Iterator[tuple[Any, Any]]:
    """Some samples at a time; at least one."""
    size = samples_at_once(design, x.shape, y.shape)
    for begin in range(0, len(x), size):
        yield x[begin : begin + size], y[begin : begin + size]
