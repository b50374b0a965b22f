"""Layers written by what the numbers of their weights allow: a few operators for each structure.

| structure | operators | what the weight has |
|---|---|---|
| reduced | as for any layer, with fewer channels in a group, and fewer taps | zeros |
| passes | Conv and shuffle for each axis | factors |
| matrices | MatMul for each axis | factors, for fixed sizes |
| upsampling | Mul, Resize (nearest) | one number for each channel |

The algebra is that of `core.structure`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.rearrange import Verb, rearrange
from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.structure import Reduced, along, matrix_of
from deconvfix.core.windows import AxisWindows, windows
from deconvfix.forms.base import Form, Settings
from deconvfix.frontends.onnx.find import Layer
from deconvfix.frontends.onnx.steps import Operands, Writer
from deconvfix.frontends.onnx.values import Operand
from deconvfix.frontends.onnx.weights import Store
from deconvfix.frontends.onnx.written import written
from deconvfix.targets.writing import Structure

__all__ = ["Structured", "Structures", "macs_of"]

Array = NDArray[Any]

# The last axis as one matrix of its whole length: 2.3 ms instead of 2.7 by its windows (k16 s8 on 64).
_SHORT = 64
# The matrix of a whole axis needs no Reshape behind it. Where the result is the model's, ONNX Runtime
# copies it for that: 1.5 instead of 3.1 ms (k64 s32 on 16), 3.8 instead of 3.8 (k16 s8 on 64).
_SHORT_WITHOUT_RESHAPE = 32


@dataclass(frozen=True, eq=False)
class Structured:
    """What is used of a layer's weight.

    Attributes:
        structure: For what.
        layer: Without what is zero in its weight.
        factors: Of its kernel, one for each axis; None if it has none.
    """

    structure: Structure
    layer: Reduced
    factors: tuple[Array, ...] | None = None

    def words(self) -> str:
        """A clause for the report."""
        found = []
        if self.layer.diagonal:
            found.append(f"its weight is diagonal: {self.layer.spec.groups} groups")
        if self.layer.planes:
            planes = "plane" if self.layer.planes == 1 else "planes"
            found.append(f"{self.layer.planes} {planes} of zeros left out")
        axes = {1: "one", 2: "two", 3: "three"}[self.layer.spec.ndim]
        how = {
            "passes": f"separable: {axes} passes",
            "matrices": f"separable: {axes} matrix products",
            "upsampling": "constant: nearest upsampling",
        }
        if self.structure in how:
            found.append(how[self.structure])
        return "; ".join(found)


@dataclass(frozen=True)
class _Product:
    """The matrix product of one axis.

    Attributes:
        spec: Of that axis alone.
        axis: Its number.
        length: L, its input pixels.
        windows: Its windows; None where one matrix does the whole axis.
    """

    spec: ConvTransposeSpec
    axis: int
    length: int
    windows: AxisWindows | None

    @property
    def positions(self) -> int:
        """U: windows of the axis."""
        assert self.windows is not None
        return self.length + self.windows.more

    @property
    def size(self) -> int:
        """L_out."""
        sizes = [self.length if i == self.axis else 1 for i in range(self.spec.ndim)]
        return self.spec.output_size(sizes)[self.axis]

    def macs(self) -> int:
        """For each row."""
        if self.windows is None:
            return self.length * self.size
        return self.positions * len(self.windows.phases) * self.windows.union()[1]


def _products(layer: Layer, spec: ConvTransposeSpec) -> Iterator[_Product]:
    """The last axis first: what is computed most often is a sum of rows."""
    is_result = layer.node.outputs[0].is_graph_output() and layer.function is None
    for axis in reversed(range(spec.ndim)):
        one = along(spec, axis)
        length = cast(int, layer.input_size[axis])
        of_axis = windows(one)[axis]
        if axis == spec.ndim - 1:
            whole = length <= _SHORT
        else:
            whole = length <= _SHORT_WITHOUT_RESHAPE and (is_result or of_axis.surplus > 0)
        yield _Product(one, axis, length, None if whole else of_axis)


def macs_of(layer: Layer, found: Structured) -> int:
    """Multiply-accumulates for each input pixel, rounded."""
    spec = found.layer.spec
    if found.structure == "upsampling":
        return 0 if (found.layer.weight == 1).all() else spec.in_channels
    total, grown = 0.0, 1.0
    if found.structure == "matrices":
        for product in _products(layer, spec):
            total += spec.in_channels * grown * product.macs() / product.length
            grown *= product.size / product.length
        return round(total)
    for axis, one in _passes(found, bias=False):
        total += grown * one.macs_per_position() / one.kernel_size[axis] * _taps(one, axis)
        length = layer.input_size[axis]
        sizes = [length or 1 if i == axis else 1 for i in range(spec.ndim)]
        grown *= one.output_size(sizes)[axis] / length if length else one.stride[axis]
    return round(total)


def _taps(one: ConvTransposeSpec, axis: int) -> int:
    of_axis = windows(one)[axis]
    return len(of_axis.phases) * of_axis.union()[1]


def _passes(found: Structured, *, bias: bool) -> list[tuple[int, ConvTransposeSpec]]:
    """The axes that do something, the last one first; the bias comes with the last of them."""
    assert found.factors is not None
    spec = found.layer.spec
    passes = []
    for axis in reversed(range(spec.ndim)):
        one = along(spec, axis)
        nothing = one.kernel_size == one.stride == (1,) * spec.ndim and not (
            any(one.padding[axis]) or one.output_padding[axis]
        )
        if not (nothing and (found.factors[axis] == 1).all()):
            passes.append((axis, one))
    last, one = passes[-1]
    return [*passes[:-1], (last, replace(one, bias=bias and spec.bias))]


BiasOf = Callable[[tuple[Verb, ...]], ir.Value | None]


class Structures:
    """Writes the nodes of one layer.

    Args:
        write: Where to.
        store: The tensors of the model.
        layer: The layer.
        form: The exact form.
        bias: Gives the layer's bias, rearranged.
    """

    def __init__(self, write: Writer, store: Store, layer: Layer, form: Form, bias: BiasOf) -> None:
        self.write = write
        self.store = store
        self.layer = layer
        self.form = form
        self.bias = bias

    def written(self, found: Structured) -> ir.Value:
        """The result of the layer."""
        x = cast(ir.Value, self.layer.node.inputs[0])
        if found.structure == "passes":
            return self._passes(x, found)
        spec = found.layer.spec
        y = self._resize(x, found) if found.structure == "upsampling" else self._matrices(x, found)
        bias = self.bias(())
        return y if bias is None else self.write.add_bias(y, bias, spec.out_channels, spec.ndim)

    def _put(self, array: Array, *key: object) -> ir.Value:
        # A part of the old weight, which it cannot replace in its own place.
        operand = Operand.of(self.layer.node.inputs[1], alone=False)
        return self.store.put(self.write, operand, array, key)

    def _resize(self, x: ir.Value, found: Structured) -> ir.Value:
        spec, weight = found.layer.spec, found.layer.weight
        if not (weight == 1).all():
            scale = weight.reshape(spec.in_channels, -1)[:, :1].reshape(-1, *(1,) * spec.ndim)
            x = self.write.op("Mul", x, self._put(scale, "scale"))
        y = self.write.resize(x, spec.stride, "nearest", self.layer.input_size)
        ends = zip(spec.padding, spec.output_padding, strict=True)
        crop = tuple((begin, end - more) for (begin, end), more in ends)
        return self.write.crop(y, crop) if any(map(any, crop)) else y

    def _passes(self, x: ir.Value, found: Structured) -> ir.Value:
        assert found.factors is not None
        channels, sizes = found.layer.spec.in_channels, list(self.layer.input_size)
        for axis, one in _passes(found, bias=True):
            steps = written(self.form, one, Settings(convolution="union"), plain=False)
            factor = np.broadcast_to(found.factors[axis], (channels, one.kernel_size[axis]))
            kernel = rearrange(steps.weight, factor.reshape(one.weight_shape), channels)
            weight = self._put(kernel, "passes", one, axis)
            bias = self.bias(steps.bias) if one.bias else None
            operands = Operands([weight], bias, np.dtype(self.layer.dtype))
            all_steps = (*steps.before, *steps.after)
            maps, sizes = self.write.steps(all_steps, x, operands, channels, sizes)
            x = cast(ir.Value, maps)
        return x

    def _matrices(self, x: ir.Value, found: Structured) -> ir.Value:
        assert found.factors is not None
        sizes = [cast(int, length) for length in self.layer.input_size]
        for product in _products(self.layer, found.layer.spec):
            x = self._product(x, product, found.factors[product.axis], sizes)
            sizes[product.axis] = product.size
        return x

    def _product(
        self, x: ir.Value, product: _Product, factor: Array, sizes: Sequence[int]
    ) -> ir.Value:
        """One axis; the matrices of channels that differ have axes of one for those around."""
        write, axis, n = self.write, product.axis, len(sizes)
        channels, last = product.spec.in_channels, product.axis == n - 1
        rest = sizes[axis + 1 :]
        merged = [] if last else [math.prod(rest)]
        # (N, C, L_1, .., L_i, rest)
        if len(rest) > 1:
            x = write.reshape(x, [0, channels, *sizes[: axis + 1], *merged])
        of_axis = product.windows
        if of_axis is None:
            matrix = matrix_of(product.spec, axis, factor, product.length)
            between, size = max(axis - 1, 0) if last else axis, product.size
        else:
            matrix, index = _windowed(of_axis, factor, product)
            between = axis if last else axis + 1
            size = product.positions * len(of_axis.phases)
            if index.max() == product.length:
                widths = [(0, 0)] * (axis + 2) + [(0, 1)] + [(0, 0)] * len(merged)
                x = write.pad(x, widths, "zeros")
            x = write.op("Gather", x, write.constant(index, "index"), axis=axis + 2)
        matrix = matrix.swapaxes(1, 2) if last else matrix
        shape = (
            matrix.shape[1:]
            if len(matrix) == 1
            else (len(matrix), *(1,) * between, *matrix.shape[1:])
        )
        value = self._put(matrix.reshape(shape), "matrices", product)
        x = write.op("MatMul", *((x, value) if last else (value, x)))
        if of_axis is not None or len(rest) > 1:
            x = write.reshape(x, [0, channels, *sizes[:axis], size, *rest])
        if size > product.size:
            x = write.crop(x, tuple((0, size - product.size if i == axis else 0) for i in range(n)))
        return x


def _windowed(of_axis: AxisWindows, factor: Array, product: _Product) -> tuple[Array, Array]:
    """The matrix of a window, (C, phases, taps), and the pixels of all windows, L for one of zeros."""
    first, size, distance = of_axis.union()
    taps = np.pad(factor, [(0, 0), (0, 1)])[:, list(of_axis.taps_in_union())]
    places = np.arange(product.positions)[:, None] + first + distance * np.arange(size)
    inside = (places >= 0) & (places < product.length)
    index = np.where(inside, places, product.length)
    return taps.reshape(len(factor), len(of_axis.phases), size), index
