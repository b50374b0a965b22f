"""Layers of an ONNX model fitted to outputs without a grid; `frontends.refit` has the algorithm.

The outputs of a layer without their grid are the mean over shifts of the model's input, shifted back, of the
part of the model that computes them. Where input and output do not correspond, they are the original's less
what is locked to the phase.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from deconvfix.frontends.onnx.calibrate import FittableModel, part_of, values_of
from deconvfix.frontends.onnx.find import find_layers
from deconvfix.frontends.onnx.inputs import Feed
from deconvfix.frontends.onnx.parity import session_of
from deconvfix.frontends.refit import Goals, refit
from deconvfix.grid.periods import stacked_periods
from deconvfix.grid.spinning import cycle_spun
from deconvfix.grid.tones import without_locked
from deconvfix.parity.runtime import run_named
from deconvfix.plan import Plan, Replaced

__all__ = ["Refitter"]

# Of the values of a layer that are kept, in bytes.
_MOST_KEPT = 2**30

Apply = Callable[[ir.Model, Plan], ir.Model]


class Refitter:
    """Fits layers of one model, as often as is asked; what they should give is computed once.

    Args:
        model: The original; it is not changed.
        plan: All layers that can be fitted, as for 'equalized'.
        feeds: Inputs, by name.
        apply: Carries out a plan, with the kernels in it, on a model.
        most: Shifts for each input.
        seed: Of their choice.
        memory: For the regression of a layer, in GiB.

    Attributes:
        names: Of the layers, in the order in which they run.
    """

    def __init__(
        self,
        model: ir.Model,
        plan: Plan,
        feeds: Sequence[Feed],
        apply: Apply,
        *,
        most: int,
        seed: int,
        memory: float,
    ) -> None:
        self._model = model
        self._plan = plan
        self._feeds = _as_many_as_fit(model, plan, feeds)
        self._apply = apply
        self._most, self._seed, self._memory = most, seed, memory
        self._goals: dict[str, Goals] = {}
        whole = _Spun(model, plan, self._feeds, apply, self)
        self.names = tuple(whole.order([decision.name for decision in plan.replaced]))

    def refit(self, names: Sequence[str], weight: float) -> tuple[ir.Model, Plan, list[str]]:
        """The model with some layers fitted, what was done, and notes on layers that could not be.

        Args:
            names: Of the layers.
            weight: Of what is locked to the phase, relative to all other errors.
        """
        chosen = tuple(d for d in self._plan.replaced if d.name in names)
        plan = Plan(self._plan.to, chosen)
        fitting = _Spun(self._model, plan, self._feeds, self._apply, self)
        plan, notes = refit(fitting, plan, weight, self._memory)
        return self._apply(self._model.clone(), plan), plan, notes

    def goals(self, decision: Replaced, value: ir.Value) -> Goals:
        """See `frontends.refit.Refittable`."""
        if decision.name not in self._goals:
            self._goals[decision.name] = self._computed(decision, value)
        return self._goals[decision.name]

    def _computed(self, decision: Replaced, value: ir.Value) -> Goals:
        part = part_of(self._model, value)
        own = list(values_of(part, self._feeds))
        before = list(self.names[: self.names.index(decision.name) + 1])
        strides = [d.spec.stride for d in self._plan.replaced if d.name in before]
        same = [stride for stride in strides if len(stride) == decision.spec.ndim]
        period = stacked_periods(same)[0]
        smallest = [min(sizes) for sizes in zip(*(y.shape[2:] for y in own), strict=True)]
        # A map that has not two of these periods shows the layer's own grid alone.
        if any(n < 2 * p for n, p in zip(smallest, period, strict=True)):
            period = decision.spec.stride
        session = session_of(part)
        found, all_spun = [], True
        for i, (feed, y) in enumerate(zip(self._feeds, own, strict=True)):
            spun = None
            if len(feed) == 1:
                [(name, x)] = feed.items()

                def run(moved: NDArray[Any], name: str = name) -> list[NDArray[Any]]:
                    return run_named(session, {name: moved})

                if x.ndim == y.ndim:
                    spun = cycle_spun(run, x, {0: period}, self._most, self._seed + i)
            all_spun = all_spun and spun is not None
            goal = without_locked(y, period) if spun is None else spun[0]
            found.append(goal.astype(y.dtype))
        return Goals(period, found, all_spun)


def _as_many_as_fit(model: ir.Model, plan: Plan, feeds: Sequence[Feed]) -> list[Feed]:
    """The first inputs, as many as leave room for what their largest layer gives."""
    layers = {layer.name: layer for layer in find_layers(model)}
    largest = 1
    for decision in plan.replaced:
        layer = layers[decision.name]
        if layer.graph is model.graph:
            [first] = values_of(part_of(model, layer.node.outputs[0]), feeds[:1])
            largest = max(largest, first.nbytes)
    return list(feeds[: max(1, _MOST_KEPT // largest)])


class _Spun(FittableModel):
    """A model whose layers are fitted, with what they should give."""

    def __init__(
        self, model: ir.Model, plan: Plan, feeds: Sequence[Feed], apply: Apply, shared: Refitter
    ) -> None:
        super().__init__(model, plan, feeds, apply)
        self._shared = shared

    def goals(self, decision: Replaced) -> Goals:
        """Computed once for all candidates."""
        value = self._layers[decision.name].node.outputs[0]
        return self._shared.goals(decision, value)
