"""Inputs for ONNX models: those that were given, by name, and made-up ones of the file's own types."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.errors import ModelError
from deconvfix.frontends.onnx.values import static_shape

__all__ = ["Feed", "Shapes", "as_feed", "make_feeds", "shapes_of", "variants"]

Feed = dict[str, NDArray[Any]]

# Spatial and sequence lengths that are tried where the file leaves them open; networks that halve
# their input several times need multiples of 32.
_LENGTHS = (32, 64, 128, 96, 16, 256, 224, 320, 8, 640, 1)
# Larger made-up inputs would take longer than they prove.
_MOST_ELEMENTS = 2**22
# An input of fixed sizes beyond this is a trap: 4 GiB in float32.
_LARGEST = 2**30
_GIVE = "Give inputs: example_inputs=, or --inputs FILE.npz at the command line"


@dataclass(frozen=True)
class Shapes:
    """What the file says about an input.

    Attributes:
        name: Of the input.
        dtype: NumPy's; None if no array can be made up (strings, sequences, optional values).
        shape: Sizes, and names for those that are open; None if the rank is open.
        channels: What the size of axis 1 must be, by the first convolution that reads the input.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str, ...] | None
    channels: int | None


def shapes_of(model: ir.Model) -> tuple[Shapes, ...]:
    """The inputs that a caller must give: those without an initializer."""
    return tuple(_shapes(value) for value in model.graph.inputs if value.const_value is None)


def as_feed(model: ir.Model, example_inputs: Any) -> Feed:
    """Inputs by name, from a tuple, a dict, or a pair of both; tensors become arrays.

    Raises:
        ModelError: If the names are not exactly those of the model's inputs.
    """
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    if isinstance(example_inputs, Mapping):
        args, kwargs = (), example_inputs
    elif not isinstance(example_inputs, (tuple, list)):
        args, kwargs = (example_inputs,), {}
    elif (
        len(example_inputs) == 2
        and isinstance(example_inputs[0], tuple)
        and isinstance(example_inputs[1], Mapping)
    ):
        args, kwargs = example_inputs
    else:
        args, kwargs = example_inputs, {}
    # Inputs with an initializer have a default and may be given by name.
    names = [declared.name for declared in shapes_of(model)]
    optional = {str(value.name) for value in model.graph.inputs} - set(names)
    feed = {name: np.asarray(value) for name, value in zip(names, args, strict=False)}
    feed |= {name: np.asarray(value) for name, value in kwargs.items()}
    missing = [name for name in names if name not in feed]
    unknown = [name for name in feed if name not in names and name not in optional]
    if missing or unknown or len(args) > len(names):
        problem = "missing" if missing else "unknown"
        listed = ", ".join(map(repr, missing or unknown)) or f"{len(args)} positional ones"
        raise ModelError(
            "inputs",
            f"{problem}: {listed}",
            f"the model's inputs are {', '.join(map(repr, names))}",
            "Give an array for each of them, under its name",
        )
    return feed


def make_feeds(model: ir.Model) -> Iterator[Feed]:
    """Made-up inputs, for one choice of the open sizes after the other.

    Raises:
        ModelError: If an input cannot be made up.
    """
    shapes = shapes_of(model)
    for declared in shapes:
        if declared.dtype is None or declared.shape is None:
            what = (
                "its rank is open" if declared.shape is None else "no array can be made up for it"
            )
            raise ModelError(f"input {declared.name!r}", what, "values to run the model on", _GIVE)
        sizes_known = [n for n in declared.shape if isinstance(n, int)]
        if any(n < 0 for n in sizes_known) or math.prod(sizes_known) > _LARGEST:
            what = f"no array of the shape {declared.shape} is made up"
            raise ModelError(f"input {declared.name!r}", what, "values to run the model on", _GIVE)
    # Fixed shapes leave one choice.
    fixed = all(isinstance(n, int) for declared in shapes for n in declared.shape or ())
    for length in _LENGTHS[:1] if fixed else _LENGTHS:
        sizes: dict[str, int] = {}
        for declared in shapes:
            for axis, size in enumerate(declared.shape or ()):
                if isinstance(size, str):
                    # An open first axis is the batch in nearly all files.
                    chosen = 1 if axis == 0 else length
                    if axis == 1 and declared.channels is not None:
                        chosen = declared.channels
                    # One name is one size, wherever it stands.
                    sizes.setdefault(size, chosen)
        yield {
            declared.name: _made(declared, sizes, np.random.default_rng(0)) for declared in shapes
        }


def variants(model: ir.Model, base: Feed) -> Iterator[tuple[str, Feed]]:
    """The base, other values of its shapes, and other sizes for each open axis."""
    shapes = shapes_of(model)
    yield "the inputs", base
    floats = [declared for declared in shapes if base[declared.name].dtype.kind == "f"]
    if floats:
        yield (
            "zeros",
            base | {declared.name: np.zeros_like(base[declared.name]) for declared in floats},
        )
    sizes: dict[str, int] = {}
    for declared in shapes:
        if declared.shape is not None and len(declared.shape) == base[declared.name].ndim:
            for size, have in zip(declared.shape, base[declared.name].shape, strict=True):
                if isinstance(size, str):
                    sizes.setdefault(size, have)
    first = {declared.shape[0] for declared in shapes if declared.shape}
    choices = [
        {symbol: chosen}
        for symbol, have in sizes.items()
        for chosen in ((have + 1,) if symbol in first else (2 * have, have + 32, have + 1))
    ]
    if len(sizes) > 1:
        choices.append(
            {symbol: have + 1 if symbol in first else 2 * have for symbol, have in sizes.items()}
        )
    # Each open size alone, then all together, with sizes that are no multiple of 32.
    for choice in choices:
        rng = np.random.default_rng(1)
        feed = {
            declared.name: _resized(declared, base[declared.name], sizes | choice, rng)
            for declared in shapes
        }
        if sum(array.size for array in feed.values()) <= _MOST_ELEMENTS:
            words = ", ".join(f"{name}={size}" for name, size in choice.items())
            yield f"noise with {words}", base | feed


def _shapes(value: ir.Value) -> Shapes:
    dtype = None
    if isinstance(value.type, ir.TensorType) and value.dtype != ir.DataType.STRING:
        dtype = np.dtype(value.type.dtype.numpy())
    shape = None
    if value.shape is not None:
        shape = tuple(
            size if isinstance(size, int) else str(size.value or f"{value.name}_{axis}")
            for axis, size in enumerate(value.shape)
        )
    channels = None
    for node, index in value.uses():
        if index == 0 and node.op_type in ("Conv", "ConvTranspose") and node.inputs[1] is not None:
            weight = static_shape(node.inputs[1])
            groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
            if weight is not None and len(weight) > 1:
                # Conv stores (C_out, C_in/g, *k), ConvTranspose (C_in, C_out/g, *k).
                found = weight[1] if node.op_type == "Conv" else weight[0]
                factor = groups if node.op_type == "Conv" else 1
                channels = None if found is None else found * factor
    return Shapes(str(value.name), dtype, shape, channels)


def _made(shapes: Shapes, sizes: Mapping[str, int], rng: np.random.Generator) -> NDArray[Any]:
    assert shapes.shape is not None
    assert shapes.dtype is not None
    size = tuple(sizes[n] if isinstance(n, str) else n for n in shapes.shape)
    return _values(shapes.dtype, size, rng)


def _resized(
    shapes: Shapes, base: NDArray[Any], sizes: Mapping[str, int], rng: np.random.Generator
) -> NDArray[Any]:
    """An array of other sizes: noise of the base's mean and spread; other types are repeated."""
    if shapes.shape is None or len(shapes.shape) != base.ndim:
        return base
    size = tuple(
        sizes[n] if isinstance(n, str) else have
        for n, have in zip(shapes.shape, base.shape, strict=True)
    )
    if base.dtype.kind != "f":
        return np.resize(base, size) if size != base.shape else base
    spread = float(base.astype(np.float64).std()) if base.size else 1.0
    noise = rng.standard_normal(size) * (spread or 1.0) + float(base.mean() if base.size else 0)
    return noise.astype(base.dtype)


def _values(dtype: np.dtype[Any], size: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    if dtype.kind == "b":
        return np.ones(size, dtype)  # masks: everything is looked at
    if dtype.itemsize == 1 and dtype.kind in "iu":
        return rng.integers(0, 128, size).astype(dtype)  # pixels
    if dtype.kind in "iu":
        return rng.integers(0, 2, size).astype(dtype)  # numbers of tokens, of classes
    return rng.standard_normal(size).astype(dtype)
