"""Inputs of ONNX models: given, or drawn from a distribution; in batches of the file's own size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.errors import OptionError
from deconvfix.frontends.onnx.inputs import Feed, as_feed, make_feeds, shapes_of
from deconvfix.frontends.samples import in_batches_of

__all__ = ["OnnxSamples", "rebatched"]

# Samples in a batch that is drawn where the file leaves their number open.
_BATCH = 8


@dataclass(frozen=True)
class OnnxSamples:
    """Inputs of an ONNX model, by name; see `frontends.samples.Samples`.

    Attributes:
        model: The model.
        example_inputs: Gives the shapes to draw; not needed where the file has them.
        seed: Of what is drawn.
    """

    model: ir.Model
    example_inputs: Any | None
    seed: int = 0

    def given(self, item: Any) -> Feed:
        """As `inputs.as_feed` takes it.

        Raises:
            ModelError: If the names are not those of the model's inputs.
        """
        return as_feed(self.model, item)

    def example(self, distribution: str) -> Feed:
        """The example inputs, or made-up ones where the file has the shapes."""
        if self.example_inputs is not None:
            return as_feed(self.model, self.example_inputs)
        shapes = shapes_of(self.model)
        for declared in shapes:
            if declared.shape is None or any(isinstance(n, str) for n in declared.shape[1:]):
                raise OptionError(
                    "calibration",
                    f"it is {distribution!r}, and the sizes of the input {declared.name!r} are open",
                    "example inputs give the shapes to draw",
                    "Give `example_inputs` (--input NAME=1x64x8x8 at the command line)",
                )
        # Only the number of samples is open, so the first choice has the right sizes.
        made = next(make_feeds(self.model))
        return {
            declared.name: np.repeat(made[declared.name], _BATCH, 0)
            if declared.shape and isinstance(declared.shape[0], str)
            else made[declared.name]
            for declared in shapes
        }

    def supply(self, example: Feed, distribution: str) -> Iterator[Feed]:
        """Drawn in float64, in the dtypes of the example."""
        rng = np.random.default_rng(self.seed)
        draw = rng.standard_normal if distribution == "normal" else rng.random

        def drawn(array: NDArray[Any]) -> NDArray[Any]:
            return draw(array.shape).astype(array.dtype) if array.dtype.kind == "f" else array

        while True:
            yield {name: drawn(array) for name, array in example.items()}

    def size(self, inputs: Feed) -> int:
        """Along the first axis of its arrays, the fewest."""
        lengths = (len(array) for array in inputs.values() if array.ndim)
        return max(1, min(lengths, default=1))

    def total(self, count: int) -> int:
        """ONNX models are fitted by one process."""
        return count


def rebatched(model: ir.Model, batches: Iterable[Feed]) -> Iterator[Feed]:
    """Batches of as many samples as the file has, in the dtypes of its inputs; a rest is left out.

    Where the file leaves the number open, they stay as they are.
    """
    shapes = shapes_of(model)
    dtypes = {declared.name: declared.dtype for declared in shapes}
    # Inputs that disagree on their first axis have no common axis of samples.
    sizes = {declared.shape[0] for declared in shapes if declared.shape}
    fixed = next((n for n in sizes if isinstance(n, int)), None) if len(sizes) == 1 else None
    feeds = (
        {name: _cast(array, dtypes.get(name)) for name, array in batch.items()} for batch in batches
    )
    return feeds if fixed is None else in_batches_of(fixed, feeds)


def _cast(array: NDArray[Any], dtype: np.dtype[Any] | None) -> NDArray[Any]:
    """NumPy's own float64 says nothing of what the model takes."""
    kinds = ("f", "f"), ("i", "i"), ("u", "u"), ("i", "u"), ("u", "i")
    if dtype is None or (array.dtype.kind, dtype.kind) not in kinds:
        return array
    return array.astype(dtype)
