"""Front end for torch.fx graphs, traced or exported, and the graph pass behind it.

    call_module   ConvTranspose2d      -> call_module of the converted layer
    call_function conv_transpose2d     -> call_function torch_steps.conv_transpose
    call_function aten.convolution(.., transposed=True), aten.conv_transpose2d
                                       -> the aten operators of the sub-pixel form, inlined

The last needs the values that torch.export leaves in `node.meta["val"]`: the inlined operators come from
running the form on them, so symbolic shapes stay symbolic.

Graphs inside graphs (the branches of torch.cond, the bodies of loops, regions without gradients) are
searched and rewritten in the same way; "true_graph_0.conv_transpose2d" is a node of such a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.utils import _pytree as pytree

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.errors import Refusal, SpecError
from deconvfix.forms.base import Need
from deconvfix.frontends.base import Findings
from deconvfix.frontends.calibrate import check_without_data
from deconvfix.frontends.folded import find_with_folds
from deconvfix.frontends.torch import steps as torch_steps
from deconvfix.frontends.torch.calls import GEOMETRY, Call, dtype_obstacle, parse
from deconvfix.frontends.torch.find import call_path
from deconvfix.frontends.torch.frontend import TorchModuleFrontend
from deconvfix.frontends.torch.graph_folded import find_upsampled, fold_nodes
from deconvfix.frontends.torch.inputs import dtype_name
from deconvfix.plan import Match, Options, Plan
from deconvfix.planning import make_plan

__all__ = [
    "FRONTEND",
    "FxFrontend",
    "GraphCall",
    "ReplaceTransposedConvs",
    "find_calls",
    "finish",
    "inline",
    "match_call",
    "rewrite",
]

_FUNCTION_CALL = Refusal(
    "it is a function call in the graph",
    "another form replaces a layer that has its own module",
    "Convert this layer to 'subpixel', or exclude it",
)
_INSIDE_VMAP = Refusal(
    "it runs inside torch.vmap",
    "the graph must hold the shapes of plain tensors",
    "Call run_decompositions() on the program first, or exclude this layer",
)


class GraphCall(NamedTuple):
    """A transposed convolution in a graph: the graph's module and the node."""

    owner: fx.GraphModule
    node: fx.Node

    @property
    def call(self) -> Call:
        """The arguments that the node has now: they change while nodes before it are rewritten."""
        call = parse(self.node.target, self.node.args, dict(self.node.kwargs))
        assert call is not None
        return call


class FxFrontend(TorchModuleFrontend):
    """Modules as in `TorchModuleFrontend`, function calls by their nodes."""

    def find(self, model: nn.Module, example_inputs: Any | None) -> Findings:
        """Layers by name, calls by the name of their node."""
        assert isinstance(model, fx.GraphModule)
        modules = super().find(model, example_inputs).matches
        nodes = [match_call(name, found) for name, found in find_calls(model)]
        layers = tuple(match for match in modules if call_path(match.name, match.op) is None)
        return Findings((*layers, *nodes))

    find_upsampled = staticmethod(find_upsampled)

    def apply(self, model: nn.Module, plan: Plan) -> nn.Module:
        """Rewrites the graph in place; `model` is returned, recompiled."""
        assert isinstance(model, fx.GraphModule)
        calls = dict(find_calls(model))
        for folded in plan.replaced:
            if folded.upsampling is not None:
                fold_nodes(model, folded)
        layers = tuple(
            decision
            for decision in plan.decisions
            if decision.name not in calls and decision.upsampling is None
        )
        # Layers as modules first: that leaves all nodes as they are.
        super().apply(model, Plan(plan.to, layers))
        for decision in plan.changed:
            if decision.name in calls:
                rewrite(calls[decision.name])
        finish(model)
        return model


FRONTEND = FxFrontend()


class ReplaceTransposedConvs(PassBase):
    """Graph pass that replaces every transposed convolution; for use in a torch.fx PassManager.

    Works on graphs of torch.fx.symbolic_trace and on the aten graphs of torch.export. The graph
    module is changed in place, as torch's own passes do; layers that cannot be converted stay.

    Args:
        options: As for `deconvfix.convert`: `to`, `interpolation`, `padding_mode`, `init`, `seed`,
            `include` and `exclude` (tuples of glob patterns on module and node names).
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = Options(**options)
        check_without_data(self.options)

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Returns the graph module, and whether anything was replaced."""
        plan = self.plan(graph_module)
        return PassResult(FRONTEND.apply(graph_module, plan), bool(plan.changed))

    def plan(self, graph_module: fx.GraphModule) -> Plan:
        """What `call` would do: decisions and refusals."""
        find = find_with_folds if self.options.fold else type(FRONTEND).find
        return make_plan(find(FRONTEND, graph_module, None).matches, self.options)


def find_calls(model: fx.GraphModule) -> Iterator[tuple[str, GraphCall]]:
    """The calls in a graph and in the graphs inside it, by the names of graph and node."""
    for path, owner in model.named_modules():
        # Branches of torch.cond and bodies of loops are submodules that are graphs themselves.
        if not isinstance(owner, fx.GraphModule):
            continue
        for node in owner.graph.nodes:
            called = node.op == "call_function"
            if called and parse(node.target, node.args, dict(node.kwargs)) is not None:
                yield f"{path}.{node.name}".removeprefix("."), GraphCall(owner, node)


def finish(model: fx.GraphModule) -> None:
    """Checks the changed graphs and makes their code anew."""
    for module in model.modules():
        if isinstance(module, fx.GraphModule):
            module.graph.lint()
            module.recompile()


def match_call(name: str, found: GraphCall) -> Match:
    """Describes a call, as far as it is known before running."""
    owner, call = found.owner, found.call
    weight, x = _value(owner, call.weight), _value(owner, call.input)
    # Weight and input are tensors of the export, without values; their shapes may hold symbols.
    obstacle, spec = None, None
    sizes: tuple[tuple[int, ...], ...] = ()
    if isinstance(weight, Tensor):
        obstacle = dtype_obstacle(weight)
        # The geometry is that of the values; only the shape of the weight is read.
        known = fx.map_arg({**vars(call), "weight": None}, _example_of)
        geometry = [known[name] for name in GEOMETRY]
        # Open sizes are symbolic numbers, on which a spec cannot be built without fixing them.
        if all(isinstance(n, int) for n in pytree.tree_leaves([[*weight.shape], geometry])):
            spec = Call(**cast(Any, {**known, "weight": weight})).spec()
        else:
            spec = _spec_of_example(weight, known)
        # A batched tensor of vmap hides an axis of the operators' shapes.
        if x is not None and torch._C._functorch.is_functorch_wrapped_tensor(x):
            obstacle = _INSIDE_VMAP
        elif x is not None:
            spatial = tuple(x.shape[2 - weight.dim() :])
            sizes = (spatial,) if all(isinstance(n, int) for n in spatial) else ()
    return Match(
        name=name,
        op=call.function,
        spec=spec,
        dtype="unknown" if weight is None else dtype_name(weight),
        input_sizes=sizes,
        obstacle=obstacle,
        lacks={Need.STORED_WEIGHT: _FUNCTION_CALL},
    )


def _example_of(node: fx.Node) -> Any:
    """The value of a node at the export; symbolic numbers stay symbolic."""
    return node.meta.get("val", node)


def _spec_of_example(weight: Tensor, known: dict[str, Any]) -> ConvTransposeSpec | None:
    """The geometry that an open one had at the export; None if some number of it is not known.

    Asking a symbolic number for its hint does not make it a fixed one.
    """
    # A hint is the number that the export has seen.
    shape = [_hint(n) for n in weight.shape]
    hints = pytree.tree_map(_hint, {name: known[name] for name in GEOMETRY})
    if None in pytree.tree_leaves([shape, hints]):
        return None
    example = torch.empty(cast("list[int]", shape), device="meta")
    try:
        return Call(**cast(Any, {**known, **hints, "weight": example})).spec()
    except SpecError:
        return None


def _hint(number: Any) -> int | None:
    if isinstance(number, torch.SymInt):
        return cast("int | None", number.node.hint)
    return number if isinstance(number, int) else None


def _value(model: fx.GraphModule, argument: Any) -> Tensor | None:
    """The tensor behind a node, as far as it is known before running."""
    if not isinstance(argument, fx.Node):
        return None
    # torch.export notes values for all nodes. A symbolic trace has only its attributes.
    value = argument.meta.get("val")
    if value is None and argument.op == "get_attr":
        value = model
        for name in str(argument.target).split("."):
            value = getattr(value, name)
    return value if isinstance(value, Tensor) else None


def rewrite(found: GraphCall) -> None:
    """Puts the sub-pixel form in the place of a call."""
    node, call = found.node, found.call
    # Graphs of Python functions take the Python function. Graphs of aten take its operators.
    if not isinstance(node.target, torch._ops.OpOverload):
        node.target = torch_steps.conv_transpose
        node.args, node.kwargs = (), call.arguments
        return
    # Besides tensors, the graph may compute numbers: the groups of an open batch, an output_padding.
    operands: list[fx.Node] = []
    fx.map_arg(call.arguments, lambda operand: operands.append(operand) or operand)  # type: ignore[func-returns-value]
    operands = list(dict.fromkeys(operands))

    def form(*values: Any) -> Tensor:
        given = dict(zip(operands, values, strict=True))
        return torch_steps.conv_transpose(**fx.map_arg(call.arguments, given.__getitem__))

    inline(node, form, operands, decomposed=call.function == "convolution")


def inline(
    node: fx.Node,
    function: Callable[..., Tensor],
    operands: Sequence[fx.Node],
    *,
    decomposed: bool = False,
) -> None:
    """Replaces a node by the aten operators that `function` runs on the operands' values.

    Args:
        node: The node; its name and value go to the last of the operators.
        function: Takes the operands, none of them by default.
        operands: Nodes with values.
        decomposed: Whether composite operators (aten.conv2d, aten.pad) are broken up, as
            `run_decompositions` does.
    """
    # The form is run on the values of the export, so that symbols stay symbols in the new operators.
    values = [operand.meta["val"] for operand in operands]
    # Symbolic sizes of the values are traced on, so dynamic shapes stay open.
    traced = make_fx(function, tracing_mode="symbolic", pre_dispatch=not decomposed)(*values)
    # In a traced graph the placeholders stand in the order of the arguments.
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    mapping = dict(zip(placeholders, operands, strict=True))
    graph = node.graph
    # The traced operators take the place of the node; placeholders become the operands themselves.
    with graph.inserting_before(node):
        result = graph.graph_copy(traced.graph, mapping)
    assert isinstance(result, fx.Node)
    for new in mapping.values():
        new.meta.setdefault("stack_trace", node.meta.get("stack_trace"))
    # The symbols of the old value are those that the rest of the graph refers to.
    result.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(result)
    name = node.name
    graph.erase_node(node)
    # The signature of an exported program refers to its outputs by the names of their nodes.
    result.name = name
