"""What a torch module gives for its layers to be fitted to data; `frontends.calibrate` has the algorithm.

Forward hooks take the inputs of a layer from the converted model, and the outputs that it should give from
the original, so that nothing has to be traced. Both models run in eval mode.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deconvfix.fit.moments import Arrays
from deconvfix.fit.regression import Solved
from deconvfix.frontends.calibrate import kept_bytes
from deconvfix.frontends.torch import steps as torch_steps
from deconvfix.frontends.torch.find import current_weight
from deconvfix.frontends.torch.inputs import Inputs, Reached, copy_model, run_model
from deconvfix.frontends.torch.layers import (
    ConvertedConvTranspose,
    ConvTransposeModule,
    read_weight,
)
from deconvfix.frontends.torch.surgery import exchange, put_weight, rebuilt_layer
from deconvfix.frontends.torch.tuning.flat import check_constant, directions
from deconvfix.frontends.torch.tuning.processes import rank, total, world
from deconvfix.plan import Plan, Replaced

__all__ = ["TENSORS", "FittableModule", "directions_of"]

Array = NDArray[np.float64]

TENSORS = Arrays(
    zeros=lambda shape, like: torch.zeros(
        shape, dtype=torch.float64, device=None if like is None else like.device
    ),
    join=torch.cat,
    # The weight is that of the step Conv, which a design does not have.
    run=lambda steps, x, groups: torch_steps.apply_steps(steps, x.double(), x, None, groups),
    moveaxis=torch.movedim,
    numpy=lambda tensor: tensor.cpu().numpy(),
    turn=lambda: (rank(), world()),
    total=lambda arrays: total(map(torch.as_tensor, arrays)),
)


class _Original(NamedTuple):
    """What the layers of the original get and give, for each batch.

    Attributes:
        inputs: Of the first layer, for each call.
        outputs: By the name of the layer, for each call.
    """

    inputs: list[list[Tensor]]
    outputs: list[dict[str, list[Tensor]]]


class FittableModule:
    """A torch module whose layers are fitted, in place; see `frontends.calibrate.Fittable`.

    Args:
        before: The original; it is not changed.
        after: The converted model with fits to the weights.
        plan: What was converted.
        batches: Calibration inputs.
        flat: Inputs on which alone layers must make no grid; none: on all.
        memory: For the original's outputs, in GiB.

    Attributes:
        after: The converted model, fitted as far as it is.
    """

    arrays = TENSORS
    # Hooks see every call, whatever the size of its input.
    any_size = True

    def __init__(
        self,
        before: nn.Module,
        after: nn.Module,
        plan: Plan,
        batches: Sequence[Inputs],
        flat: Sequence[Inputs],
        memory: float,
    ) -> None:
        self.after = after
        self._before = copy_model(before).eval()
        # Exact forms change no value, so only fitted layers make inputs differ.
        self._inexact = sum(not decision.exact for decision in plan.replaced)
        self._batches = batches
        self._flat = flat
        self._memory = memory
        self._counts: dict[str, int] = {}
        self._original: _Original | None = None

    def order(self, names: Sequence[str]) -> Mapping[str, int]:
        """The layers that run, by a run of the original; what they get and give is kept if it is little."""
        self._counts = _calls_in_order(self._before, names, self._batches)
        most = kept_bytes(self._memory)
        self._original = _original(self._before, self._counts, self._batches, most)
        # A layer may run more often on a later batch than on those that told the order.
        if self._original is None:
            self._counts = _calls_in_order(self._before, names, self._batches, every=True)
        else:
            for name in self._counts:
                self._counts[name] = max(len(seen[name]) for seen in self._original.outputs)
        return self._counts

    def trained(self, decision: Replaced) -> tuple[Array, Array | None]:
        """As the original's next run uses them."""
        layer = self._before.get_submodule(decision.name)
        assert isinstance(layer, ConvTransposeModule)
        bias = None if layer.bias is None else read_weight(layer.bias)
        return read_weight(current_weight(layer)), bias

    def seen(self, decision: Replaced) -> Iterator[tuple[Tensor, Tensor]]:
        """One pair for each call on each batch."""
        name, kept = decision.name, self._original
        count = self._counts[name]
        # Nothing that runs before the first layer computes something else than in the original.
        first = name == next(iter(self._counts))
        # All fitted layers run, so none in front of the first one is missing from the counts.
        unchanged = self._inexact == len(self._counts) and first and count == 1
        inputs = kept.inputs if unchanged and kept is not None else None
        # As the model is fitted so far: the layers in front of this one are done.
        running = copy_model(self.after).eval() if inputs is None else None
        for number, batch in enumerate(self._batches):
            if running is not None:
                given = [x for x, _ in _calls(running, name, batch, count)]
            else:
                assert inputs is not None
                given = inputs[number]
            if kept is not None:
                targets = kept.outputs[number][name]
            else:
                targets = [y for _, y in _calls(self._before, name, batch, count)]
            for x, y in zip(given, targets, strict=False):
                yield _with_float64(x), _with_float64(y)

    def directions(self, decision: Replaced) -> Array | None:
        """Of what the layer gets on flat inputs, if there are some."""
        if not self._flat:
            return None
        return directions_of(self.after, decision.name, decision, self._flat)

    def put(self, decision: Replaced, solved: Solved) -> Replaced:
        """Into the module: exchanged layers are built again, for a border that was chosen."""
        module = self.after.get_submodule(decision.name)
        # The padding mode is part of the steps, so a new layer is compiled.
        if isinstance(module, ConvertedConvTranspose):
            new = rebuilt_layer(module, decision.settings, solved.kernel, solved.bias)
            self.after = exchange(self.after, module, new)
        else:
            put_weight(module, solved.kernel, solved.bias, decision.name)
        return decision


def _with_float64(tensor: Tensor) -> Tensor:
    """On a device that has float64."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def _calls_in_order(
    model: nn.Module, names: Sequence[str], batches: Sequence[Inputs], *, every: bool = False
) -> dict[str, int]:
    """How often each layer runs on a batch (the most seen), in the order of the first calls.

    Without `every`, batches behind the one that completes the order are not run.
    """
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
        if len(counts) == len(names) and not every:
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

        # In front of the user's hooks, whose changes are not the layer's own output.
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
        size += sum(tensor.nbytes for tensor in itertools.chain(inputs, *outputs.values()))
        # Sizes are known only after a run, so one batch may go past the limit.
        if size > most_bytes:
            return None
        found.inputs.append(inputs)
        found.outputs.append(outputs)
    return found


@torch.no_grad()
def directions_of(model: nn.Module, name: str, decision: Replaced, flat: Sequence[Inputs]) -> Array:
    """What a layer gets on flat inputs; see `tuning.flat.directions`.

    Raises:
        OptionError: If that is no constant.
    """
    running = copy_model(model).eval()
    # A layer that does not run on flat inputs leaves the list below empty.
    count = _calls_in_order(running, [name], flat, every=True).get(name, 1)
    inputs = [x for batch in flat for x, _ in _calls(running, name, batch, count)]
    check_constant(name, inputs, decision.spec.ndim)
    return directions(inputs, decision.spec)


def _input_of(args: Any, kwargs: Any) -> Tensor:
    tensor: Tensor = args[0] if args else kwargs["input"]
    return tensor


def _calls(model: nn.Module, name: str, batch: Inputs, count: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and outputs of the first `count` calls of a layer; the run ends with the last one."""
    calls: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        calls.append((_input_of(args, kwargs), output))
        if len(calls) == count:
            # Nothing behind the last call is of interest.
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
