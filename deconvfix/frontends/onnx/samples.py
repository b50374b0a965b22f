"""Calibration inputs of ONNX models: given, or drawn from a distribution."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.errors import OptionError
from deconvfix.frontends.onnx.inputs import Feed, as_feed, make_feeds, shapes_of
from deconvfix.frontends.samples import DRAWN, check_distribution, in_batches_of, nothing_to_fit_to

__all__ = ["calibration_feeds", "count_samples", "rebatched"]

# Samples in a batch that is drawn where the file leaves their number open.
_BATCH = 8


def calibration_feeds(
    model: ir.Model, calibration: Iterable[Any] | str, example_inputs: Any | None, seed: int = 0
) -> list[Feed]:
    """The inputs to fit to, by name.

    Args:
        model: The model.
        calibration: An iterable of inputs as `inputs.as_feed` takes them, or "normal" or "uniform".
        example_inputs: Gives the shapes to draw; what is no floating-point array stays as it is. Not
            needed where the file has the shapes.
        seed: Of what is drawn.

    Raises:
        OptionError: If there are none.
        ModelError: If the names are not those of the model's inputs.
    """
    if not isinstance(calibration, str):
        feeds = [as_feed(model, each) for each in calibration]
        if not feeds:
            raise nothing_to_fit_to("it is empty")
        return feeds
    check_distribution(calibration)
    example = _example(model, calibration, example_inputs)
    rng = np.random.default_rng(seed)

    def drawn(array: NDArray[Any]) -> NDArray[Any]:
        if array.dtype.kind != "f":
            return array
        values = (
            rng.standard_normal(array.shape) if calibration == "normal" else rng.random(array.shape)
        )
        return values.astype(array.dtype)

    batches = math.ceil(DRAWN / _batch_size(example))
    return [{name: drawn(array) for name, array in example.items()} for _ in range(batches)]


def count_samples(
    model: ir.Model, calibration: Iterable[Any] | str, example_inputs: Any | None
) -> int:
    """The samples in calibration inputs along the first axis, or those drawn of a distribution."""
    if isinstance(calibration, str):
        size = _batch_size(_example(model, calibration, example_inputs))
        return math.ceil(DRAWN / size) * size
    return sum(_batch_size(as_feed(model, each)) for each in calibration)


def rebatched(model: ir.Model, batches: Iterable[Feed]) -> Iterator[Feed]:
    """Batches of as many samples as the file has, in the dtypes of its inputs; a rest is left out.

    Where the file leaves the number open, they stay as they are.
    """
    shapes = shapes_of(model)
    dtypes = {each.name: each.dtype for each in shapes}
    sizes = {each.shape[0] for each in shapes if each.shape}
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


def _example(model: ir.Model, distribution: str, example_inputs: Any | None) -> Feed:
    if example_inputs is not None:
        return as_feed(model, example_inputs)
    shapes = shapes_of(model)
    for each in shapes:
        if each.shape is None or any(isinstance(n, str) for n in each.shape[1:]):
            raise OptionError(
                "calibration",
                f"it is {distribution!r}, and the sizes of the input {each.name!r} are open",
                "example inputs give the shapes to draw",
                "Give `example_inputs` (--input NAME=1x64x8x8 at the command line)",
            )
    made = next(make_feeds(model))
    return {
        each.name: np.repeat(made[each.name], _BATCH, 0)
        if each.shape and isinstance(each.shape[0], str)
        else made[each.name]
        for each in shapes
    }


def _batch_size(feed: Feed) -> int:
    return max(1, min((len(each) for each in feed.values() if each.ndim), default=1))
