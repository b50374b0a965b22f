"""Convolutions in front of pixel shuffles, written as the transposed convolutions that they are, and back.

A call of a convolution becomes a transposed convolution and operators that put its phases back into channels.
The program's own entries hold the transposed weight and the mean of the bias; the order of the channels and
the phases of the bias are entries more. See `frontends.torch.exposed`, which does the same with modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from deconvfix.core.shuffled import Shuffled
from deconvfix.frontends.program.weights import Stored
from deconvfix.frontends.torch import steps as torch_steps
from deconvfix.frontends.torch.exposed import unshuffled
from deconvfix.frontends.torch.graph import finish, inline
from deconvfix.frontends.torch.layers import read_weight
from deconvfix.frontends.torch.shuffles import shuffled_parameters

__all__ = [
    "as_in",
    "shows_shuffles",
    "stands_for",
    "with_shuffled",
    "with_transposed",
    "without_phases",
]

# In `meta` of a node that stands for a convolution: what was there.
_SHUFFLED = "deconvfix.shuffled"
_CONVOLUTIONS = (
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv3d.default,
)


# Of eight bits each, for the 53 of float64.
_MOST_PARTS = 8


def stands_for(node: fx.Node) -> str | None:
    """What a transposed convolution stands for, in words; None for one that was one before."""
    told = node.meta.get(_SHUFFLED)
    return None if told is None else str(told["words"])


def without_phases(program: ExportedProgram, node: fx.Node) -> None:
    """Takes the phases of its bias from a layer whose weight loses its grid."""
    told = node.meta.get(_SHUFFLED)
    if told is not None and told["bias"] is not None:
        program.state_dict[f"{told['weight']}_phases"].zero_()


def shows_shuffles(program: ExportedProgram) -> bool:
    """Whether it has transposed convolutions for convolutions in front of pixel shuffles."""
    return any(_SHUFFLED in node.meta for node in program.graph.nodes)


def with_transposed(
    program: ExportedProgram, inputs: Any | None
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """The program with its convolutions in front of pixel shuffles written as transposed convolutions.

    Args:
        program: Changed, but not in what it computes.
        inputs: To find them by a run, if the program kept none of its own.

    Returns:
        The program, and notes on other upsampling.
    """
    # Its own are of sizes that it takes.
    inputs = inputs if program.example_inputs is None else program.example_inputs
    if inputs is None:
        return program, ()
    weights, notes = shuffled_parameters(program.module(), inputs)
    return _exposed(program, weights), notes


def _exposed(
    program: ExportedProgram, channels: Mapping[str, NDArray[np.int64]]
) -> ExportedProgram:
    for node, weight, bias in list(_convolutions(program, channels)):
        _expose(program, node, weight, bias, channels[weight.key])
    finish(program.graph_module)
    return program


def as_in(program: ExportedProgram, exposed: ExportedProgram) -> ExportedProgram:
    """Another program of the same graph, with the same layers written as transposed convolutions."""
    told = [node.meta[_SHUFFLED] for node in exposed.graph.nodes if _SHUFFLED in node.meta]
    return _exposed(program, {one["weight"]: one["shuffled"].channels for one in told})


def _convolutions(
    program: ExportedProgram, keys: Mapping[str, Any]
) -> Iterator[tuple[fx.Node, Stored, Stored | None]]:
    """Calls of these weights, which are the only ones, with what the program stores for them."""
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target not in _CONVOLUTIONS:
            continue
        weight = _stored(program, node.args[1])
        operand = node.args[2] if len(node.args) > 2 else None
        bias = _stored(program, operand)
        if weight is None or weight.key not in keys or (operand is not None and bias is None):
            continue
        if all(len(entry.node.users) == 1 for entry in (weight, bias) if entry is not None):
            yield node, weight, bias


def _stored(program: ExportedProgram, argument: Any) -> Stored | None:
    if not isinstance(argument, fx.Node):
        return None
    for spec in program.graph_signature.input_specs:
        is_state = spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
        if is_state and spec.arg.name == argument.name and spec.target in program.state_dict:
            return Stored(program.state_dict, str(spec.target), argument)
    return None


@torch.no_grad()
def _expose(
    program: ExportedProgram,
    node: fx.Node,
    weight: Stored,
    bias: Stored | None,
    channels: NDArray[np.int64],
) -> None:
    ndim = weight.tensor.dim() - 2
    # (input, weight, bias, stride, padding, dilation, groups)
    arguments: list[Any] = [*node.args, *(None, 1, 0, 1, 1)[len(node.args) - 2 :]]
    padding = torch_steps.per_axis(arguments[4], ndim)
    shuffled = Shuffled.of(
        channels,
        weight.tensor.shape[1] * int(arguments[6]),
        tuple(weight.tensor.shape[2:]),
        tuple((p, p) for p in padding),
        int(arguments[6]),
        bias=bias is not None,
    )
    if shuffled is None:
        return
    spec = shuffled.spec
    told: dict[str, Any] = {
        "words": f"Conv{ndim}d + PixelShuffle",
        "shuffled": shuffled,
        "padding": list(padding),
        "weight": weight.key,
        "bias": None if bias is None else bias.key,
        "weight before": weight.tensor.clone(),
        "bias before": None if bias is None else bias.tensor.clone(),
    }
    weight.set(torch.from_numpy(shuffled.transposed(read_weight(weight.tensor))).to(weight.tensor))
    order = _add_buffer(program, f"{weight.key}_order", torch.from_numpy(shuffled.order))
    told["added"] = [order.name]
    operands = [arguments[0], weight.node, order]
    if bias is not None:
        wide = read_weight(bias.tensor)
        bias.set(torch.from_numpy(shuffled.mean_bias(wide)).to(bias.tensor))
        rest = wide - shuffled.spread_bias(read_weight(bias.tensor))
        phases = _add_buffer(program, f"{weight.key}_phases", _parts(rest, bias.tensor))
        told["added"].append(phases.name)
        operands += [bias.node, phases]
    transposed = getattr(torch.ops.aten, f"conv_transpose{ndim}d")
    begin = [b for b, _ in spec.padding]

    def function(x: Tensor, taps: Tensor, order: Tensor, *bias: Tensor) -> Tensor:
        mean, rest = bias or (None, None)
        y = transposed(x, taps, mean, list(spec.stride), begin, [0] * ndim, spec.groups)
        back = unshuffled(y, spec.stride, order)
        return back if rest is None else back + rest.sum(0).reshape(-1, *(1,) * ndim)

    known = set(program.graph.nodes)
    stack = dict(node.meta.get("nn_module_stack") or {})
    inline(node, function, operands)
    [new] = [n for n in program.graph.nodes if n not in known and "conv_transpose" in str(n.target)]
    new.meta[_SHUFFLED] = told
    told["result"] = node.name
    if stack:
        # It goes by the path of the module that the convolution was.
        key, (path, kind) = next(reversed(stack.items()))
        new.meta["nn_module_stack"] = stack | {key: (path, f"{kind} as ConvTranspose{ndim}d")}


def _parts(values: NDArray[np.float64], like: Tensor) -> Tensor:
    """Rows of a dtype that add up to the values: the bias is whole again in float64, where it is compared."""
    rows: list[Tensor] = []
    left = torch.from_numpy(values)
    while not rows or (left.any() and len(rows) < _MOST_PARTS):
        rows.append(left.to(like.dtype))
        left = left - rows[-1].double()
    return torch.stack(rows).to(like.device)


def _add_buffer(program: ExportedProgram, key: str, value: Tensor) -> fx.Node:
    """An entry of the state more, behind the others."""
    specs = program.graph_signature.input_specs
    state = [
        i for i, spec in enumerate(specs) if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
    ]
    place = 1 + state[-1]
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    with program.graph.inserting_after(placeholders[state[-1]]):
        node: fx.Node = program.graph.placeholder(key.replace(".", "_"))
    fake = placeholders[state[-1]].meta["val"].fake_mode
    node.meta["val"] = fake.from_tensor(value, static_shapes=True)
    specs.insert(
        place, InputSpec(InputKind.BUFFER, TensorArgument(name=node.name), key, persistent=True)
    )
    program.state_dict[key] = value
    return node


def with_shuffled(program: ExportedProgram) -> ExportedProgram:
    """The way back: the convolutions, with the weights that the transposed convolutions have now."""
    for node in [node for node in program.graph.nodes if _SHUFFLED in node.meta]:
        _restore(program, node, node.meta[_SHUFFLED])
    program.graph.eliminate_dead_code()
    finish(program.graph_module)
    program.validate()
    return program


@torch.no_grad()
def _restore(program: ExportedProgram, node: fx.Node, told: dict[str, Any]) -> None:
    shuffled: Shuffled = told["shuffled"]
    weight = _stored(program, node.args[1])
    assert weight is not None
    bias = _stored(program, node.args[2]) if told["bias"] else None
    before: Tensor = told["weight before"]
    taps = shuffled.convolution(read_weight(weight.tensor))
    same = np.array_equal(taps, read_weight(before))
    weight.set(before if same else torch.from_numpy(taps).to(before))
    if bias is not None:
        mean = shuffled.spread_bias(read_weight(bias.tensor))
        kept: Tensor = told["bias before"]
        bias.set(kept if same else torch.from_numpy(mean).to(kept))
    ndim, spec = before.dim() - 2, shuffled.spec
    convolution = getattr(torch.ops.aten, f"conv{ndim}d")

    def function(x: Tensor, taps: Tensor, *bias: Tensor) -> Tensor:
        settings = ([1] * ndim, told["padding"], [1] * ndim, spec.groups)
        result: Tensor = convolution(x, taps, *(bias or (None,)), *settings)
        return result

    result = next(n for n in program.graph.nodes if n.name == told["result"])
    stack = dict(node.meta.get("nn_module_stack") or {})
    known = set(program.graph.nodes)
    operands: list[Any] = [node.args[0], weight.node, *([] if bias is None else [bias.node])]
    inline(result, function, operands)
    [new] = [n for n in program.graph.nodes if n not in known and n.target in _CONVOLUTIONS]
    if stack:
        key, (path, kind) = next(reversed(stack.items()))
        new.meta["nn_module_stack"] = stack | {key: (path, str(kind).split(" as ")[0])}
    # What was between is not read any more; the last operators first.
    program.graph.eliminate_dead_code()
    for name in told["added"]:
        _remove_buffer(program, name)


def _remove_buffer(program: ExportedProgram, name: str) -> None:
    specs = program.graph_signature.input_specs
    [spec] = [spec for spec in specs if spec.arg.name == name]
    [node] = [node for node in program.graph.nodes if node.name == name]
    program.graph.erase_node(node)
    specs.remove(spec)
    del program.state_dict[str(spec.target)]
