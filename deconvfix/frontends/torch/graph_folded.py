"""Nearest upsampling in front of convolutions in graphs of torch.fx, found and folded without a run.

    u = interpolate(x), e = relu(u), y = conv(e)    becomes    e = relu(x), y = folded(e)

The convolution is a layer that the graph calls once, and gets another one in its place, as in modules
(`folded`). The small map takes the place of the upsampled one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from deconvfix.core.folded import Folded
from deconvfix.errors import ModelError, Refusal
from deconvfix.frontends.base import Findings
from deconvfix.frontends.folded import CALLED, NOT_WHOLE, READ_ELSEWHERE, SERVES_OTHERS
from deconvfix.frontends.torch.find import owners_of_parameters
from deconvfix.frontends.torch.folded import folded_layer
from deconvfix.frontends.torch.shuffles import CONVOLUTIONS, ELEMENTWISE
from deconvfix.frontends.torch.upsampled import folded_of, match_of, whole_factors
from deconvfix.plan import Replaced

__all__ = ["find_upsampled", "fold_nodes"]

_UPSAMPLING = (nn.Upsample, nn.UpsamplingNearest2d)
_FUNCTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Identity)


@dataclass(frozen=True, eq=False)
class _Pair:
    """A convolution that gets an upsampled map.

    Attributes:
        owner: The graph's module.
        name: Of the convolution: the layer's path, or the graph's and the node's.
        conv: Its node.
        upsampling: That of the upsampling.
        folded: The geometry, or why it cannot be folded.
    """

    owner: fx.GraphModule
    name: str
    conv: fx.Node
    upsampling: fx.Node
    folded: Folded | Refusal


def find_upsampled(model: nn.Module, inputs: Any | None) -> Findings:
    """Nothing is run; see `frontends.folded.Folds`."""
    matches, notes = [], []
    for pair in _pairs(model):
        if isinstance(pair.folded, Refusal):
            notes.append(pair.folded.sentence(pair.name))
        else:
            layer = model.get_submodule(pair.name)
            matches.append(match_of(pair.name, layer, pair.folded, pair.upsampling.name))
    return Findings(tuple(matches), tuple(notes))


def fold_nodes(model: nn.Module, decision: Replaced) -> None:
    """Folds the pair that a decision is about, in place; graphs are to be compiled anew.

    Raises:
        ModelError: If the graph has no such pair.
    """
    pair = next((pair for pair in _pairs(model) if pair.name == decision.name), None)
    if pair is None or isinstance(pair.folded, Refusal) or pair.folded.spec != decision.spec:
        raise ModelError(
            decision.name,
            "the graph has no such upsampling in front of a convolution",
            "the plan must belong to this graph",
            "Use the recipe that was made for this graph",
        )
    layer = model.get_submodule(pair.name)
    pair.owner.set_submodule(str(pair.conv.target), folded_layer(layer, decision))
    pair.upsampling.replace_all_uses_with(_source(pair.upsampling))
    pair.owner.graph.erase_node(pair.upsampling)


def _pairs(model: nn.Module) -> Iterator[_Pair]:
    owners = owners_of_parameters(model)
    for path, owner in model.named_modules():
        if not isinstance(owner, fx.GraphModule):
            continue
        called = Counter(node.target for node in owner.graph.nodes if node.op == "call_module")
        for node in owner.graph.nodes:
            layer = _layer(owner, node)
            if not isinstance(layer, CONVOLUTIONS) and node.target not in _FUNCTIONS:
                continue
            way = _chain(owner, node)
            if way is None:
                continue
            name = node.name if layer is None else str(node.target)
            folded = _folded(owner, layer, way)
            shared = layer is not None and (
                called[node.target] > 1
                or any(len(owners[id(parameter)]) > 1 for parameter in layer.parameters())
            )
            if isinstance(folded, Folded) and shared:
                folded = SERVES_OTHERS
            yield _Pair(owner, f"{path}.{name}".removeprefix("."), node, way[0], folded)


def _folded(owner: fx.GraphModule, layer: nn.Module | None, way: list[fx.Node]) -> Folded | Refusal:
    if layer is None:
        return CALLED
    assert isinstance(layer, CONVOLUTIONS)
    factors = _factors(owner, way[0], len(layer.kernel_size))
    if factors is None:
        return NOT_WHOLE
    folded = folded_of(layer, factors)
    if isinstance(folded, Folded) and any(len(node.users) > 1 for node in way):
        return READ_ELSEWHERE
    return folded


def _chain(owner: fx.GraphModule, conv: fx.Node) -> list[fx.Node] | None:
    """Nearest upsampling and what treats each element alike behind it, up to a convolution."""
    way: list[fx.Node] = []
    node = _source(conv)
    while isinstance(node, fx.Node):
        way.insert(0, node)
        layer = _layer(owner, node)
        if node.target is functional.interpolate or isinstance(layer, _UPSAMPLING):
            mode = layer.mode if layer is not None else _given(node, 3, "mode", "nearest")
            return way if mode in ("nearest", "nearest-exact") else None
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        alike = node.op != "call_module" and str(name) in ELEMENTWISE
        operands = [one for one in node.all_input_nodes if one is not _source(node)]
        if operands or not (alike or type(layer) in _ELEMENTWISE):
            return None
        node = _source(node)
    return None


def _factors(owner: fx.GraphModule, node: fx.Node, ndim: int) -> tuple[int, ...] | None:
    """Whole factors that are written in the graph; sizes tell none without a run."""
    layer: Any = _layer(owner, node)
    if layer is None:
        size, scale = _given(node, 1, "size", None), _given(node, 2, "scale_factor", None)
    else:
        size, scale = layer.size, layer.scale_factor
    numbers = scale if isinstance(scale, (list, tuple)) else [scale]
    if size is not None or not all(isinstance(number, (int, float)) for number in numbers):
        return None
    call = {"scale_factor": scale, "mode": "nearest"}
    return whole_factors(functional.interpolate, (torch.empty((1,) * (ndim + 2)),), call)


def _given(node: fx.Node, index: int, name: str, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _source(node: fx.Node) -> Any:
    return _given(node, 0, "input", None)


def _layer(owner: fx.GraphModule, node: fx.Node) -> Any | None:
    return owner.get_submodule(str(node.target)) if node.op == "call_module" else None
