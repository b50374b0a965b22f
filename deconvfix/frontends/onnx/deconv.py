"""The way back: what is a transposed convolution in other words, written as one.

    Conv, (elementwise nodes,) pixel shuffle       becomes   ConvTranspose, (elementwise nodes)
    nearest Resize, (elementwise nodes,) Conv      becomes   (elementwise nodes,) ConvTranspose

Some runtimes have a fast ConvTranspose and a slow shuffle. The first is exact: weights only change places
(`core.shuffled`); a bias, and what the nodes have for each channel, must be the same in all phases. The
second sums taps (`core.folded`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.errors import Refusal
from deconvfix.forms import DECONV
from deconvfix.forms.base import Settings
from deconvfix.frontends.onnx.folded import names_of, remove_if_unused, take_place, with_folded
from deconvfix.frontends.onnx.nodes import opset_of
from deconvfix.frontends.onnx.operators import attributes_of
from deconvfix.frontends.onnx.shuffles import ShuffledConv, shuffled_convolutions
from deconvfix.frontends.onnx.steps import Writer
from deconvfix.frontends.onnx.upsampled import upsampled_convolutions
from deconvfix.frontends.onnx.values import OLDEST_IR_WITH_FREE_INITIALIZERS, Names, constant
from deconvfix.plan import Decision, Options, Plan
from deconvfix.planning import is_selected

__all__ = ["deconv_plan", "write_deconvs"]

_SHUFFLED, _UPSAMPLED = "Conv + shuffle", "Resize + Conv"
_PHASES_OF_BIAS = Refusal(
    "its bias differs between the phases of a channel",
    "a transposed convolution has one bias for each channel",
    "Nothing: this convolution and its shuffle stay as they are",
)
_SIZE_IS_READ = Refusal(
    "the size of the convolution's result is read elsewhere",
    "nothing but the shuffle must know it",
    "Simplify the file first (onnxsim, onnxslim), or leave it as it is",
)


def deconv_plan(
    model: ir.Model, options: Options, selects: Callable[[str], bool] | None = None
) -> Plan:
    """Decisions for everything that is a transposed convolution in other words.

    Args:
        model: The model, which is not changed.
        options: Its patterns of names count.
        selects: Further condition on names.
    """

    def decision(name: str, op: str, refusal: Refusal | None) -> Decision:
        if not is_selected(name, options, selects):
            return Decision(name, op, "kept", None, "not selected", None)
        if refusal is not None:
            return Decision(name, op, "refused", None, refusal.sentence(name), None)
        reason = "the same function, as a transposed convolution"
        return Decision(name, op, "replaced", DECONV, reason, None, Settings())

    called = names_of(model)
    decisions = []
    for found in shuffled_convolutions(model):
        decisions.append(decision(called[found.conv], _SHUFFLED, _why_not(found)))
    for conv, pair in upsampled_convolutions(model):
        refusal = pair if isinstance(pair, Refusal) else None
        decisions.append(decision(called[conv], _UPSAMPLED, refusal))
    return Plan(DECONV, tuple(decisions), options.target)


def write_deconvs(model: ir.Model, decisions: Sequence[Decision]) -> ir.Model:
    """Carries such decisions out, in place."""
    wanted = {decision.name for decision in decisions if decision.decision == "replaced"}
    names, called = Names(model), names_of(model)
    for found in list(shuffled_convolutions(model)):
        if called[found.conv] in wanted:
            _write(model, names, found, called[found.conv])
    return with_folded(model, wanted)


def _why_not(found: ShuffledConv) -> Refusal | None:
    results = (found.conv, *found.between)
    if any(use.node.op_type == "Shape" for node in results for use in node.outputs[0].uses()):
        return _SIZE_IS_READ
    if found.bias is not None and not _same_in_all_phases(found, found.bias):
        return _PHASES_OF_BIAS
    for node, operands in found.between.items():
        for index in operands:
            if not _same_in_all_phases(found, _stored(node, index)):
                return replace(
                    _PHASES_OF_BIAS,
                    found=f"the {node.op_type} behind it differs between the phases of a channel",
                    needed="behind a transposed convolution each channel has one number",
                )
    return None


def _stored(node: ir.Node, index: int) -> NDArray[Any]:
    tensor = constant(node.inputs[index], OLDEST_IR_WITH_FREE_INITIALIZERS)
    assert tensor is not None, "a chain has stored operands alone"
    return np.asarray(tensor.numpy())


def _same_in_all_phases(found: ShuffledConv, array: NDArray[Any]) -> bool:
    """Whether numbers for each channel of the convolution are the same for each channel of the result."""
    phases = array.reshape(-1)[found.shuffled.channels].reshape(len(found.shuffled.channels), -1)
    return bool((phases == phases[:, :1]).all())


def _first_phases(found: ShuffledConv, array: NDArray[Any]) -> NDArray[Any]:
    """A number for each channel of the result, laid out as those for the convolution are."""
    one = array.reshape(-1)[found.shuffled.channels.reshape(len(found.shuffled.channels), -1)[:, 0]]
    return np.ascontiguousarray(one.reshape([-1 if n > 1 else 1 for n in array.shape]))


def _write(model: ir.Model, names: Names, found: ShuffledConv, name: str) -> None:
    graph, conv, shuffled = model.graph, found.conv, found.shuffled
    writer = Writer(names, name, opset_of(model.opset_imports), like=conv)
    stored = [names.initializer(shuffled.transposed(found.weight), graph, f"{name}.transposed")]
    if found.bias is not None:
        stored.append(names.initializer(_first_phases(found, found.bias), graph, f"{name}.bias"))
    y = writer.op("ConvTranspose", conv.inputs[0], *stored, **attributes_of(shuffled.spec))
    writer.nodes[-1].name = name
    graph.insert_after(conv, writer.nodes)
    # What treats each element alike follows, and the shuffle is left out.
    for node, operands in found.between.items():
        for index, value in enumerate(node.inputs):
            if value is conv.outputs[0]:
                node.replace_input_with(index, y)
            elif value is not None and index in operands:
                new = _first_phases(found, _stored(node, index))
                node.replace_input_with(index, names.initializer(new, graph, str(value.name)))
                remove_if_unused(graph, value)
        node.outputs[0].shape = None
    result = [*found.between][-1].outputs[0] if found.between else y
    take_place(graph, (conv, *found.shuffle), result, ())
