"""torch -> ONNX, and the proof that ONNX Runtime computes the same. Opsets are chosen here alone."""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from deconvfix.errors import DeconvfixError, ExportError, OptionError
from deconvfix.files import check_output, output_folder, sha256
from deconvfix.frontends.torch_inputs import (
    Inputs,
    as_inputs,
    flat_tensors,
    map_tensors,
    run_model,
)
from deconvfix.frontends.torch_module import copy_model
from deconvfix.frontends.torch_montecarlo import perturbed_outputs
from deconvfix.frontends.torch_parity import compare_tensors, rounding_scale
from deconvfix.parity import Comparison, ParityReport, summarize

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OLDEST_OPSET", "ExportReport", "export_onnx", "newest_opset", "verify_onnx"]

# torch.onnx.export(dynamo=True) writes this opset itself, and converts to newer ones.
OLDEST_OPSET = 18
# The newest that onnxscript's converter reaches; past it, it leaves the file as it is.
_NEWEST_CONVERTED = 25
# Above this many bytes of weights they go into a file of their own: protobuf ends at 2 GiB.
_EXTERNAL_ABOVE = 2**31 - 2**27


@dataclass(frozen=True)
class ExportReport:
    """An exported file and the proof that it computes what the model computes.

    Attributes:
        path: The ONNX file.
        opset: Its version of the ONNX operators.
        sha256: Hash of the file.
        operators: How often each operator occurs.
        parity: ONNX Runtime against torch, over a grid of shapes where axes are dynamic; None if
            it was switched off.
        shapes: The input shapes that were compared.
    """

    path: str
    opset: int
    sha256: str
    operators: dict[str, int]
    parity: ParityReport | None
    shapes: tuple[tuple[tuple[int, ...], ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic_shapes: Any | None = None,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    external_data: bool | None = None,
    overwrite: bool = False,
    verify: bool = True,
    metadata: dict[str, str] | None = None,
) -> ExportReport:
    """Exports a model to ONNX in eval mode and holds ONNX Runtime against torch.

    Args:
        model: The model; it is not changed.
        path: The ONNX file to write; it appears only after the verification.
        example_inputs: A tuple of positional inputs, or a pair (args tuple, kwargs dict).
        dynamic_shapes: Which axes may change, with a name for each: {"x": {0: "batch", 2: "height"}}
            by the names of forward's arguments (anything that torch.onnx.export takes).
        opset: 18 or newer; by default the newest that the installed ONNX Runtime runs.
        input_names: Names in the file; by default those of forward's arguments.
        output_names: Names in the file.
        external_data: Whether weights go into a file beside it; by default only above 2 GB.
        overwrite: Whether an existing file may be replaced.
        verify: Whether ONNX Runtime runs the file.
        metadata: Further entries for the file's metadata_props.

    Raises:
        ExportError: If torch cannot export the model, or ONNX Runtime does not agree with torch.
        OptionError: If an option cannot be met.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    if opset is not None and opset < OLDEST_OPSET:
        raise OptionError(
            "opset",
            f"the value is {opset}",
            f"{OLDEST_OPSET} or newer is needed",
            "Use a newer opset",
        )
    inputs = as_inputs(example_inputs)
    model = copy_model(model).eval()
    wanted = (opset,) if opset is not None else (newest_opset(), OLDEST_OPSET)
    program, notes = None, []
    for version in wanted:
        program = _export(model, inputs, version, dynamic_shapes, input_names, output_names)
        if program.model.opset_imports.get("") == version:
            break
        notes.append(f"This model cannot be written with opset {version}.")
        program = None
    if program is None:
        raise ExportError(
            "opset",
            f"the exporter cannot write this model with opset {wanted[0]}",
            "another opset is needed",
            f"Use opset {OLDEST_OPSET}",
        )
    ir_model: ir.Model = program.model
    ir_model.metadata_props.update({"deconvfix.torch": torch.__version__, **(metadata or {})})
    with output_folder(path) as folder:
        written = folder / path.name
        _save(ir_model, written, external_data)
        onnx.checker.check_model(str(written), full_check=True)
        parity, shapes = None, ()
        if verify:
            parity, shapes = _verify(model, written, inputs, notes)
            if not parity.ok:
                raise ExportError(
                    str(path),
                    " ".join(parity.problems).rstrip("."),
                    "ONNX Runtime must agree with torch up to rounding",
                    "Try another opset; the file was not written",
                )
        report = ExportReport(
            path=str(path),
            opset=int(ir_model.opset_imports[""]),
            sha256=sha256(written),
            operators=_operators(ir_model),
            parity=parity,
            shapes=shapes,
        )
    return report


def verify_onnx(model: nn.Module, path: Path, example_inputs: Any) -> ParityReport:
    """Holds an ONNX file in ONNX Runtime against a torch model in eval mode.

    Raises:
        ExportError: If ONNX Runtime does not load or run the file.
    """
    model = copy_model(model).eval()
    inputs = as_inputs(example_inputs)
    _check_names(open_session(str(path)), model, inputs)
    return _verify(model, path, inputs, [])[0]


def _check_names(
    session: onnxruntime.InferenceSession, model: nn.Module, inputs: Inputs
) -> None:
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


@functools.cache
def newest_opset() -> int:
    """The newest opset that the exporter writes and the installed ONNX Runtime loads."""
    newest = min(_NEWEST_CONVERTED, onnx.defs.onnx_opset_version())
    for opset in range(newest, OLDEST_OPSET, -1):
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        probe = onnx.helper.make_model(
            onnx.helper.make_graph([node], "probe", [value], [result]),
            opset_imports=[onnx.helper.make_opsetid("", opset)],
            ir_version=10,
        )
        try:
            open_session(probe.SerializeToString())
        except ExportError:
            continue
        return opset
    return OLDEST_OPSET


def open_session(model: bytes | str) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU, quiet.

    Raises:
        ExportError: If ONNX Runtime refuses the file.
    """
    # Set before the import: ONNX Runtime writes telemetry files otherwise.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            "ONNX Runtime",
            f"it does not load the file ({error})",
            "the file must run to be verified",
            "Try another opset or dtype, or export without verification",
        ) from error


def run_session(session: onnxruntime.InferenceSession, inputs: Inputs) -> list[Tensor]:
    """Runs a file on the tensors of torch inputs, in order.

    Raises:
        ExportError: If the numbers of inputs differ, or ONNX Runtime fails.
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
    feed = {name: tensor.detach().numpy() for name, tensor in zip(names, tensors, strict=True)}
    try:
        return [torch.as_tensor(each) for each in session.run(None, feed)]
    except Exception as error:
        shapes = {name: each.shape for name, each in feed.items()}
        raise ExportError(
            "ONNX Runtime",
            f"it fails on inputs of shapes {shapes} ({error})",
            "the file must run wherever the model runs",
            "Make only those axes dynamic that the model allows",
        ) from error


def _export(
    model: nn.Module,
    inputs: Inputs,
    opset: int,
    dynamic_shapes: Any | None,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> torch.onnx.ONNXProgram:
    with _quiet():
        try:
            # The copy keeps the exporter's attribute changes away from the next attempt.
            program = torch.onnx.export(
                copy_model(model),
                inputs.args,
                kwargs=inputs.kwargs or None,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes,
                input_names=input_names,
                output_names=output_names,
                verbose=False,
            )
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            detail = next((line for line in lines if "class '" in line), lines[0] if lines else "")
            raise ExportError(
                type(model).__name__,
                f"torch.onnx.export fails ({type(error).__name__}: {detail[:300]})",
                "a model that torch.export can capture is needed",
                "See the exception this one was raised from",
            ) from error
    assert program is not None
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own internals; what matters here comes as an error."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in loggers:
            each.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)


def _save(model: ir.Model, path: Path, external_data: bool | None) -> None:
    size = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    if external_data or (external_data is None and size > _EXTERNAL_ABOVE):
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.save(model, path)


def _operators(model: ir.Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    nodes = itertools.chain(model.graph.all_nodes(), *(f.all_nodes() for f in model.functions.values()))
    for node in nodes:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))


def _verify(
    model: nn.Module, path: Path, example: Inputs, notes: list[str]
) -> tuple[ParityReport, tuple[tuple[tuple[int, ...], ...], ...]]:
    session = open_session(str(path))
    comparisons: list[Comparison] = []
    problems: list[str] = []
    notes = list(notes)
    shapes = []
    varied = False
    for kind, inputs in _grid(example, session):
        try:
            want = flat_tensors(run_model(model, inputs))
        except DeconvfixError:
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
            varied = varied or (theirs.numel() > 1 and bool((theirs != theirs.flatten()[0]).any()))
            if theirs.is_floating_point():
                rounding = rounding_scale(theirs, others)
            elif all(torch.equal(theirs, each) for each in others):
                rounding = 0.0
            else:
                notes.append(f"Output {name!r} is a decision that rounding flips on {kind}.")
                continue
            comparisons.append(compare_tensors(name, kind, mine, theirs, rounding))
    if comparisons and not varied:
        problems.append("All outputs are constant, which is no evidence: give other example inputs.")
    dtype = next((str(t.dtype) for t in flat_tensors(example) if t.is_floating_point()), "float32")
    report = summarize([], comparisons, dtype.removeprefix("torch."), problems, notes)
    return report, tuple(shapes)


def _grid(
    example: Inputs, session: onnxruntime.InferenceSession
) -> Iterator[tuple[str, Inputs]]:
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
