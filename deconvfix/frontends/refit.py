"""A model's own layers fitted in closed form to outputs without a grid, for kinds that cannot be trained.

One layer after the other, in the order in which they run, as in `frontends.calibrate`; but a layer keeps all
its freedom, and its targets are others. Where nothing is locked to the phase it stays close to what the
original layer computes, so that the layers behind it get what they were trained on. What is locked to the
phase in smooth regions goes to what the outputs without a grid have there (`fit.locked`), with a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deconvfix.errors import ModelError
from deconvfix.fit.locked import LockedMoments, any_kernel, roughness, weights_of
from deconvfix.fit.moments import Moments
from deconvfix.fit.regression import Solved, bytes_needed, equations, ridge_fit
from deconvfix.frontends.calibrate import Fittable, UnseenError
from deconvfix.grid.periods import Period
from deconvfix.grid.visible import REPEATS
from deconvfix.plan import Plan, Replaced

__all__ = ["Goals", "Refittable", "refit"]

# Part of the goal in what a layer's outputs are fitted to, where it is not locked to the phase. With 0, 0.5
# and 1 the photo auto-encoder lost 1.6, 0.7 and 0.9 dB of match, at grids of 0.17, 0.20 and 0.24 steps.
_MIX = 0.3
# Towards the trained weights, where the data say nothing.
_RIDGE = 1e-5
# A patch of fewer periods holds texture rather than a grid.
_FEWEST_REPEATS = 2

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Goals:
    """What a layer should give.

    Attributes:
        period: Of the grid in its output.
        outputs: The output without that grid, call by call, (N, C_out, *L_out) each.
        spun: Whether these are means over shifts, and better than the output in other ways too.
    """

    period: Period
    outputs: list[NDArray[Any]]
    spun: bool


class Refittable(Fittable, Protocol):
    """What a kind of model gives for its layers to be fitted to outputs without a grid."""

    def goals(self, decision: Replaced) -> Goals:
        """What a layer should give.

        Raises:
            UnseenError: If its outputs cannot be seen.
        """
        ...


def refit(model: Refittable, plan: Plan, weight: float, memory: float) -> tuple[Plan, list[str]]:
    """Fits the layers of a plan.

    Args:
        model: What the kind of model gives.
        plan: The layers, as if their form were 'equalized'; their geometry stays.
        weight: Of what is locked to the phase, relative to all other errors.
        memory: For the regression of a layer, in GiB.

    Returns:
        The plan with the layers that were fitted, and notes on the others.
    """
    decisions = {decision.name: decision for decision in plan.replaced}
    fitted, notes = {}, []
    for name in model.order(list(decisions)):
        try:
            fitted[name] = _fit(model, decisions[name], weight, memory)
        except UnseenError as error:
            notes.append(f"{name or '(model)'} stays as it is, because {error.found}.")
    kept = tuple(fitted[d.name] for d in plan.decisions if d.name in fitted)
    return replace(plan, decisions=kept), notes


def _fit(model: Refittable, decision: Replaced, weight: float, memory: float) -> Replaced:
    spec = decision.spec
    design = decision.target.design(spec, decision.settings)
    assert design is not None
    design = any_kernel(design)
    if bytes_needed(design, spec) > memory * 2**30:
        raise UnseenError("its regression takes too much memory", "Give it more")
    trained, bias = model.trained(decision)
    wanted = model.goals(decision)
    period, goals = wanted.period, wanted.outputs
    mix = _MIX if wanted.spun else 0.0
    moments = Moments(spec, design, model.arrays)
    smallest = [min(sizes) for sizes in zip(*(goal.shape[2:] for goal in goals), strict=True)]
    repeats = [
        min(REPEATS[spec.ndim], n // p) if p > 1 else min(REPEATS[spec.ndim], n)
        for n, p in zip(smallest, period, strict=True)
    ]
    locked = LockedMoments(spec, design, period, repeats)
    sees_grid = min(repeats) >= _FEWEST_REPEATS
    weights: Iterator[Array] = iter(())
    if sees_grid:
        weights = iter(weights_of([roughness(goal, period, repeats) for goal in goals]))
    for (x, own), goal in zip(model.seen(decision), goals, strict=True):
        try:
            moments.add(x, own + mix * (goal - own))
        except ValueError as error:
            raise UnseenError(str(error), "Report this as a bug") from error
        if sees_grid:
            locked.add(x, goal, next(weights))
    basis = [design.basis[list(phase.taps)] for phase in design.phases]
    # (C_in, C_out/g, taps) -> (g, C_in/g, C_out/g, taps)
    start = design.numbers(trained, spec.groups)
    start = start.reshape(spec.groups, -1, *start.shape[1:])
    kernels, biases = [], []
    for group in range(spec.groups):
        some, others = (
            equations(part, basis, start[group].shape) for part in moments.of_group(group)
        )
        own_bias = None if bias is None else bias.reshape(spec.groups, -1)[group]
        problem = locked.beside(some + others, group, weight)
        w, b = ridge_fit(problem, start[group], own_bias, _RIDGE)
        kernels.append(w)
        biases.append(b)
    kernel = design.kernel(np.concatenate(kernels), spec.groups).reshape(trained.shape)
    if not np.isfinite(kernel).all():
        raise ModelError(
            decision.name or "(model)",
            "its inputs or outputs are not finite on some inputs",
            "finite values are needed to fit it",
            "Leave those inputs out",
        )
    new_bias = None if bias is None else np.concatenate([b for b in biases if b is not None])
    reason = f"fitted to outputs without a grid, weight {weight:g} on what is locked to the phase"
    return model.put(replace(decision, reason=reason), Solved(kernel, new_bias, 0.0))
