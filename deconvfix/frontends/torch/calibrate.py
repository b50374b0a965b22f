"""Calibrated fits: each converted layer regressed on what the original layer computes.

Layer by layer, in the order in which they run. The inputs of a layer are taken from the converted model,
whose earlier layers are fitted already, and the outputs that it should give from the original, both by
forward hooks, so that nothing has to be traced. Only second moments are kept (`fit.regression`): they are
sums over calls, inputs, and the processes of torch.distributed. Both models run in eval mode.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deconvfix.fit.solve import MEMORY, solve
from deconvfix.forms import form
from deconvfix.frontends.calibrate import (
    best_fit,
    calibrated,
    calibrated_decisions,
    candidates,
    kept_bytes,
    too_large,
)
from deconvfix.frontends.torch.find import current_weight
from deconvfix.frontends.torch.inputs import Inputs, Reached, copy_model, run_model
from deconvfix.frontends.torch.layers import (
    ConvertedConvTranspose,
    ConvTransposeModule,
    read_weight,
)
from deconvfix.frontends.torch.moments import Moments
from deconvfix.frontends.torch.surgery import exchange, put_weight, rebuilt_layer
from deconvfix.frontends.torch.tuning.flat import check_constant, directions
from deconvfix.plan import Decision, Plan

__all__ = ["calibrate", "directions_of"]

Array = NDArray[np.float64]


class _Original(NamedTuple):
    """What the layers of the original get and give, for each batch.

    Attributes:
        inputs: Of the first layer, for each call.
        outputs: By the name of the layer, for each call.
    """

    inputs: list[list[Tensor]]
    outputs: list[dict[str, list[Tensor]]]


@torch.no_grad()
def calibrate(
    before: nn.Module,
    after: nn.Module,
    plan: Plan,
    batches: Sequence[Inputs],
    *,
    choose_padding: bool,
    flat: Sequence[Inputs] = (),
    memory: float = MEMORY,
) -> tuple[nn.Module, Plan, list[str]]:
    """Fits the converted layers, in place.

    Args:
        before: The original.
        after: The converted model with weights-only fits.
        plan: What was converted.
        batches: Calibration inputs.
        choose_padding: Choose the border of resize-convolutions by the measured error.
        flat: Inputs on which alone equalized layers must make no grid; none: on all.
        memory: For the regression of a layer, and for the original's outputs; in GiB.

    Returns:
        The model, the plan with what was chosen and measured, and notes on layers that are not fitted.
    """
    decisions = {each.name: each for each in calibrated_decisions(plan)}
    large = {
        name: too_large(each, choose_padding, memory, flat=bool(flat))
        for name, each in decisions.items()
    }
    decisions = {name: each for name, each in decisions.items() if large[name] is None}
    before = copy_model(before).eval()
    counts = _calls_in_order(before, list(decisions), batches)
    original = _original(before, counts, batches, kept_bytes(memory))
    inexact = [each for each in plan.replaced if not each.exact]
    changed: dict[str, Decision] = {}
    for name, count in counts.items():
        # A layer that runs several times sees its own outputs: the second sweep sees the fitted ones.
        targets = None if original is None else [each[name] for each in original.outputs]
        # Nothing that runs before the first layer computes something else than in the original.
        unchanged = len(inexact) == len(counts) and not changed and count == 1
        inputs = original.inputs if unchanged and original is not None else None
        for _ in range(2 if count > 1 else 1):
            after, changed[name] = _fit_layer(
                before,
                after,
                decisions[name],
                batches,
                inputs,
                targets,
                count,
                choose_padding,
                flat,
            )
    notes = [each for each in large.values() if each is not None]
    notes += [
        f"{name} did not run on the calibration inputs: it keeps its fit to the weights."
        for name in decisions
        if name not in counts
    ]
    decided = tuple(changed.get(each.name, each) for each in plan.decisions)
    return after, replace(plan, decisions=decided), notes


def _calls_in_order(
    model: nn.Module, names: Sequence[str], batches: Sequence[Inputs]
) -> dict[str, int]:
    """How often each layer runs on a batch (the most seen), in the order of the first calls."""
    counts: dict[str, int] = {}
    for batch in batches:
        seen: list[str] = []
        hooks = [
            model.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name, seen=seen: seen.append(name)
            )
            for name in names
        ]
        try:
            run_model(model, batch)
        finally:
            for hook in hooks:
                hook.remove()
        for name in seen:
            counts[name] = max(counts.get(name, 0), seen.count(name))
        if len(counts) == len(names):
            break
    return counts


def _original(
    model: nn.Module, counts: Mapping[str, int], batches: Sequence[Inputs], most_bytes: float
) -> _Original | None:
    """What its layers get and give, from one run of it; None where that is too much to keep."""
    found = _Original([], [])
    size = 0
    for batch in batches:
        inputs: list[Tensor] = []
        outputs: dict[str, list[Tensor]] = {name: [] for name in counts}

        def hook(
            module: nn.Module,
            args: Any,
            kwargs: Any,
            output: Tensor,
            name: str,
            inputs: Any,
            outputs: Any,
        ) -> None:
            # What follows may change them in place.
            outputs[name].append(output.clone())
            if name == next(iter(outputs)):
                inputs.append(_input_of(args, kwargs).clone())

        handles = [
            model.get_submodule(name).register_forward_hook(
                partial(hook, name=name, inputs=inputs, outputs=outputs),
                prepend=True,
                with_kwargs=True,
            )
            for name in counts
        ]
        try:
            run_model(model, batch)
        finally:
            for handle in handles:
                handle.remove()
        size += sum(each.nbytes for each in itertools.chain(inputs, *outputs.values()))
        if size > most_bytes:
            return None
        found.inputs.append(inputs)
        found.outputs.append(outputs)
    return found


def _fit_layer(
    before: nn.Module,
    after: nn.Module,
    decision: Decision,
    batches: Sequence[Inputs],
    inputs: Sequence[Sequence[Tensor]] | None,
    targets: Sequence[Sequence[Tensor]] | None,
    count: int,
    choose_padding: bool,
    flat: Sequence[Inputs],
) -> tuple[nn.Module, Decision]:
    """Fits one layer and puts the fit into the model.

    Args:
        before: The original.
        after: The converted model, fitted up to this layer.
        decision: The layer's.
        batches: Calibration inputs.
        inputs: What the layer gets in the converted model, for each batch and call; None: to be seen.
        targets: What it should give, likewise; None: to be seen in the original.
        count: Its calls.
        choose_padding: As in `calibrate`.
        flat: As in `calibrate`.
    """
    spec, settings = decision.spec, decision.settings
    assert spec is not None
    assert settings is not None
    assert decision.form is not None
    moments = [
        Moments(spec, decision.form, candidate)
        for candidate in candidates(decision, choose_padding)
    ]
    running = copy_model(after).eval() if inputs is None else None
    for number, batch in enumerate(batches):
        if inputs is not None:
            given = inputs[number]
        else:
            assert running is not None
            given = [x for x, _ in _calls(running, decision.name, batch, count)]
        if targets is None:
            wanted: Sequence[Tensor] = [y for _, y in _calls(before, decision.name, batch, count)]
        else:
            wanted = targets[number]
        for x, y in zip(given, wanted, strict=False):
            for sums in moments:
                sums.add(x, y)
    old = before.get_submodule(decision.name)
    assert isinstance(old, ConvTransposeModule)
    along = None
    if flat:
        along = directions_of(after, decision.name, decision, flat)
        settings = replace(settings, strength=0.0)  # any kernel may be the start
    start = form(decision.form).fit(spec, settings, read_weight(current_weight(old)))
    bias = None if old.bias is None else read_weight(old.bias)
    for sums in moments:
        sums.gather()
    chosen, fit = best_fit(
        decision, [(sums.settings, solve(sums, start, bias, along)) for sums in moments]
    )
    module = after.get_submodule(decision.name)
    if isinstance(module, ConvertedConvTranspose):
        after = exchange(after, module, rebuilt_layer(module, chosen, fit.kernel, fit.bias))
    else:
        put_weight(module, fit.kernel, fit.bias, decision.name)
    return after, calibrated(decision, chosen, fit)


def directions_of(model: nn.Module, name: str, decision: Decision, flat: Sequence[Inputs]) -> Array:
    """What a layer gets on flat inputs; see `tuning.flat.directions`.

    Raises:
        OptionError: If that is no constant.
    """
    assert decision.spec is not None
    running = copy_model(model).eval()
    counts = _calls_in_order(running, [name], flat)
    seen = [x for each in flat for x, _ in _calls(running, name, each, counts.get(name, 1))]
    check_constant(name, seen, decision.spec.ndim)
    return directions(seen, decision.spec)


def _input_of(args: Any, kwargs: Any) -> Tensor:
    tensor: Tensor = args[0] if args else kwargs["input"]
    return tensor


def _calls(model: nn.Module, name: str, batch: Inputs, count: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and outputs of the first `count` calls of a layer; the run ends with the last one."""
    calls: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        calls.append((_input_of(args, kwargs), output))
        if len(calls) == count:
            raise Reached
        # What follows may change them in place.
        x, y = calls.pop()
        calls.append((x.clone(), y.clone()))

    # Before the user's hooks, which are not part of the layer.
    handle = model.get_submodule(name).register_forward_hook(hook, prepend=True, with_kwargs=True)
    try:
        run_model(model, batch)
    except Reached:
        pass
    finally:
        handle.remove()
    return calls
