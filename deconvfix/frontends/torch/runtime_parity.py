"""Parity of an ONNX file in ONNX Runtime with a torch model, over a grid of shapes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from deconvfix.errors import ExportError
from deconvfix.frontends.torch.first_run import first_run, is_long
from deconvfix.frontends.torch.inputs import (
    Inputs,
    as_inputs,
    as_outputs,
    copy_model,
    dtype_name,
    flat_tensors,
    map_tensors,
    run_model,
)
from deconvfix.parity.bounds import RUNTIME_FACTOR, ParityReport, summarize
from deconvfix.parity.outputs import Case, Output, Patience, Rules, compare_outputs
from deconvfix.parity.runtime import Session, open_session, run_named

__all__ = ["compare_with_torch", "feed_of", "perturbed_outputs", "verify_onnx"]

_RULES = Rules(
    constant="All outputs are constant, which is no evidence: give other example inputs.",
    other_number="The file has {actual} outputs, the model {expected} tensors.",
    flipped="Output {output} is a decision that rounding flips on {case}.",
    rounding_factor=RUNTIME_FACTOR,
)


def verify_onnx(model: nn.Module, path: Path, example_inputs: Any) -> ParityReport:
    """Compares an ONNX file in ONNX Runtime with a torch model in eval mode.

    Raises:
        ExportError: If ONNX Runtime does not load or run the file.
    """
    model = copy_model(model).cpu().eval()
    inputs = map_tensors(Tensor.cpu, as_inputs(example_inputs))
    session = open_session(str(path))
    _check_names(session, model, inputs)
    return compare_with_torch(model, session, inputs, [])[0]


def feed_of(session: Session, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """The tensors of torch inputs under the names of a file's inputs, in order.

    Raises:
        ExportError: If the numbers of inputs differ, or ONNX Runtime takes no tensors of that dtype.
    """
    names = [value.name for value in session.get_inputs()]
    tensors = flat_tensors(inputs)
    if len(names) != len(tensors):
        raise ExportError(
            "ONNX Runtime",
            f"the file has the inputs {names} and there are {len(tensors)} tensors",
            "each input of the file needs one tensor, and each tensor an input",
            "Give example inputs that are all tensors and all used",
        )
    strange = [dtype_name(tensor) for tensor in tensors if tensor.dtype == torch.bfloat16]
    if strange:
        raise ExportError(
            "ONNX Runtime",
            f"it takes no {strange[0]} inputs from Python",
            "the file must run to be verified",
            "Export without verification (verify=False)",
        )
    return {name: tensor.detach().numpy() for name, tensor in zip(names, tensors, strict=True)}


def compare_with_torch(
    model: nn.Module,
    session: Session,
    example: Inputs,
    notes: Sequence[str],
) -> tuple[ParityReport, tuple[tuple[tuple[int, ...], ...], ...]]:
    """Runs file and model on a grid of inputs.

    Args:
        model: In eval mode; it is run as it is.
        session: The file.
        example: Example inputs; where the file has dynamic axes, other sizes are tried too.
        notes: Sentences that the report begins with.

    Returns:
        The report, and for each case the shapes of the inputs.
    """
    run = first_run(model, example)
    rules, notes = _RULES, list(notes)
    cases = [Case(words, inputs, given=True) for words, inputs in _grid(example, session)]
    cases[0] = replace(cases[0], expected=as_outputs(run.outputs))
    if is_long(run, model):
        rules = replace(_RULES, patience=Patience(frugal=True))
        # Other sizes are other cases; other values of one size are not worth a run.
        cases = [case for case in cases if case.words != "seeded noise"]
        notes.append(
            "Each run is long: torch and ONNX Runtime ran once on each size of the inputs."
        )
    found = compare_outputs(_FileAndModel(model, session, tuple(cases), rules))
    tensors = flat_tensors(example)
    floats = [dtype_name(tensor) for tensor in tensors if tensor.is_floating_point()]
    dtype = next(iter(floats), "float32")
    report = summarize([], found.comparisons, dtype, found.problems, [*notes, *found.notes])
    shapes = tuple(
        tuple(tuple(tensor.shape) for tensor in flat_tensors(case.inputs)) for case in found.cases
    )
    return report, shapes


@dataclass(frozen=True)
class _FileAndModel:
    """`parity.outputs.Pair` for a torch model and its file, in which every operation rounds differently."""

    model: nn.Module
    session: Session
    cases: tuple[Case, ...]
    rules: Rules = _RULES
    modes: tuple[str, ...] = ("",)

    def original(self, inputs: Inputs, mode: str) -> list[Output]:
        return as_outputs(flat_tensors(run_model(self.model, inputs)))

    def converted(self, inputs: Inputs, mode: str) -> list[Output]:
        arrays = run_named(self.session, feed_of(self.session, inputs))
        return [Output.of(array) for array in arrays]

    def disturbed(self, inputs: Inputs) -> list[list[Output]]:
        return [as_outputs(tensors) for tensors in perturbed_outputs(self.model, inputs)]

    def name(self, index: int) -> str:
        return str(self.session.get_outputs()[index].name)

    def does_not_run_on(self, cases: Sequence[str]) -> list[str]:
        return [f"The model itself does not run on: {'; '.join(cases)}."]


def _grid(example: Inputs, session: Session) -> Iterator[tuple[str, Inputs]]:
    """The example, noise of its shapes, and further shapes for each dynamic axis of the file."""
    tensors = flat_tensors(example)
    symbols: dict[str, int] = {}
    for value, tensor in zip(session.get_inputs(), tensors, strict=False):
        for name, size in zip(value.shape, tensor.shape, strict=False):
            if isinstance(name, str):
                symbols.setdefault(name, int(size))
    yield "example inputs", example
    yield "seeded noise", _resized(example, session, {})
    tried = set()
    choices = [
        {name: size}
        for name, base in symbols.items()
        for size in (1, base + 1, 2 * base, base + 8)
        if size != base
    ]
    if len(symbols) > 1:
        choices.append({name: 2 * base for name, base in symbols.items()})
        choices.append({name: base + 1 for name, base in symbols.items()})
    for choice in choices:
        key = tuple(sorted(choice.items()))
        if key not in tried:
            tried.add(key)
            words = ", ".join(f"{name}={size}" for name, size in choice.items())
            yield f"seeded noise with {words}", _resized(example, session, choice)


def _resized(example: Inputs, session: Session, sizes: dict[str, int]) -> Inputs:
    """Inputs of other sizes: seeded noise of the example's mean and spread, other types repeated."""
    generator = torch.Generator().manual_seed(3)
    declared = iter([value.shape for value in session.get_inputs()])

    def resize(tensor: Tensor) -> Tensor:
        names = next(declared, ())
        for axis, name in enumerate(names[: tensor.dim()]):
            if isinstance(name, str) and name in sizes:
                index = torch.arange(sizes[name]) % tensor.shape[axis]
                tensor = tensor.index_select(axis, index)
        if not tensor.is_floating_point() or tensor.numel() == 0:
            return tensor
        spread = float(tensor.float().std(correction=0)) or 1.0
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return (noise * spread + float(tensor.float().mean())).to(tensor.dtype)

    return Inputs(*map_tensors(resize, tuple(example)))


def _check_names(session: Session, model: nn.Module, inputs: Inputs) -> None:
    """The file's inputs must be called like forward's arguments, in their order."""
    arguments = list(inspect.signature(model.forward).parameters)
    expected = [*arguments[: len(inputs.args)], *inputs.kwargs]
    names = [value.name for value in session.get_inputs()]
    values = [*inputs.args, *inputs.kwargs.values()]
    if all(isinstance(value, Tensor) for value in values) and names != expected:
        raise ExportError(
            "ONNX Runtime",
            f"the file's inputs are called {names}",
            f"the model's are called {expected}",
            "Verify a file that was exported from this model",
        )


class _MonteCarlo(TorchDispatchMode):
    """Moves the operands and the results of each operation by one eps of their dtype, at random."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        views = any(
            argument.alias_info is not None for argument in (*schema.arguments, *schema.returns)
        )
        real = any(
            isinstance(leaf, Tensor) and leaf.is_floating_point()
            for leaf in pytree.tree_leaves((args, kwargs))
        )
        if views or schema.is_mutable or not real:
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map_only(Tensor, self._moved, (args, kwargs))
        return pytree.tree_map_only(Tensor, self._moved, func(*args, **kwargs))

    def _moved(self, tensor: Tensor) -> Tensor:
        # Single numbers are often sizes: moving them would change what the model does.
        if not tensor.is_floating_point() or tensor.dim() == 0:
            return tensor
        eps = torch.finfo(tensor.dtype).eps
        noise = torch.randn(tensor.shape, generator=self.generator, dtype=torch.float32)
        return tensor + tensor * (eps * noise).to(tensor.dtype)


def perturbed_outputs(model: nn.Module, inputs: Inputs, runs: int = 3) -> list[list[Tensor]]:
    """The outputs of some runs under Monte Carlo arithmetic.

    The model should be in eval mode; it is run as it is.
    """
    results = []
    for seed in range(runs):
        with _MonteCarlo(seed):
            results.append(flat_tensors(run_model(model, inputs)))
    return results
