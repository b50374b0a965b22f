"""Whether a target accepts what a file has: node by node, against its profile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from deconvfix.errors import ModelError
from deconvfix.frontends.onnx.nodes import opset_of
from deconvfix.frontends.onnx.values import DEFAULT_DOMAINS, Known, constant, scopes
from deconvfix.targets.profile import Profile

__all__ = ["Broken", "broken_by", "broken_lines", "check_accepted", "has_open_sizes"]

# The rank of a value, where it is known.
RankOf = Callable[[ir.Value], int | None]


@dataclass(frozen=True)
class Broken:
    """A line of a profile that a node breaks.

    Attributes:
        key: Of the line.
        node: The node's name, or its operator.
        found: A clause: what the node has.
    """

    key: str
    node: str
    found: str


def has_open_sizes(model: ir.Model) -> bool:
    """Whether an input of the model has a size that is not known before running, besides its batch."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    return any(
        value.shape is None or any(not isinstance(n, int) for n in list(value.shape)[1:])
        for value in inputs
    )


def broken_by(
    nodes: Iterable[ir.Node], profile: Profile, rank_of: RankOf, *, open_sizes: bool
) -> Broken | None:
    """The first line of a profile that one of the nodes breaks; None if there is none.

    Args:
        nodes: The nodes.
        profile: What the target accepts.
        rank_of: The rank of a value that no node of these tells.
        open_sizes: Whether the file has open sizes.
    """
    return next(_every(nodes, profile, rank_of, open_sizes), None)


def broken_lines(model: ir.Model, profile: Profile) -> Iterator[Broken]:
    """Every line of a profile that a model breaks, and where."""
    known = Known(model)
    opset = opset_of(model.opset_imports)
    is_open = has_open_sizes(model)
    if is_open and not profile.open_sizes:
        yield Broken("open_sizes", "(model)", "an input of the file has an open size")
    if profile.opset is not None and opset > profile.opset:
        yield Broken("opset", "(model)", f"the file has opset {opset}")

    def rank_of(value: ir.Value) -> int | None:
        shape = known.shape(value, None)
        return None if shape is None else len(shape)

    # What a file has of its own is not what the line for open sizes was measured on.
    for scope in scopes(model):
        yield from _every(scope[0], profile, rank_of, open_sizes=False)


def check_accepted(model: ir.Model, profile: Profile) -> None:
    """Checks all of a model.

    Raises:
        ModelError: If a line of the profile is broken.
    """
    broken = next(broken_lines(model, profile), None)
    if broken is not None:
        raise ModelError(
            broken.node,
            broken.found,
            f"the target {profile.name!r} says: {profile.line(broken.key)}",
            "Change the model there, or choose another target; nothing was written",
        )


def _every(
    nodes: Iterable[ir.Node], profile: Profile, rank_of: RankOf, open_sizes: bool
) -> Iterator[Broken]:
    for node in nodes:
        if node.domain not in DEFAULT_DOMAINS:
            continue
        for key, found in _broken(node, profile, rank_of, open_sizes):
            yield Broken(key, node.name or node.op_type, found)


def _broken(
    node: ir.Node, profile: Profile, rank_of: RankOf, open_sizes: bool
) -> Iterable[tuple[str, str]]:
    op = node.op_type
    if op in profile.forbidden:
        yield "forbidden", f"it is a {op}"
    if open_sizes and op in profile.forbidden_with_open_sizes:
        yield "forbidden_with_open_sizes", f"it is a {op}, and the file has open sizes"
    if profile.max_rank is not None:
        ranks = [_rank(value, rank_of) for value in (*node.inputs[:1], *node.outputs) if value]
        most = max((rank for rank in ranks if rank is not None), default=0)
        if most > profile.max_rank and op != "Constant":
            yield "max_rank", f"it is a {op} of rank {most}"
    if op == "DepthToSpace":
        mode = str(_attribute(node, "mode", "DCR"))
        if mode not in profile.depth_to_space:
            yield "depth_to_space", f"it is a DepthToSpace of mode {mode}"
        size = int(_attribute(node, "blocksize", 0))
        if profile.block_sizes is not None and size not in profile.block_sizes:
            yield "block_sizes", f"it is a DepthToSpace of block size {size}"
    padded = op == "Conv" and profile.conv_pads != "all" and _is_padded(node)
    if padded and (profile.conv_pads == "none" or set(_kernel(node)) <= {1}):
        yield "conv_pads", "it is a Conv with pads"
    if op in ("Resize", "Upsample") and profile.resize_ranks is not None:
        rank = None if node.inputs[0] is None else _rank(node.inputs[0], rank_of)
        if rank not in profile.resize_ranks:
            yield "resize_ranks", f"it is a {op} of rank {'unknown' if rank is None else rank}"


def _is_padded(node: ir.Node) -> bool:
    auto = str(_attribute(node, "auto_pad", "NOTSET"))
    return any(_attribute(node, "pads", ())) or auto.startswith("SAME")


def _kernel(node: ir.Node) -> Sequence[Any]:
    """The kernel's size, which the weight tells where no attribute does; empty if neither does."""
    weight = node.inputs[1]
    stored = () if weight is None or weight.shape is None else tuple(weight.shape)[2:]
    return _attribute(node, "kernel_shape", None) or stored


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.value


def _rank(value: ir.Value, rank_of: RankOf) -> int | None:
    """By what its own node says, or by that of what it comes from; else as the model knows it."""
    if value.shape is not None:
        return len(value.shape)
    node = value.producer()
    if node is not None and node.op_type == "Reshape":
        shape = node.attributes.get("shape")
        if shape is not None and not shape.is_ref():
            return len(shape.as_ints())
        tensor = None if len(node.inputs) < 2 else constant(node.inputs[1], 0)
        if tensor is not None:
            return int(tensor.size)
    if node is not None and node.op_type == "Transpose" and "perm" in node.attributes:
        return len(node.attributes["perm"].as_ints())
    if node is not None and node.op_type in ("Add", "Gather", "MatMul", "Mul"):
        ranks = [None if value is None else _rank(value, rank_of) for value in node.inputs]
        index = constant(node.inputs[1], 0)
        if node.op_type == "MatMul":
            return max((rank for rank in ranks if rank is not None), default=None)
        if node.op_type in ("Add", "Mul") and None not in ranks:
            return max(rank for rank in ranks if rank is not None)
        if node.op_type == "Gather" and index is not None and ranks[0] is not None:
            return ranks[0] + len(index.shape) - 1
    if node is not None and node.op_type in _KEEP_RANK and node.inputs and node.inputs[0]:
        return _rank(node.inputs[0], rank_of)
    return rank_of(value)


# Operators whose result has as many axes as their first input.
_KEEP_RANK = frozenset(
    [
        *(
            "AveragePool",
            "Concat",
            "Conv",
            "ConvTranspose",
            "DepthToSpace",
            "DequantizeLinear",
        ),
        *("Pad", "QuantizeLinear", "Relu", "Resize", "Slice", "Split", "Upsample"),
    ]
)
