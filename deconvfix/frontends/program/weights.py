"""Where a torch.export program stores the weights of its calls, and which of them may be changed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from deconvfix.errors import ModelError, Refusal
from deconvfix.frontends.torch.graph import GraphCall
from deconvfix.plan import Plan

__all__ = ["HINT", "Stored", "check_shared", "dequantises", "stored", "why_fixed"]

HINT = "Convert this layer to 'subpixel', or exclude it"


@dataclass(frozen=True)
class Stored:
    """A tensor that a program stores.

    Attributes:
        home: The dictionary that it is in, of the program's state or constants.
        key: Its name there.
        node: The placeholder through which the graph reads it.
    """

    home: dict[str, Any]
    key: str
    node: fx.Node

    @property
    def tensor(self) -> Tensor:
        """What is stored now."""
        value: Tensor = self.home[self.key]
        return value

    def set(self, new: Tensor) -> None:
        """Stores another tensor, a parameter if the old one is."""
        old = self.tensor
        # torch checks that entries of the signature's parameters are parameters.
        is_parameter = isinstance(old, nn.Parameter)
        self.home[self.key] = nn.Parameter(new, old.requires_grad) if is_parameter else new
        # In the graph's own fake mode, as torch wants one mode for all values of a graph.
        fake = self.node.meta["val"].fake_mode
        self.node.meta["val"] = fake.from_tensor(self.home[self.key], static_shapes=True)


def stored(program: ExportedProgram, found: GraphCall, argument: Any) -> Stored | None:
    """Where a program stores an argument of a call, if it does."""
    # Placeholders of inner graphs are arguments, and not what the program stores.
    if found.owner is not program.graph_module or not isinstance(argument, fx.Node):
        return None
    targets = {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    }
    key = targets.get(argument.name)
    # Non-persistent buffers and constants are not in the state dict.
    for home in (program.state_dict, program.constants):
        if key is not None and isinstance(home.get(key), Tensor):
            return Stored(home, key, argument)
    return None


def dequantises(argument: Any) -> bool:
    """Whether an argument of a call is what torch's quantisation of exported programs (PT2E) stores."""
    return isinstance(argument, fx.Node) and "dequantize_per_" in str(argument.target)


def why_fixed(
    program: ExportedProgram, found: Stored, name: str, what: str, calls: Collection[fx.Node]
) -> Refusal | None:
    """Why a stored tensor cannot be changed.

    Args:
        program: Where it is stored.
        found: The tensor.
        name: The layer that it belongs to, by the path of its module.
        what: "weight" or "bias", for the sentence.
        calls: The nodes that may use it.
    """
    key = found.key
    # By memory, as tied weights have several names.
    keys = [
        other
        for other, value in (*program.state_dict.items(), *program.constants.items())
        if isinstance(value, Tensor) and _overlap(value, found.tensor)
    ]
    one_place = f"a fitted {what} is specific to one layer"
    if len(keys) > 1:
        others = [other for other in keys if not other.startswith(f"{name}.")]
        return Refusal(f"its {what} is shared with {', '.join(others)}", one_place, HINT)
    # Other users, such as a norm of the weight, would see the new values.
    if set(found.node.users) - set(calls):
        return Refusal(f"its {what} {key} is used elsewhere too", one_place, HINT)
    if key in program.graph_signature.buffers_to_mutate.values():
        return Refusal(
            f"the program changes its {what} {key}", f"a fitted {what} stays as it is", HINT
        )
    if found.tensor.is_meta:
        return Refusal(f"its {what} is on the meta device", "values are needed for a fit", HINT)
    return None


def check_shared(calls: dict[str, GraphCall], plan: Plan) -> None:
    """Calls of one layer share its weight: it cannot be in two forms.

    Raises:
        ModelError: If the plan has more than one for them.
    """
    chosen = {
        decision.name: (decision.form, decision.settings)
        for decision in plan.replaced
        if not decision.target.is_exact
    }
    for name, settings in chosen.items():
        weight = calls[name].call.weight if name in calls else None
        for other, call in calls.items():
            if weight is not None and call.call.weight is weight and chosen.get(other) != settings:
                raise ModelError(
                    name,
                    f"it has the same weight as {other}, which gets another form or stays",
                    "the calls of one layer must be converted alike",
                    "Select all of them with the same options, or convert them to 'subpixel'",
                )


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors share memory; those on the meta device have none."""
    address = one.untyped_storage().data_ptr()
    return address != 0 and address == other.untyped_storage().data_ptr()
