"""Nearest upsampling and a convolution of a program, as the sub-pixel convolution that they are.

The taps are summed in the graph, of the weight that the program stores: what trains or reads it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from deconvfix.core.folded import Folded
from deconvfix.errors import ModelError, Refusal
from deconvfix.forms.base import Compiled
from deconvfix.frontends.base import Findings
from deconvfix.frontends.folded import NOT_WHOLE, NOTHING_SAVED, OTHER_STEPS, READ_ELSEWHERE
from deconvfix.frontends.torch import steps as torch_steps
from deconvfix.frontends.torch.graph import inline
from deconvfix.plan import Decision, Match, Replaced

__all__ = ["find_upsampled", "fold_call", "summed_taps", "summing", "with_disturbances"]

_UPSAMPLING = (
    torch.ops.aten.upsample_nearest1d.vec,
    torch.ops.aten.upsample_nearest2d.vec,
    torch.ops.aten.upsample_nearest3d.vec,
)
_CONVOLUTIONS = (
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv3d.default,
)


@dataclass(frozen=True, eq=False)
class _Pair:
    """A convolution that gets an upsampled map.

    Attributes:
        name: Of the convolution.
        conv: Its node.
        upsampling: That of the upsampling.
        folded: The geometry, or why it cannot be folded.
    """

    name: str
    conv: fx.Node
    upsampling: fx.Node
    folded: Folded | Refusal


def find_upsampled(program: ExportedProgram, inputs: Any | None) -> Findings:
    """Nothing is run; see `frontends.folded.Folds`."""
    matches, notes = [], []
    for pair in _pairs(program):
        if isinstance(pair.folded, Refusal):
            notes.append(pair.folded.sentence(pair.name))
            continue
        weight: Tensor = pair.conv.args[1].meta["val"]  # type: ignore[union-attr]
        matches.append(
            Match(
                name=pair.name,
                op=f"Upsample + Conv{weight.dim() - 2}d",
                spec=pair.folded.spec,
                dtype=str(weight.dtype).removeprefix("torch."),
                macs=pair.folded.macs_per_position(),
                upsampling=pair.upsampling.name,
            )
        )
    return Findings(tuple(matches), tuple(notes))


def fold_call(program: ExportedProgram, decision: Decision) -> None:
    """Folds the pair that a decision is about, in place.

    Raises:
        ModelError: If the program has no such pair.
    """
    pair = next((pair for pair in _pairs(program) if pair.name == decision.name), None)
    folded = None if pair is None else pair.folded
    if pair is None or not isinstance(folded, Folded) or folded.spec != decision.spec:
        raise ModelError(
            decision.name,
            "the program has no such upsampling in front of a convolution",
            "the plan must belong to this program",
            "Use the recipe that was made for this program",
        )
    assert isinstance(decision, Replaced)
    compiled = decision.compiled()
    if folded.border is not None:
        compiled = replace(compiled, steps=(folded.border, *compiled.steps))
    function = summing(compiled, folded.factors, folded.groups)
    operands = [pair.upsampling.args[0], *pair.conv.args[1:3]]
    inline(pair.conv, function, [one for one in operands if isinstance(one, fx.Node)])
    if not pair.upsampling.users:
        program.graph.erase_node(pair.upsampling)


def summing(compiled: Compiled, factors: Sequence[int], groups: int) -> Callable[..., Tensor]:
    """A sub-pixel convolution as a function of input, the taps behind the upsampling, and bias.

    Args:
        compiled: The sub-pixel convolution.
        factors: Of the upsampling.
        groups: Of the convolution.
    """

    def function(x: Tensor, taps: Tensor, *biases: Tensor) -> Tensor:
        summed = summed_taps(taps, factors, groups)
        weight = torch_steps.rearrange_tensor(compiled.weight, summed, groups)
        bias = torch_steps.rearrange_tensor(compiled.bias, biases[0]) if biases else None
        return torch_steps.apply_steps(compiled.steps, x, weight, bias, groups)

    return function


def summed_taps(weight: Tensor, factors: Sequence[int], groups: int) -> Tensor:
    """`Folded.transposed` for a tensor: (C_out, C_in / groups, *k) -> (C_in, C_out / groups, *K)."""
    taps = weight.flip(tuple(range(2, weight.dim())))
    # (g, C_out/g, C_in/g, *k) -> (g, C_in/g, C_out/g, *k)
    taps = taps.reshape(groups, -1, *taps.shape[1:]).transpose(1, 2).flatten(0, 1)
    shifted = []
    for start in product(*map(range, factors)):
        pairs = zip(start, factors, strict=True)
        # torch.nn.functional.pad wants the last axis first.
        amounts = [n for f, s in reversed(list(pairs)) for n in (f, s - 1 - f)]
        shifted.append(F.pad(taps, amounts))
    return torch.stack(shifted).sum(0)


def with_disturbances(
    program: ExportedProgram,
    names: Collection[str],
    disturb: Callable[[Tensor, Callable[[], Tensor]], Tensor],
) -> nn.Module:
    """The program as a module whose convolutions behind upsampling get noise as transposed ones do.

    Args:
        program: The original.
        names: Of the convolutions that were folded.
        disturb: Of an output, and what gives its magnitude |W| (*) |x| + |b|.
    """
    module = program.module()
    wanted = {pair.conv.name for pair in _pairs(program) if pair.name in names}
    for node in module.graph.nodes:
        if node.name in wanted and node.target in _CONVOLUTIONS:
            node.target = _noisy(node.target, disturb)
    module.recompile()
    return module


def _noisy(
    convolution: Any, disturb: Callable[[Tensor, Callable[[], Tensor]], Tensor]
) -> Callable[..., Tensor]:
    def noisy(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
        output: Tensor = convolution(x, weight, bias, *rest)
        sizes = None if bias is None else bias.abs()
        return disturb(output, lambda: convolution(x.abs(), weight.abs(), sizes, *rest))

    return noisy


def _pairs(program: ExportedProgram) -> Iterator[_Pair]:
    nodes = [node for node in program.graph.nodes if node.target in _CONVOLUTIONS]
    paths = [_path(node) for node in nodes]
    for node, path in zip(nodes, paths, strict=True):
        source = node.args[0]
        if isinstance(source, fx.Node) and source.target in _UPSAMPLING:
            unique = path is not None and paths.count(path) == 1
            yield _Pair(path if unique and path else node.name, node, source, _folded(node, source))


def _path(node: fx.Node) -> str | None:
    """The path of the module that the convolution was; None for calls in other code."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = next(reversed(stack.values()), ("", ""))
    return str(path) if str(kind).rpartition(".")[2] in ("Conv1d", "Conv2d", "Conv3d") else None


def _folded(conv: fx.Node, upsampling: fx.Node) -> Folded | Refusal:
    weight: Tensor = conv.args[1].meta["val"]  # type: ignore[union-attr]
    ndim = weight.dim() - 2
    # (input, weight, bias, stride, padding, dilation, groups)
    arguments: list[Any] = [*conv.args, *(None, 1, 0, 1, 1)[len(conv.args) - 2 :]]
    stride, padding, dilation = (torch_steps.per_axis(arguments[i], ndim) for i in (3, 4, 5))
    if {*stride, *dilation} != {1}:
        return OTHER_STEPS
    factors = _factors(upsampling)
    if factors is None:
        return NOT_WHOLE
    if len(upsampling.users) > 1:
        return READ_ELSEWHERE
    folded = Folded(
        factors,
        tuple(int(k) for k in weight.shape[2:]),
        tuple((p, p) for p in padding),
        "zeros",
        int(weight.shape[1]) * int(arguments[6]),
        int(weight.shape[0]),
        int(arguments[6]),
        arguments[2] is not None,
    )
    return folded if folded.saves else NOTHING_SAVED


def _factors(upsampling: fx.Node) -> tuple[int, ...] | None:
    """Whole factors above 0 that repeat pixels; None for others."""
    sizes: Sequence[Any] | None = upsampling.args[1]  # type: ignore[assignment]
    scales: Sequence[float] | None = upsampling.args[2] if len(upsampling.args) > 2 else None  # type: ignore[assignment]
    if scales is None:
        source: Any = upsampling.args[0]
        have = source.meta["val"].shape[2:]
        if sizes is None or not all(isinstance(n, int) for n in (*sizes, *have)):
            return None
        scales = [n / m for n, m in zip(sizes, have, strict=True)]
    whole = tuple(round(scale) for scale in scales)
    return (
        whole
        if all(s >= 1 and s == scale for s, scale in zip(whole, scales, strict=True))
        else None
    )
