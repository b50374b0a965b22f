"""What two ONNX files consist of: operators, stored numbers, multiply-accumulates and bytes, side by side.

Multiply-accumulates by the definitions of the operators, for one sample where the batch is open; where other
sizes are open, at those of the inputs that are given, or that are made up for a run. A Conv takes
(C_in / groups) * kernel of them for each number of its output, a ConvTranspose (C_out / groups) * kernel for
each of its input, MatMul and Gemm as many as the axis that is summed has for each number of their output.
Where that is not all that multiplies, or it is not known how often something runs, no number is given.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from deconvfix.frontends.onnx.values import Known

__all__ = ["Tallies", "Tally", "tallies_of", "tally_of"]

_TRANSPOSED = ("ConvTranspose", "ConvTransposeWithDynamicPads")
_COUNTED = ("Conv", "Gemm", "MatMul", *_TRANSPOSED)
# These multiply, too, by rules of their own.
_OTHERS = (
    *(
        "Attention",
        "ConvInteger",
        "DeformConv",
        "Einsum",
        "GRU",
        "LSTM",
        "MatMulInteger",
        "QLinearConv",
    ),
    *("QLinearMatMul", "RNN"),
)

# Shapes of inputs by name.
Sizes = Mapping[str, Sequence[int]]
_TRIES = 3
_UNITS = (("T", 10**12), ("G", 10**9), ("M", 10**6))


@dataclass(frozen=True)
class Tally:
    """What a file consists of.

    Attributes:
        operators: How often each operator occurs, in bodies and functions too; without constants.
        parameters: Stored numbers: elements of initializers and constants.
        macs: Multiply-accumulates of a run for one sample; None where open sizes or branches decide.
        bytes: Of the file, and of its weights in other files.
    """

    operators: dict[str, int]
    parameters: int
    macs: int | None
    bytes: int


@dataclass(frozen=True)
class Tallies:
    """The original and the converted file.

    Attributes:
        before: The original.
        after: The converted file.
        at: The sizes of inputs that multiply-accumulates were counted at, in words; empty: the file's own.
    """

    before: Tally
    after: Tally
    at: str = ""

    def rows(self) -> list[tuple[str, str, str]]:
        """What, before, after: operators whose number changed, the others together, and the sums."""
        old, new = self.before, self.after
        names = sorted({*old.operators, *new.operators})
        changed = [name for name in names if old.operators.get(name) != new.operators.get(name)]
        rows = [
            (name, str(old.operators.get(name, 0)), str(new.operators.get(name, 0)))
            for name in changed
        ]
        same = str(sum(count for name, count in old.operators.items() if name not in changed))
        rows.append(("Other operators", same, same))
        rows.append(("Parameters", _large(old.parameters), _large(new.parameters)))
        at = f" at {self.at}" if self.at else ""
        rows.append((f"Multiply-accumulates{at}", _large(old.macs), _large(new.macs)))
        rows.append(("Bytes", _large(old.bytes), _large(new.bytes)))
        return rows


def tallies_of(before: Path, after: Path, sizes: Iterable[Sizes] = ()) -> Tallies:
    """Of two ONNX files.

    Args:
        before: The original.
        after: The converted file.
        sizes: For open inputs, what to try in turn until it tells all other sizes.
    """
    found = Tallies(tally_of(before), tally_of(after))
    if found.before.macs is None or found.after.macs is None:
        for given in itertools.islice(sizes, _TRIES):
            at = Tallies(tally_of(before, given), tally_of(after, given), _in_words(given))
            if at.before.macs is not None and at.after.macs is not None:
                return at
    return found


def _in_words(sizes: Sizes) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in sizes.items())


def tally_of(path: Path, sizes: Sizes | None = None) -> Tally:
    """Of an ONNX file; weights in other files are counted, not read.

    Args:
        path: Of the file.
        sizes: Of its inputs, by name; without them as the file tells.
    """
    import onnx_ir as ir

    from deconvfix.frontends.onnx import file
    from deconvfix.frontends.onnx.values import Known, scopes

    model = file.read(path).model
    for value in model.graph.inputs:
        shape = (sizes or {}).get(str(value.name))
        value.shape = value.shape if shape is None else ir.Shape(shape)
    known = Known(model)
    graphs = [scope[0] for scope in scopes(model)]
    nodes = [node for graph in graphs for node in graph]
    tensors = [tensor for graph in graphs for tensor in _tensors(graph)]
    # What is in other files is read when it is used, and not before.
    outside = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, ir.LazyTensor))
    macs = [
        _macs(node, known) if node.graph is model.graph or _adds_none(node) else None
        for node in nodes
    ]
    return Tally(
        operators=dict(Counter(node.op_type for node in nodes if node.op_type != "Constant")),
        parameters=sum(tensor.size for tensor in tensors),
        macs=None if None in macs else sum(count or 0 for count in macs),
        bytes=path.stat().st_size + outside,
    )


def _tensors(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    for value in getattr(graph, "initializers", {}).values():
        if value.const_value is not None:
            yield value.const_value
    for node in graph:
        held = node.attributes.get("value")
        if node.op_type == "Constant" and held is not None and not held.is_ref():
            yield held.as_tensor()


def _adds_none(node: ir.Node) -> bool:
    """Whether it is an operator of ONNX that does not multiply and sum."""
    from deconvfix.frontends.onnx.values import DEFAULT_DOMAINS

    return node.domain in DEFAULT_DOMAINS and node.op_type not in (*_COUNTED, *_OTHERS)


def _macs(node: ir.Node, known: Known) -> int | None:
    """Multiply-accumulates of one run."""
    op = node.op_type
    if _adds_none(node):
        return 0
    if op not in _COUNTED:
        return None
    if len(node.inputs) < 2 or not node.outputs:
        return None
    one, two, out = (_sizes(known, value) for value in (*node.inputs[:2], node.outputs[0]))
    if one is None or two is None or out is None:
        return None
    if op == "MatMul":
        return math.prod(out) * one[-1]
    if op == "Gemm":
        transposed = node.attributes.get("transA")
        return math.prod(out) * one[0 if transposed is not None and transposed.as_int() else 1]
    # The weight is (out, in / groups, *kernel) of a Conv, and (in, out / groups, *kernel) of the other.
    return math.prod(one if op in _TRANSPOSED else out) * math.prod(two[1:])


def _sizes(known: Known, value: ir.Value | None) -> Sequence[int] | None:
    """Of a value, with a batch of one where that is open."""
    shape = known.shape(value, None)
    if not shape or None in shape[1:]:
        return None
    return [1 if shape[0] is None else shape[0], *shape[1:]]


def _large(count: int | None) -> str:
    """A count with a comma at each thousand; from ten millions on four digits and a unit."""
    if count is None:
        return "not known"
    if count < 10**7:
        return f"{count:,}"
    unit, size = next(pair for pair in _UNITS if count >= pair[1])
    return f"{count / size:.4g} {unit}"
