"""Operators, in the version that the file has: no opset needs to be raised.

| operator | opset | what differs |
|---|---|---|
| Reshape | < 5 | the shape is an attribute |
| Slice | < 10 | starts and ends are attributes |
| Pad | < 2, < 11 | the amounts are an attribute, called `paddings` at first |
| Constant | < 9 | holds no integers, so these become initializers |
| Unsqueeze, Squeeze | any | not used: Reshape does the same |
| DepthToSpace | < 11 | no mode, so Reshape and Transpose do its work |
| Resize | < 11 | nearest only, as Upsample or Resize of opset 7 to 10 |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.core.steps import Conv, Interpolation, PadMode, Pairs
from deconvfix.frontends.onnx.values import Names
from deconvfix.targets.profile import NO_LIMITS, Profile

__all__ = ["DEPTH_TO_SPACE_MODE", "Operators", "attributes_of"]

# Pad takes the amounts as an input, and DepthToSpace has a mode.
_PAD_INPUTS = 11
DEPTH_TO_SPACE_MODE = 11
_SLICE_INPUTS = 10
_SPLIT_INPUT = 13
_CONSTANT_INTEGERS = 9
_RESHAPE_INPUT = 5
_PAD_MODES: dict[PadMode, str] = {"zeros": "constant", "reflect": "reflect", "replicate": "edge"}
_INT64_MAX = 2**63 - 1


def attributes_of(spec: ConvTransposeSpec) -> dict[str, Any]:
    """Those of a ConvTranspose of dilation 1 without output_padding; ONNX lists all begins, then all ends."""
    return {
        "kernel_shape": list(spec.kernel_size),
        "strides": list(spec.stride),
        "pads": [begin for begin, _ in spec.padding] + [end for _, end in spec.padding],
        "group": spec.groups,
    }


class Operators:
    """Collects the nodes that take the place of one layer.

    Args:
        names: The names that the model has.
        prefix: What the new names begin with.
        opset: Version of the operators to write.
        like: The node whose metadata and documentation the new nodes get.
        profile: What the target accepts.
    """

    def __init__(
        self,
        names: Names,
        prefix: str,
        opset: int,
        like: ir.Node | None = None,
        profile: Profile = NO_LIMITS,
    ) -> None:
        self.profile = profile
        self.names = names
        self.like = like
        self.prefix = prefix
        self.opset = opset
        self.nodes: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        what: str = "",
        domain: str = "",
        **attrs: Any,
    ) -> ir.Value:
        """One node with one output; `what` goes into its name."""
        (value,) = self._node(op_type, inputs, attrs, what, domain=domain)
        return value

    def _node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attrs: Mapping[str, Any],
        what: str,
        *,
        outputs: int = 1,
        domain: str = "",
    ) -> list[ir.Value]:
        name = self.names.fresh(f"{self.prefix}/{what or op_type}")
        others = [self.names.fresh(f"{name}_{number}") for number in range(1, outputs)]
        values = [ir.Value(name=output) for output in (name, *others)]
        attributes = ir.convenience.convert_attributes(attrs)
        node = ir.Node(domain, op_type, inputs, attributes, outputs=values, name=name)
        if self.like is not None:
            node.metadata_props.update(self.like.metadata_props)
            node.doc_string = self.like.doc_string
        self.nodes.append(node)
        return values

    def constant(self, array: NDArray[Any], what: str) -> ir.Value:
        """A Constant node: unlike initializers these exist in functions, and are never inputs."""
        if self.opset < _CONSTANT_INTEGERS and array.dtype.kind == "i":
            graph = self.names.model.graph
            return self.names.initializer(array, graph, f"{self.prefix}/{what}")
        return self.op("Constant", value=ir.tensor(array), what=what)

    # --- operators whose form depends on the opset ---

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Reshape; 0 copies a size from the same position, -1 is computed."""
        if self.opset < _RESHAPE_INPUT:
            return self.op("Reshape", x, shape=list(shape))
        return self.op("Reshape", x, self.constant(np.array(shape, np.int64), "shape"))

    def transpose(self, x: ir.Value, order: Sequence[int]) -> ir.Value:
        """Transpose, left out where nothing moves."""
        if list(order) == sorted(order):
            return x
        return self.op("Transpose", x, perm=list(order))

    def gather(self, x: ir.Value, index: Sequence[int] | NDArray[Any], axis: int) -> ir.Value:
        """Elements by their numbers along an axis."""
        return self.op("Gather", x, self.constant(np.asarray(index, np.int64), "index"), axis=axis)

    def split(self, x: ir.Value, sizes: Sequence[int]) -> list[ir.Value]:
        """The channels in parts of these sizes."""
        attrs: dict[str, Any] = {"axis": 1}
        inputs = [x]
        if self.opset < _SPLIT_INPUT:
            attrs["split"] = list(sizes)
        else:
            inputs.append(self.constant(np.array(sizes, np.int64), "split"))
        return self._node("Split", inputs, attrs, "", outputs=len(sizes))

    def crop(self, x: ir.Value, amounts: Pairs) -> ir.Value:
        """`steps.Crop`."""
        # Axes that lose nothing are left out: a Slice over them would only hide a size that is open.
        axes = [i for i, pair in enumerate(amounts) if any(pair)]
        starts = [amounts[i][0] for i in axes]
        # An end of 0 would be an empty slice: "up to the end" is the largest integer.
        ends = [-amounts[i][1] or _INT64_MAX for i in axes]
        return self._slice(x, starts, ends, [i + 2 for i in axes])

    def _slice(self, x: ir.Value, starts: list[int], ends: list[int], axes: list[int]) -> ir.Value:
        if self.opset < _SLICE_INPUTS:
            return self.op("Slice", x, starts=starts, ends=ends, axes=axes)
        arrays = zip((starts, ends, axes), ("starts", "ends", "axes"), strict=True)
        return self.op("Slice", x, *(self.constant(np.array(a, np.int64), n) for a, n in arrays))

    def pad(self, x: ir.Value, widths: Sequence[tuple[int, int]], mode: PadMode) -> ir.Value:
        """Pads every axis, batch and channels included."""
        amounts = [b for b, _ in widths] + [e for _, e in widths]
        kind = _PAD_MODES[mode]
        if self.opset < 2:
            return self.op("Pad", x, mode=kind, paddings=amounts)
        if self.opset < _PAD_INPUTS:
            return self.op("Pad", x, mode=kind, pads=amounts)
        return self.op("Pad", x, self.constant(np.array(amounts, np.int64), "pads"), mode=kind)

    def resize(
        self, x: ir.Value, factors: Sequence[int], how: Interpolation, sizes: Sequence[int | None]
    ) -> ir.Value:
        """`steps.Resize`; linear from opset 11 on.

        Args:
            x: The map.
            factors: Per axis.
            how: Nearest or linear.
            sizes: Of the map; None where they are not known before running.
        """
        ranks = self.profile.resize_ranks
        cannot = "Resize" in self.profile.forbidden or (ranks and len(factors) + 2 not in ranks)
        if cannot and how == "nearest" and (None not in sizes or len(sizes) == 1):
            return self._repeated(x, factors, sizes)
        scales = [1.0, 1.0, *map(float, factors)]
        if self.opset < 9:
            return self.op("Upsample", x, mode="nearest", scales=scales)
        value = self.constant(np.array(scales, np.float32), "scales")
        if self.opset < 11:
            return self.op("Upsample" if self.opset < 10 else "Resize", x, value, mode="nearest")
        # opset 11 has no way to leave out the region of interest
        roi = self.constant(np.zeros(0, np.float32), "roi") if self.opset < 13 else None
        if how == "nearest":
            return self.op(
                "Resize",
                x,
                roi,
                value,
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        return self.op(
            "Resize", x, roi, value, mode="linear", coordinate_transformation_mode="half_pixel"
        )

    def _repeated(
        self, x: ir.Value, factors: Sequence[int], sizes: Sequence[int | None]
    ) -> ir.Value:
        """Each pixel beside copies of itself, axis by axis, where Resize cannot be had."""
        now = list(sizes)
        for i, factor in enumerate(factors):
            if factor == 1:
                continue
            spatial = [-1 if n is None else n for n in now]
            x = self.reshape(x, [0, 0, *spatial[: i + 1], 1, *spatial[i + 1 :]])
            x = self.op("Concat", *[x] * factor, axis=3 + i)
            now[i] = None if now[i] is None else (now[i] or 0) * factor
            x = self.reshape(x, [0, 0, *(-1 if n is None else n for n in now)])
        return x

    def conv(
        self, x: ir.Value, weight: ir.Value, bias: ir.Value | None, step: Conv, pads: Pairs
    ) -> ir.Value:
        """`steps.Conv` with pads of both ends; a negative one cuts pixels off.

        Zeros come first, so that an input that is shorter than a cut still has its output.
        """
        cuts = tuple((max(-b, 0), max(-e, 0)) for b, e in pads)
        pads = tuple((max(b, 0), max(e, 0)) for b, e in pads)
        own = self.profile.conv_pads
        taps = math.prod(step.kernel_size)
        apart = any(map(any, cuts)) or own == "none" or (own == "beyond 1x1" and taps == 1)
        if apart and any(map(any, pads)):
            x = self.pad(x, [(0, 0), (0, 0), *pads], "zeros")
            pads = ((0, 0),) * len(pads)
        if any(map(any, cuts)):
            x = self.crop(x, cuts)
        return self.op(
            "Conv",
            *[operand for operand in (x, weight, bias) if operand is not None],
            dilations=list(step.dilation),
            group=step.groups,
            kernel_shape=list(step.kernel_size),
            pads=[b for b, _ in pads] + [e for _, e in pads],
            strides=[1] * len(pads),
        )
