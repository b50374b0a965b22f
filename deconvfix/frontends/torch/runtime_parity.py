"""ONNX Runtime against torch, over a grid of shapes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deconvfix.errors import DeconvfixError, ExportError
from deconvfix.frontends.torch.compare import compare_tensors, rounding_scale, varies
from deconvfix.frontends.torch.inputs import (
    Inputs,
    as_inputs,
    copy_model,
    dtype_name,
    flat_tensors,
    map_tensors,
    run_model,
)
from deconvfix.frontends.torch.modes import perturbed_outputs
from deconvfix.parity.bounds import RUNTIME_FACTOR, Comparison, ParityReport, summarize
from deconvfix.parity.runtime import open_session, run_named

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["compare_with_torch", "feed_of", "run_session", "verify_onnx"]


def verify_onnx(model: nn.Module, path: Path, example_inputs: Any) -> ParityReport:
    """Holds an ONNX file in ONNX Runtime against a torch model in eval mode.

    Raises:
        ExportError: If ONNX Runtime does not load or run the file.
    """
    model = copy_model(model).cpu().eval()
    inputs = map_tensors(Tensor.cpu, as_inputs(example_inputs))
    session = open_session(str(path))
    _check_names(session, model, inputs)
    return compare_with_torch(model, session, inputs, [])[0]


def run_session(session: onnxruntime.InferenceSession, inputs: Inputs) -> list[Tensor]:
    """Runs a file on the tensors of torch inputs, in order.

    Raises:
        ExportError: If the numbers of inputs differ, or ONNX Runtime fails.
    """
    return [torch.as_tensor(each) for each in run_named(session, feed_of(session, inputs))]


def feed_of(session: onnxruntime.InferenceSession, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """The tensors of torch inputs under the names of a file's inputs, in order.

    Raises:
        ExportError: If the numbers of inputs differ, or ONNX Runtime takes no tensors of that dtype.
    """
    names = [each.name for each in session.get_inputs()]
    tensors = flat_tensors(inputs)
    if len(names) != len(tensors):
        raise ExportError(
            "ONNX Runtime",
            f"the file has the inputs {names} and there are {len(tensors)} tensors",
            "each input of the file needs one tensor, and each tensor an input",
            "Give example inputs that are all tensors and all used",
        )
    strange = [dtype_name(each) for each in tensors if each.dtype == torch.bfloat16]
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
    session: onnxruntime.InferenceSession,
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
    comparisons: list[Comparison] = []
    problems: list[str] = []
    notes = list(notes)
    shapes = []
    varied = False
    seen: list[Tensor] | None = None
    for kind, inputs in _grid(example, session):
        try:
            want = flat_tensors(run_model(model, inputs))
        except DeconvfixError:
            if inputs is example:
                raise
            notes.append(f"The model itself does not run on {kind}.")
            continue
        got = run_session(session, inputs)
        shapes.append(tuple(tuple(each.shape) for each in flat_tensors(inputs)))
        if len(got) != len(want):
            problems.append(f"The file has {len(got)} outputs, the model {len(want)} tensors.")
            break
        moved = perturbed_outputs(model, inputs)
        for number, (mine, theirs) in enumerate(zip(got, want, strict=True)):
            name = session.get_outputs()[number].name
            others = [each[number] for each in moved]
            varied = varied or varies(theirs, None if seen is None else seen[number])
            if theirs.is_floating_point():
                rounding = RUNTIME_FACTOR * rounding_scale(theirs, others)
            elif all(torch.equal(theirs, each) for each in others):
                rounding = 0.0
            else:
                notes.append(f"Output {name!r} is a decision that rounding flips on {kind}.")
                continue
            comparisons.append(compare_tensors(name, kind, mine, theirs, rounding))
        seen = seen or want
    if comparisons and not varied:
        problems.append(
            "All outputs are constant, which is no evidence: give other example inputs."
        )
    floats = [dtype_name(each) for each in flat_tensors(example) if each.is_floating_point()]
    dtype = next(iter(floats), "float32")
    report = summarize([], comparisons, dtype, problems, notes)
    return report, tuple(shapes)


def _grid(example: Inputs, session: onnxruntime.InferenceSession) -> Iterator[tuple[str, Inputs]]:
    """The example, noise of its shapes, and further shapes for each dynamic axis of the file."""
    tensors = flat_tensors(example)
    symbols: dict[str, int] = {}
    for each, tensor in zip(session.get_inputs(), tensors, strict=False):
        for name, size in zip(each.shape, tensor.shape, strict=False):
            if isinstance(name, str):
                symbols.setdefault(name, int(size))
    yield "example inputs", example
    yield "seeded noise", _resized(example, session, {})
    seen = set()
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
        if key not in seen:
            seen.add(key)
            words = ", ".join(f"{name}={size}" for name, size in choice.items())
            yield f"seeded noise with {words}", _resized(example, session, choice)


def _resized(
    example: Inputs, session: onnxruntime.InferenceSession, sizes: dict[str, int]
) -> Inputs:
    """Inputs of other sizes: seeded noise of the example's mean and spread, other types repeated."""
    generator = torch.Generator().manual_seed(3)
    declared = iter([each.shape for each in session.get_inputs()])

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


def _check_names(session: onnxruntime.InferenceSession, model: nn.Module, inputs: Inputs) -> None:
    """The file's inputs must be called like forward's arguments, in their order."""
    arguments = list(inspect.signature(model.forward).parameters)
    expected = [*arguments[: len(inputs.args)], *inputs.kwargs]
    names = [each.name for each in session.get_inputs()]
    values = [*inputs.args, *inputs.kwargs.values()]
    if all(isinstance(each, Tensor) for each in values) and names != expected:
        raise ExportError(
            "ONNX Runtime",
            f"the file's inputs are called {names}",
            f"the model's are called {expected}",
            "Verify a file that was exported from this model",
        )
