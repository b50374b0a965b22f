"""Calibrated fits of torch.export programs: each converted layer regressed on what the original computes.

As in `torch.calibrate`. Instead of a hook, a function takes the layer's place in a copy of the program: it
keeps what the layer gets and gives, and ends the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram

from deconvfix.errors import sentence
from deconvfix.fit.solve import MEMORY, solve
from deconvfix.forms import form
from deconvfix.frontends.calibrate import (
    best_fit,
    calibrated,
    candidates,
    check_held,
    fitted_decisions,
    too_large,
)
from deconvfix.frontends.program.weights import stored, why_fixed
from deconvfix.frontends.torch.graph import GraphCall, finish
from deconvfix.frontends.torch.inputs import Inputs, Reached, run_model
from deconvfix.frontends.torch.layers import read_weight
from deconvfix.frontends.torch.moments import Moments
from deconvfix.plan import Decision, Fitted, Plan

__all__ = ["calibrate"]

# A copy of a program, with its calls by name.
Copied = Callable[[ExportedProgram], tuple[ExportedProgram, dict[str, GraphCall]]]


@torch.no_grad()
def calibrate(
    before: ExportedProgram,
    plan: Plan,
    batches: Sequence[Inputs],
    copied: Copied,
    apply: Callable[[ExportedProgram, Plan], ExportedProgram],
    *,
    choose_padding: bool,
    memory: float = MEMORY,
) -> tuple[Plan, list[str]]:
    """Fits the layers of a plan.

    Args:
        before: The original; it is not changed.
        plan: What is converted.
        batches: Calibration inputs.
        copied: Copies a program.
        apply: Carries out a plan, with the kernels in it, in place.
        choose_padding: Choose the border of resize-convolutions by the measured error.
        memory: For the regression of a layer, in GiB.

    Returns:
        The plan with what was chosen, fitted and measured, and notes on layers that are not fitted.
    """
    pending = {each.name: each for each in fitted_decisions(plan)}
    decided = {each.name: each for each in plan.decisions if each.name not in pending}
    notes = []
    original, calls = copied(before)
    for name, decision in pending.items():
        large = too_large(decision, choose_padding, memory)
        if large is not None:
            notes.append(large)
            decided[name] = decision
            continue
        obstacle = _obstacle(original, calls[name])
        if obstacle is not None:
            found = f"it keeps its fit to the weights, because {obstacle}"
            needed = "a bias of its own that the program stores is fitted with the weight"
            notes.append(sentence(name, found, needed, "Convert the module before it is exported"))
            decided[name] = decision
            continue
        so_far = apply(copied(before)[0], replace(plan, decisions=tuple(decided.values())))
        seen = [_seen(each, name, batches, copied) for each in (so_far, before)]
        decided[name] = _fit(original, calls[name], decision, seen, choose_padding)
    return replace(plan, decisions=tuple(decided[each.name] for each in plan.decisions)), notes


def _fit(
    program: ExportedProgram,
    found: GraphCall,
    decision: Decision,
    seen: Sequence[Iterator[tuple[Tensor, Tensor]]],
    choose_padding: bool,
) -> Decision:
    """Fits one layer to its inputs in the program so far and its outputs in the original."""
    spec, settings = decision.spec, decision.settings
    assert spec is not None
    assert settings is not None
    assert decision.form is not None
    moments = [Moments(spec, decision.form, each) for each in candidates(decision, choose_padding)]
    for (x, _), (_, y) in zip(*seen, strict=True):
        for sums in moments:
            sums.add(x, y)
    for sums in moments:
        sums.gather()
    weight, bias = (stored(program, found, each) for each in (found.call.weight, found.call.bias))
    assert weight is not None
    start = form(decision.form).fit(spec, settings, read_weight(weight.tensor))
    old_bias = None if bias is None else read_weight(bias.tensor)
    best, solved = best_fit(
        decision, [(each.settings, solve(each, start, old_bias)) for each in moments]
    )
    kernel = _rounded(solved.kernel, weight.tensor, decision)
    new_bias = None
    if solved.bias is not None:
        assert bias is not None
        new_bias = _rounded(solved.bias, bias.tensor, decision)
    return replace(calibrated(decision, best, solved), fitted=Fitted(kernel, new_bias))


def _obstacle(program: ExportedProgram, found: GraphCall) -> str | None:
    """Why the bias cannot be set; a weight that cannot is a refusal of the plan's."""
    if found.call.bias is None:
        return None
    bias = stored(program, found, found.call.bias)
    if bias is None:
        return "its bias is computed while the program runs"
    fixed = why_fixed(program, bias, "bias")
    return None if fixed is None else fixed.found


def _rounded(values: NDArray[np.float64], like: Tensor, decision: Decision) -> NDArray[np.float64]:
    """In the values that the program can hold."""
    rounded = torch.from_numpy(values).to(like.dtype).double().numpy()
    check_held(decision, rounded, str(like.dtype))
    return rounded


def _seen(
    program: ExportedProgram, name: str, batches: Sequence[Inputs], copied: Copied
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a layer, which is not converted yet, gets and gives on each batch."""
    program, calls = copied(program)
    node, call = calls[name].node, calls[name].call
    transposed: Any = node.target
    operands = [each for each in (call.input, call.weight, call.bias) if each is not None]
    arguments = (node.args, dict(node.kwargs))
    seen: list[tuple[Tensor, Tensor]] = []

    def record(*tensors: Tensor) -> Tensor:
        values = dict(zip(operands, tensors, strict=True))
        args, kwargs = torch.fx.map_arg(arguments, lambda each: values[each])
        seen.append((tensors[0], transposed(*args, **kwargs)))
        raise Reached

    node.target, node.args, node.kwargs = record, tuple(operands), {}
    finish(program.graph_module)
    module = program.module()
    for batch in batches:
        try:
            run_model(module, batch)
        except Reached:
            yield seen.pop()
