"""Parity of two torch modules: layer by layer and end to end, in float64 where the model allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deconvfix.errors import DeconvfixError
from deconvfix.frontends.torch.calls import parse
from deconvfix.frontends.torch.compare import (
    compare_tensors,
    equal,
    input_variants,
    rounding_scale,
    varies,
)
from deconvfix.frontends.torch.inputs import (
    Inputs,
    as_inputs,
    copy_model,
    dtype_name,
    flat_tensors,
    map_tensors,
    run_model,
)
from deconvfix.frontends.torch.layer_parity import bound_of, compare_layers
from deconvfix.parity.bounds import LIMIT, Comparison, ParityReport, summarize
from deconvfix.plan import Plan

__all__ = ["compare_modules"]

# Variants of the inputs beyond the user's own are left out when one run takes longer than this.
_PATIENCE_SECONDS = 2.0


def compare_modules(
    before: nn.Module, after: nn.Module, inputs: Sequence[Any], plan: Plan | None
) -> ParityReport:
    """Holds a converted model against the original.

    Args:
        before: The original.
        after: The converted model.
        inputs: Example inputs; may be empty, then the layers alone are compared.
        plan: What was converted. Without one, layers of the same name are compared.
    """
    if any(parameter.is_meta for parameter in before.parameters()):
        return summarize([], [], "meta", ["The model is on the meta device: there are no values."])
    exact = plan is None or all(each.exact for each in plan.decisions)
    # A kernel that divides does so up to the rounding of its dtype, which float64 sees.
    stored = [] if plan is None else [e for e in plan.replaced if e.exact and e.form != "subpixel"]
    examples = [as_inputs(each) for each in inputs]
    floats = [p.dtype for p in before.parameters() if p.is_floating_point()]
    rounded = max((torch.finfo(each).eps for each in floats), default=0.0)
    before, after, examples, dtype = _in_float64(before, after, examples)
    layers = compare_layers(before, after, examples, plan, rounded)
    outputs: list[Comparison] = []
    problems: list[str] = []
    notes: list[str] = []
    if stored:
        names = ", ".join(each.name or "(model)" for each in stored)
        notes.append(
            f"The model was compared layer by layer: {names} got a kernel that is the same function "
            "up to the rounding of the weights."
        )
    elif examples and exact:
        outputs, problems, notes = _compare_outputs(before, after, examples)
    elif not examples:
        notes.append("No example inputs: the layers were compared, the model was not run.")
        if plan is None:
            problems += _changed_parameters(before, after, layers)
    if not layers and not outputs and plan is not None and not plan.replaced:
        return ParityReport(True, 0.0, 0.0, dtype, notes=("Nothing was converted.",))
    return summarize(layers, outputs, dtype, problems, notes)


def _in_float64(
    before: nn.Module, after: nn.Module, examples: list[Inputs]
) -> tuple[nn.Module, nn.Module, list[Inputs], str]:
    def double(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    own = next((dtype_name(p) for p in before.parameters() if p.is_floating_point()), "float32")
    try:
        wide_before, wide_after = copy_model(before).double(), copy_model(after).double()
        wide = [map_tensors(double, each) for each in examples]
        for model in (wide_before, wide_after):
            for each in wide[:1]:
                # On a copy: a run may change buffers.
                run_model(copy_model(model), each)
    except (DeconvfixError, RuntimeError, NotImplementedError, TypeError):
        # Some models hold constants or casts that double() does not reach.
        return before, after, examples, own
    return wide_before, wide_after, wide, "float64"


def _changed_parameters(
    before: nn.Module, after: nn.Module, layers: Sequence[Comparison]
) -> list[str]:
    """Without a run, whatever lies outside the compared layers must be the same to the bit."""
    compared = tuple(f"{each.what}." for each in layers)
    new = after.state_dict()
    changed = [
        name
        for name, value in before.state_dict().items()
        if not name.startswith(compared)
        and (name not in new or value.shape != new[name].shape or not equal(value, new[name]))
    ]
    return [f"{len(changed)} other entries of the state differ: {', '.join(changed[:3])}."][
        : len(changed)
    ]


# --- end to end ---------------------------------------------------------------------------------


def _compare_outputs(
    before: nn.Module, after: nn.Module, examples: list[Inputs]
) -> tuple[list[Comparison], list[str], list[str]]:
    def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
        results = flat_tensors(run_model(copy_model(model), inputs))
        return [torch.view_as_real(each) if each.is_complex() else each for each in results]

    comparisons: list[Comparison] = []
    problems: list[str] = []
    notes: list[str] = []
    started = time.monotonic()
    outputs(before, examples[0])
    slow = time.monotonic() - started > _PATIENCE_SECONDS
    if slow:
        notes.append("One run takes long: the end-to-end comparison used the example inputs only.")
    cases = [("example inputs", each) for each in examples]
    if not slow:
        cases += input_variants(examples[0])[1:]
    varied = False
    seen: list[Tensor] | None = None
    for kind, inputs in cases:
        try:
            want = outputs(before, inputs)
        except DeconvfixError:
            notes.append(f"The original does not run on {kind} of the example inputs' shapes.")
            continue
        again = outputs(before, inputs)
        if not all(map(equal, want, again)):
            notes.append(
                "The original gives other outputs when it is run again with the same seed."
            )
            break
        got = outputs(after, inputs)
        if len(got) != len(want):
            problems.append(f"The model returns {len(got)} tensors instead of {len(want)}.")
            break
        noisy = []
        for seed in (0, 1, 2):
            with _LayerNoise(seed, torch.finfo(torch.float64).eps):
                noisy.append(outputs(before, inputs))
        for number, (mine, theirs) in enumerate(zip(got, want, strict=True)):
            varied = varied or varies(theirs, None if seen is None else seen[number])
            moved = [each[number] for each in noisy]
            if not theirs.is_floating_point():
                # An index or a decision: rounding may flip it, where noise on the layers does so too.
                if all(equal(theirs, each) for each in moved):
                    comparisons.append(compare_tensors(f"output {number}", kind, mine, theirs, 0.0))
                continue
            rounding = rounding_scale(theirs, moved)
            comparisons.append(compare_tensors(f"output {number}", kind, mine, theirs, rounding))
        seen = seen or want
    if any(each.numel() for each in seen or ()) and comparisons and not varied:
        problems.append(
            "All outputs are constant on all inputs, which is no evidence: give other inputs."
        )
    if comparisons and not problems:
        notes += _dependence(before, examples[0], outputs)
    return comparisons, problems, notes


def _dependence(
    before: nn.Module, inputs: Inputs, outputs: Callable[[nn.Module, Inputs], list[Tensor]]
) -> list[str]:
    """Whether an error of one in a thousand in the layers would be seen at the outputs at all."""
    want = outputs(before, inputs)
    with _LayerNoise(3, 1e-3):
        moved = outputs(before, inputs)
    with _LayerNoise(3, torch.finfo(torch.float64).eps):
        rounded = outputs(before, inputs)
    for value, far, near in zip(want, moved, rounded, strict=True):
        comparable = value.is_floating_point() and value.shape == far.shape
        if comparable and rounding_scale(value, [far]) > 100 * LIMIT * rounding_scale(
            value, [near]
        ):
            return []
    return [
        "The outputs hardly depend on the converted layers with these weights and inputs: the "
        "end-to-end comparison proves little, the comparison of the layers stands."
    ]


class _LayerNoise(TorchFunctionMode):
    """Adds noise of `scale * (|W| (*) |x| + |b|)` to the output of each transposed convolution."""

    def __init__(self, seed: int, scale: float) -> None:
        super().__init__()
        self.seed = seed
        self.scale = scale

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = parse(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        if call is None or not result.is_floating_point():
            return result
        eps = torch.finfo(call.weight.dtype).eps
        scale = max(self.scale, eps) / eps
        # Unit variance from a hash of the position: inside vmap there is no random generator.
        position = torch.arange(result.numel(), dtype=torch.float64, device=result.device)
        uniform = (torch.sin(position * (12.9898 + self.seed) + 1) * 43758.5453) % 1
        noise = math.sqrt(12) * (uniform - 0.5)
        return result + bound_of(call) * scale * noise.reshape(result.shape).to(result.dtype)
