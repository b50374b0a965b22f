"""Which layers of a converted ONNX file a runtime gets wrong: each alone, as it is and as it became."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from deconvfix.errors import DeconvfixError
from deconvfix.files import scratch_folder
from deconvfix.frontends.onnx.find import find_layers
from deconvfix.frontends.onnx.nodes import plain
from deconvfix.plan import Plan, Replaced
from deconvfix.runtimes.alone import Alone, feed_of, layer_alone, layer_shapes, save
from deconvfix.runtimes.proof import judge_in

__all__ = ["departures"]


def departures(
    runtime: str, model: ir.Model, plan: Plan, example_inputs: Any | None, seconds: float
) -> Iterator[str]:
    """A sentence for each converted layer that is not right in a runtime, or could not be looked at.

    Args:
        runtime: Its name.
        model: The original.
        plan: What was done to it.
        example_inputs: That the original runs on; for open sizes.
        seconds: For each run.
    """
    draft = plain(model).clone()
    layers = {layer.name: layer for layer in find_layers(draft)}
    unfolded = [layers[one.name] for one in plan.replaced if one.upsampling is None]
    shapes, fixed = layer_shapes(draft, unfolded, feed_of(model, example_inputs))
    found = False
    for decision in plan.replaced:
        name = decision.name
        if decision.upsampling is not None or name not in shapes:
            what = (
                "upsampling is folded into it" if decision.upsampling else "its size is not known"
            )
            yield f"{name} was not looked at alone ({what})."
            continue
        try:
            single = layer_alone(draft, layers[name], shapes[name], fixed_batch=name in fixed)
            words = _departs(runtime, single, decision, plan.target, seconds)
        except DeconvfixError as error:
            words = f"{name} was not looked at alone ({error.found})."
        if words:
            found = True
            yield words
    if not found:
        yield "Each layer alone is right there."


def _departs(
    runtime: str, single: Alone, decision: Replaced, target: str | None, seconds: float
) -> str:
    with scratch_folder() as folder:
        before = save(single.model, folder / "before.onnx")
        after = save(single.converted(decision, target), folder / "after.onnx")
        # What changes on purpose is compared with itself in ONNX Runtime.
        judge = judge_in(runtime, before if decision.exact else after, [single.feed], seconds)
        fared = judge(after)
    if fared.status in ("right", "unproven"):
        return ""
    settings = decision.settings
    chosen = [name for name in (settings.convolution, settings.shuffle) if name is not None]
    writing = f" ({'/'.join(chosen)})" if chosen else ""
    return f"{decision.name}{writing} is {fared.status} there: {fared.words}."
