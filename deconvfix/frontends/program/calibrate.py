"""What a torch.export program gives for its layers to be fitted; `frontends.calibrate` has the algorithm.

A function takes the layer's place in a copy of the program: it keeps what the layer gets and gives, and ends
the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram

from deconvfix.fit.regression import Solved
from deconvfix.frontends.calibrate import PlanInProgress, UnseenError, check_stored
from deconvfix.frontends.program.weights import Stored, stored, why_fixed
from deconvfix.frontends.torch.calibrate import TENSORS
from deconvfix.frontends.torch.graph import GraphCall, finish
from deconvfix.frontends.torch.inputs import Inputs, Reached, run_model
from deconvfix.frontends.torch.layers import read_weight
from deconvfix.plan import Fitted, Plan, Replaced

__all__ = ["FittableProgram"]

# A copy of a program, with its calls by name.
Copied = Callable[[ExportedProgram], tuple[ExportedProgram, dict[str, GraphCall]]]
Array = NDArray[np.float64]


class FittableProgram:
    """A program whose layers are fitted; see `frontends.calibrate.Fittable`.

    Args:
        before: The original; it is not changed.
        plan: What is converted.
        batches: Calibration inputs.
        copied: Copies a program.
        apply: Carries out a plan, with the kernels in it, in place.
    """

    arrays = TENSORS
    any_size = True

    def __init__(
        self,
        before: ExportedProgram,
        plan: Plan,
        batches: Sequence[Inputs],
        copied: Copied,
        apply: Callable[[ExportedProgram, Plan], ExportedProgram],
    ) -> None:
        self._before = before
        self._batches = batches
        self._copied = copied
        self._apply = apply
        self._plan = PlanInProgress(plan)
        # A copy to look things up in, so that the program itself stays untouched.
        self._original, self._calls = copied(before)

    def order(self, names: Sequence[str]) -> Mapping[str, int]:
        """The layers in the order of their nodes."""
        self._plan.start(names)
        return dict.fromkeys(names, 1)

    def trained(self, decision: Replaced) -> tuple[Array, Array | None]:
        """Of a call whose bias can be set; a weight that cannot is a refusal of the plan's."""
        weight = self._weight(decision)
        # A fit to one call would change the other one.
        if len(weight.node.users) > 1:
            raise UnseenError(
                "several calls use its weight", "Convert the module before it is exported"
            )
        bias = self._bias(decision)
        return read_weight(weight.tensor), None if bias is None else read_weight(bias.tensor)

    def seen(self, decision: Replaced) -> Iterator[tuple[Tensor, Tensor]]:
        """One pair for each batch."""
        # The layer's own call is still in the converted program, as the plan ends before it.
        so_far = self._apply(self._copied(self._before)[0], self._plan.before(decision.name))
        runs = (self._run(program, decision.name) for program in (so_far, self._before))
        for (x, _), (_, y) in zip(*runs, strict=True):
            yield x, y

    def directions(self, decision: Replaced) -> None:
        """There is no grid that may stay on some inputs."""

    def put(self, decision: Replaced, solved: Solved) -> Replaced:
        """In the values that the program can hold; they travel in the plan."""
        kernel = _rounded(solved.kernel, self._weight(decision).tensor, decision)
        bias = None
        if solved.bias is not None:
            old = self._bias(decision)
            assert old is not None
            bias = _rounded(solved.bias, old.tensor, decision)
        decision = replace(decision, fitted=Fitted(kernel, bias))
        self._plan.put(decision)
        return decision

    def _weight(self, decision: Replaced) -> Stored:
        found = self._calls[decision.name]
        weight = stored(self._original, found, found.call.weight)
        assert weight is not None
        return weight

    def _bias(self, decision: Replaced) -> Stored | None:
        found = self._calls[decision.name]
        if found.call.bias is None:
            return None
        bias = stored(self._original, found, found.call.bias)
        reason = "its bias is computed while the program runs"
        if bias is not None:
            fixed = why_fixed(self._original, bias, decision.name, "bias", [found.node])
            if fixed is None:
                return bias
            reason = fixed.found
        raise UnseenError(reason, "Convert the module before it is exported")

    def _run(self, program: ExportedProgram, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """What a layer, which is not converted yet, gets and gives on each batch."""
        program, calls = self._copied(program)
        node, call = calls[name].node, calls[name].call
        transposed: Any = node.target
        # A graph passes tensors at run time, so these become the only arguments.
        operands = [value for value in (call.input, call.weight, call.bias) if value is not None]
        arguments = (node.args, dict(node.kwargs))
        pairs: list[tuple[Tensor, Tensor]] = []

        def record(*tensors: Tensor) -> Tensor:
            values = dict(zip(operands, tensors, strict=True))
            args, kwargs = torch.fx.map_arg(arguments, lambda operand: values[operand])
            pairs.append((tensors[0], transposed(*args, **kwargs)))
            # Nothing behind the layer is needed.
            raise Reached

        node.target, node.args, node.kwargs = record, tuple(operands), {}
        finish(program.graph_module)
        module = program.module()
        for batch in self._batches:
            try:
                run_model(module, batch)
            except Reached:
                yield pairs.pop()


def _rounded(values: Array, like: Tensor, decision: Replaced) -> Array:
    """In the values that the program can hold."""
    held = torch.from_numpy(values).to(like.dtype).double().numpy()
    check_stored(decision, held, str(like.dtype))
    return held
