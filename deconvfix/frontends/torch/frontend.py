"""Front end for torch.nn.Module.

A plain torch.nn.ConvTranspose1d, 2d or 3d is exchanged for a module of the new form. Everything else
that runs a transposed convolution keeps its module, parameters and names, and has its call rerouted
while it runs: subclasses with their own forward, parametrized, hooked or tied weights, and functional
calls. Neither needs the model to be traceable.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deconvfix.core.spec import ConvTransposeSpec
from deconvfix.errors import ModelError, Refusal
from deconvfix.forms.base import FITTED_TO_DATA, Init, Need
from deconvfix.frontends.base import (
    CalibrationData,
    Findings,
    Kernel,
    Probe,
    Shuffle,
)
from deconvfix.frontends.calibrate import calibrate, fitted_decisions
from deconvfix.frontends.samples import calibration_inputs, count_samples
from deconvfix.frontends.torch.calibrate import FittableModule
from deconvfix.frontends.torch.calls import (
    Observed,
    asks_for_class,
    callers_by_code,
    executed_transposed_convolutions,
    observe,
)
from deconvfix.frontends.torch.diagnose import gradient_advice, kernels_of, probe_module
from deconvfix.frontends.torch.exposed import (
    as_in,
    as_shuffled,
    shows_shuffles,
    stored,
    with_shuffled,
    with_transposed,
    without_phases,
)
from deconvfix.frontends.torch.find import (
    PLAIN,
    call_path,
    is_layer,
    is_rerouted,
    is_uninitialized,
    keeps_some,
    match_calls,
    match_module,
    owners_of_parameters,
)
from deconvfix.frontends.torch.folded import fold_layer
from deconvfix.frontends.torch.inputs import (
    as_inputs,
    copy_model,
    copy_to_run,
    innermost_name,
    names_of,
    psnr_db,
    run_model,
    snapshot,
)
from deconvfix.frontends.torch.layers import ConvertedConvTranspose, spread_weight
from deconvfix.frontends.torch.parity import compare_modules
from deconvfix.frontends.torch.reroute import keep, reroute
from deconvfix.frontends.torch.samples import TorchSamples, flat_inputs, with_arrays
from deconvfix.frontends.torch.shuffles import CONVOLUTIONS, executed_shuffles
from deconvfix.frontends.torch.surgery import (
    check_geometry,
    converted_layer,
    exchange,
    set_weight,
    set_weight_of_call,
    warn_of_optimizers,
    why_not_exchanged,
)
from deconvfix.frontends.torch.tuning.flat import grid_notes
from deconvfix.frontends.torch.tuning.restore import cost, restore
from deconvfix.frontends.torch.tuning.teacher import constant_like, cycle_spun, varied
from deconvfix.frontends.torch.tuning.tune import tune
from deconvfix.frontends.torch.upsampled import find_upsampled
from deconvfix.parity.bounds import ParityReport
from deconvfix.plan import Decision, Match, Plan, Replaced

__all__ = ["FRONTEND", "TorchModuleFrontend"]

# Models that nobody else has seen yet, by their id: no optimizer holds their parameters.
_COPIES: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()


class TorchModuleFrontend:
    """See the module's text."""

    fits: tuple[Init, ...] = FITTED_TO_DATA
    can_grow = True

    def prepare(self, model: nn.Module, example_inputs: Any | None, *, inplace: bool) -> nn.Module:
        """A copy; lazy layers get their shapes from the example inputs."""
        if inplace:
            _COPIES.pop(id(model), None)
        else:
            model = copy_model(model)
            _COPIES[id(model)] = model
        if example_inputs is not None and any(map(is_uninitialized, model.modules())):
            # The run is for the shapes: running statistics go back to what they were.
            before = {name: buffer.clone() for name, buffer in _buffers(model)}
            run_model(model, as_inputs(example_inputs))
            for name, buffer in _buffers(model):
                if name in before:
                    buffer.copy_(before[name])
        return model

    def find(self, model: nn.Module, example_inputs: Any | None) -> Findings:
        """Modules by their class, calls by running a copy (or by reading code, without inputs)."""
        observed: dict[str, list[Observed]] = {}
        used_elsewhere: set[str] = set()
        uses: Counter[int] = Counter()
        notes: list[str] = []
        # Calls by a run, on a copy: a run may change buffers.
        if example_inputs is not None:
            # A run shows every call, with its geometry and the module that made it.
            probe = copy_to_run(model)
            names = names_of(probe)
            # By identity: code that uses a layer's weight elsewhere uses the same tensor.
            homes = {
                id(parameter): module
                for module in probe.modules()
                if isinstance(module, PLAIN)
                for parameter in module.parameters()
            }

            def record(seen: Observed) -> None:
                observed.setdefault(innermost_name(seen.stack, names), []).append(seen)

            # A parameter that is used outside its layer cannot be taken away with the layer.
            def touch(user: nn.Module | None, parameter: Tensor) -> None:
                uses[id(parameter)] += 1
                home = homes.get(id(parameter), user)
                inside = home is None or any(user is module for module in home.modules())
                if home is not None and not inside:
                    used_elsewhere.add(names[home])

            with observe(record, touch):
                run_model(probe, as_inputs(example_inputs))
        notes += [
            f"The code of {name or type(model).__name__} asks for the class of a layer: a converted one is "
            "no torch.nn.ConvTranspose. Code that initialises weights, as in transformers, passes it by."
            for name in asks_for_class(model)
        ]
        owners = owners_of_parameters(model)
        # Then the layers of the model itself, with what the run has shown of each.
        matches: dict[str, Match] = {}
        # Layers by their class, whether they ran or not; then the calls in other modules.
        layers = {name for name, module in model.named_modules() if is_layer(module)}
        for name, module in model.named_modules():
            # Converted before: only its class is still that of a layer.
            if is_rerouted(module) and is_layer(module):
                continue
            calls = observed.get(name, [])
            if is_layer(module):
                # None says that nothing is known, an empty list that the layer does not run.
                ran = None if example_inputs is None else calls
                match = match_module(name, module, owners, ran)
                if name in used_elsewhere:
                    match = replace(
                        match, lacks={Need.STORED_WEIGHT: _USED_ELSEWHERE} | dict(match.lacks)
                    )
                matches[name] = as_shuffled(match, module) if module._forward_hooks else match
            else:
                for match in match_calls(name, module, calls, owners, uses):
                    if match.name in layers:  # a child of that name
                        match = replace(match, name=f"{match.name}#1")
                    matches[match.name] = match
        if example_inputs is None:
            # Without a run the code alone can tell, and it tells no geometry.
            for path in callers_by_code(model):
                if is_rerouted(model.get_submodule(path)):
                    continue
                name = f"{path}.conv_transpose".removeprefix(".")
                matches[name] = Match(
                    name, "conv_transpose", None, "unknown", lacks={Need.STORED_WEIGHT: _UNSEEN}
                )
            notes.append(
                "No example inputs: calls of torch.nn.functional.conv_transpose* were searched in "
                "the code of the model only; give example inputs to see every one that runs."
            )
        return Findings(tuple(matches.values()), tuple(notes))

    def probe(
        self, model: nn.Module, example_inputs: Any | None, matches: Sequence[Match]
    ) -> Probe:
        """Runs a copy in eval mode: batch statistics of a few inputs are no artifact of the layers."""
        advice = tuple(gradient_advice(model))
        if example_inputs is None or not matches:
            return Probe(advice=advice)
        return replace(
            probe_module(copy_model(model).eval(), example_inputs, matches), advice=advice
        )

    def apply(self, model: nn.Module, plan: Plan) -> nn.Module:
        """Exchanges layers and reroutes calls as the plan says."""
        owners = owners_of_parameters(model)
        is_copy = _COPIES.get(id(model)) is model
        trained = {} if is_copy else dict(model.named_parameters())
        rerouted: dict[nn.Module, set[tuple[str, ConvTransposeSpec]]] = {}
        # A layer is corrected or exchanged. What cannot be exchanged (a layer with code, hooks or an owner of
        # its own), and calls, are rerouted where they run.
        for decision in plan.changed:
            module = _module_of(model, decision)
            if isinstance(decision, Replaced) and decision.upsampling is not None:
                model = fold_layer(model, decision)
                continue
            if not isinstance(decision, Replaced):
                rerouted.setdefault(module, set())
                continue
            if isinstance(module, CONVOLUTIONS):
                continue  # its weights alone change: a checkpoint has them
            if not is_layer(module):
                if decision.target.keeps_layer:
                    set_weight_of_call(module, decision)
                else:
                    rerouted.setdefault(module, set())
                continue
            check_geometry(module, decision)
            if decision.target.keeps_layer:
                set_weight(module, decision)
                without_phases(module)
            elif decision.target.is_exact and why_not_exchanged(module, owners):
                rerouted.setdefault(module, set())
            else:
                model = exchange(model, module, converted_layer(module, decision))
        # A rerouted module catches every call inside it, so what stays must be excluded.
        untouched = set()
        # What stays, inside a module whose calls are rerouted, must not be caught there.
        for decision in plan.decisions:
            if decision.name not in plan.stays or not rerouted:
                continue
            module = _module_of(model, decision)
            if module in rerouted and decision.spec:
                # A call in the module's own code is told by its function and geometry.
                rerouted[module].add((decision.op, decision.spec))
            elif module not in rerouted and _has_ancestor(model, decision, rerouted):
                # A call further inside meets the modes of all modules around it.
                untouched.add(module)
        for module, excluded in rerouted.items():
            reroute(module, frozenset(excluded))
        for module in untouched:
            keep(module)
        if not is_copy:
            left = {id(parameter) for parameter in model.parameters()}
            warn_of_optimizers((name, p) for name, p in trained.items() if id(p) not in left)
        return model

    def fit_to_data(
        self, before: nn.Module, after: nn.Module, plan: Plan, data: CalibrationData
    ) -> tuple[nn.Module, Plan, Sequence[str]]:
        """Calibrated fits, and distillation where it is asked for."""
        decisions = fitted_decisions(plan)
        samples = TorchSamples(data.example_inputs, data.tuning.seed)
        # Calibration solves on the batches. Tuning draws from the supply where there is one.
        batches, supply = calibration_inputs(samples, data.inputs)
        flat = [] if data.flat is None else flat_inputs(data.flat, data.example_inputs)
        with torch.no_grad():
            fittable = FittableModule(before, after, plan, batches, flat, data.memory)
            plan, notes = calibrate(
                fittable,
                plan,
                choose_padding=data.choose_padding,
                memory=data.memory,
                flat=bool(flat),
            )
        # Tuning starts at the calibrated weights, which are close to the original already.
        after = fittable.after
        if any(decision.settings.init == "tuned" for decision in decisions):
            plan, more = tune(before, after, plan, batches, supply, data.tuning, flat, data.memory)
            notes = [*notes, *more]
        if flat:
            # Layers in sequence multiply their periods: the product covers all of their grids.
            strides = [decision.spec.stride[-1] for decision in decisions]
            notes = [*notes, *grid_notes(before, after, flat, math.prod(strides))]
        return after, plan, notes

    def count_samples(
        self, model: nn.Module, inputs: Iterable[Any] | str, example_inputs: Any | None
    ) -> int:
        """See `frontends.samples.count_samples`."""
        return count_samples(TorchSamples(example_inputs), inputs)

    def drawn_inputs(self, model: nn.Module, distribution: str, seed: int) -> None:
        """A module does not say the shapes of its inputs."""

    def kernels(self, before: nn.Module, after: nn.Module, plan: Plan) -> tuple[Kernel, ...]:
        """See `diagnose.kernels_of`."""
        return kernels_of(before, after, plan)

    def converted_weights(
        self, model: nn.Module, names: Sequence[str]
    ) -> Mapping[str, tuple[ConvTransposeSpec, NDArray[np.float64]]]:
        """Of the layers of these names that were exchanged for modules of a form."""
        layers = {name: model.get_submodule(name) for name in names}
        return {
            name: spread_weight(layer)
            for name, layer in layers.items()
            if isinstance(layer, ConvertedConvTranspose)
        }

    def left(self, model: nn.Module, plan: Plan, example_inputs: Any) -> Sequence[str]:
        """Runs a copy under a dispatch mode and names what it still sees."""
        kept = [decision for decision in plan.decisions if decision.name in plan.stays]
        paths = [call_path(decision.name, decision.op) for decision in kept]
        # A functional call is seen as a call of the module whose code it stands in.
        allowed = {d.name if path is None else path for d, path in zip(kept, paths, strict=True)}
        allowed |= {name for name, module in model.named_modules() if keeps_some(module)}
        for name, module in model.named_modules():
            # What runs inside a compiled module counts for the module.
            inside = any(not name or path.startswith(f"{name}.") for path in allowed)
            if isinstance(module, torch.jit.ScriptModule) and inside:
                allowed.add(name)
        ran = executed_transposed_convolutions(copy_to_run(model), example_inputs)
        return [name for name in ran if name not in allowed]

    def verify(
        self, before: nn.Module, after: nn.Module, inputs: Sequence[Any], plan: Plan | None
    ) -> ParityReport:
        """See `parity.compare_modules`."""
        return compare_modules(before, after, inputs, plan)

    def psnr_db(self, before: nn.Module, after: nn.Module, example_inputs: Any) -> float | None:
        """See `inputs.psnr_db`."""
        return psnr_db(before, after, example_inputs)

    def run(self, model: nn.Module, inputs: Any) -> Probe:
        """See `diagnose.probe_module`."""
        return probe_module(copy_model(model).eval(), inputs, ())

    def same_function(self, shown: nn.Module, model: nn.Module, inputs: Any) -> ParityReport:
        """See `parity.compare_modules`, of the weights as they are."""
        return compare_modules(shown, stored(model, shown), [inputs], None)

    find_upsampled = staticmethod(find_upsampled)
    snapshot = staticmethod(snapshot)
    with_transposed = staticmethod(with_transposed)
    as_in = staticmethod(as_in)
    with_shuffled = staticmethod(with_shuffled)
    shows_shuffles = staticmethod(shows_shuffles)

    def shuffles(self, model: nn.Module, inputs: Any) -> list[Shuffle]:
        """See `shuffles.executed_shuffles`."""
        return executed_shuffles(copy_model(model).eval(), inputs)

    cycle_spun = staticmethod(cycle_spun)

    def drawn_batches(self, example_inputs: Any, distribution: str, seed: int) -> list[Any]:
        """See `frontends.samples.calibration_inputs`."""
        return list(calibration_inputs(TorchSamples(example_inputs, seed), distribution)[0])

    with_arrays = staticmethod(with_arrays)
    constant_like = staticmethod(constant_like)
    varied = staticmethod(varied)
    restore = staticmethod(restore)
    cost = staticmethod(cost)


FRONTEND = TorchModuleFrontend()

_USED_ELSEWHERE = Refusal(
    "other code uses its parameters too while the model runs",
    "another form has other parameters",
    "Convert this layer to 'subpixel', or exclude it",
)
_UNSEEN = Refusal(
    "it is called in this module's code, with a geometry unknown before it runs",
    "example inputs show its geometry",
    "Give example inputs",
)


def _buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (f"{name}.{key}", buffer)
        for name, module in model.named_modules()
        if not is_uninitialized(module)
        for key, buffer in module.named_buffers(recurse=False)
    ]


def _module_of(model: nn.Module, decision: Decision) -> nn.Module:
    """The layer, or the module whose code calls the function."""
    path = call_path(decision.name, decision.op)
    if path is None:
        path = decision.name
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(
            decision.name or "(model)",
            "the model has no such layer",
            "the plan must belong to this architecture",
            "Use the recipe that was made for this model",
        ) from error


def _has_ancestor(model: nn.Module, decision: Decision, ancestors: Container[nn.Module]) -> bool:
    """Whether one of the modules around a layer is among `ancestors`."""
    parts = decision.name.split(".")
    return any(
        model.get_submodule(".".join(parts[:depth])) in ancestors for depth in range(len(parts))
    )
