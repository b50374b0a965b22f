"""torch -> ONNX, and the proof that ONNX Runtime computes the same. Opsets are chosen here alone."""

from __future__ import annotations

import functools
import inspect
import io
import itertools
import logging
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import nn
from torch.export import ExportedProgram

from deconvfix.errors import ExportError, ModelError, OptionError
from deconvfix.files import check_output, output_folder, sha256
from deconvfix.frontends.data_file import save_with_data
from deconvfix.frontends.torch.folded import with_own_folds
from deconvfix.frontends.torch.inputs import (
    Inputs,
    as_inputs,
    copy_model,
    map_tensors,
    quiet_loggers,
)
from deconvfix.frontends.torch.runtime_parity import compare_with_torch
from deconvfix.parity.bounds import ParityReport
from deconvfix.parity.runtime import Session, open_session

__all__ = ["OLDEST_OPSET", "ExportReport", "export_onnx", "newest_opset"]

# torch.onnx.export(dynamo=True) writes this opset itself, and converts to newer ones.
OLDEST_OPSET = 18
# The newest that onnxscript's converter reaches; past it, it leaves the file as it is.
_NEWEST_CONVERTED = 25
# From 2.9 on models are captured with torch.export, before it traced: 2.6 fails on batch normalisation.
_CAPTURES = torch.__version__ >= "2.9"  # versions are compared, not letters
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
    model: nn.Module | ExportedProgram,
    path: str | os.PathLike[str],
    example_inputs: Any | None = None,
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
    """Exports a model to ONNX in eval mode and compares ONNX Runtime with torch.

    Args:
        model: The model, or an exported program; it is not changed.
        path: The ONNX file to write; it appears only after the verification.
        example_inputs: A tuple of positional inputs, or a pair (args tuple, kwargs dict). An exported
            program has its own, which are the default.
        dynamic_shapes: Which axes may change, with a name for each: {"x": {0: "batch", 2: "height"}}
            by the names of forward's arguments (anything that torch.onnx.export takes). An exported
            program brings its own.
        opset: 18 or newer; by default 18, which runtimes of years ago read as well.
        input_names: Names in the file; by default those of forward's arguments.
        output_names: Names in the file.
        external_data: Whether weights go into a file beside it; by default only above 2 GB.
        overwrite: Whether an existing file may be replaced.
        verify: Whether ONNX Runtime runs the file.
        metadata: Further entries for the file's metadata_props.

    Raises:
        ExportError: If torch cannot export the model, or ONNX Runtime does not agree with torch.
        ModelError: If the model is of another kind, does not accept the inputs, or has none.
        OptionError: If an option cannot be met.
    """
    path = Path(path)
    _check_options(model, path, opset, dynamic_shapes, overwrite)
    inputs = _contiguous_inputs(model, example_inputs)
    # The file is compared with `reference`; a program has its mode from the export.
    if isinstance(model, ExportedProgram):
        reference: nn.Module = copy_model(model.module()).cpu()
    else:
        reference = model = copy_model(model).cpu().eval()
    with output_folder(path, overwrite=overwrite) as folder:
        written = folder / path.name
        ir_model, session, notes = _first_that_runs(
            functools.partial(
                _export,
                model,
                inputs,
                dynamic_shapes=dynamic_shapes,
                input_names=input_names,
                output_names=output_names,
            ),
            (opset,) if opset is not None else (OLDEST_OPSET, newest_opset()),
            functools.partial(
                _save,
                path=written,
                external_data=external_data,
                metadata={"deconvfix.torch": torch.__version__, **(metadata or {})},
            ),
            (lambda: open_session(str(written))) if verify else (lambda: None),
        )
        _check(written)
        parity: ParityReport | None = None
        shapes: tuple[tuple[tuple[int, ...], ...], ...] = ()
        if session is not None:
            parity, shapes = compare_with_torch(reference, session, inputs, notes)
            _check_parity(parity, path)
        return ExportReport(
            path=str(path),
            opset=int(ir_model.opset_imports[""]),
            sha256=sha256(written),
            operators=_operators(ir_model),
            parity=parity,
            shapes=shapes,
        )


def _check_options(
    model: object, path: Path, opset: int | None, dynamic_shapes: object, overwrite: bool
) -> None:
    """Raises before any work is done, if an option of `export_onnx` cannot be met."""
    if not isinstance(model, nn.Module | ExportedProgram):
        raise ModelError(
            "model",
            f"it is a {type(model).__name__}",
            "a torch.nn.Module or ExportedProgram is exported",
            "Give the model itself",
        )
    if path.suffix != ".onnx":
        raise OptionError(
            str(path),
            f"the suffix is {path.suffix!r}",
            "an ONNX file ends in .onnx",
            "Correct the output's name",
        )
    check_output(path, overwrite=overwrite)
    if opset is not None and opset < OLDEST_OPSET:
        raise OptionError(
            "opset",
            f"the value is {opset}",
            f"{OLDEST_OPSET} or newer is needed",
            "Use a newer opset",
        )
    if isinstance(model, ExportedProgram) and dynamic_shapes is not None:
        raise OptionError(
            "dynamic_shapes",
            "an exported program is given with it",
            "its dynamic axes are those that it was exported with",
            "Omit the option, or export the program again with these axes",
        )


def _contiguous_inputs(model: nn.Module | ExportedProgram, example_inputs: Any | None) -> Inputs:
    """The example inputs, or a program's own: torch.export would put the strides of a view into the graph."""
    if example_inputs is None and isinstance(model, ExportedProgram):
        example_inputs = model.example_inputs
    if example_inputs is None:
        raise ModelError(
            type(model).__name__,
            "there are no example inputs",
            "the export and its proof run the model",
            "Give example inputs",
        )
    contiguous: Inputs = map_tensors(
        lambda tensor: tensor.cpu().contiguous(), as_inputs(example_inputs)
    )
    return contiguous


def _check_parity(parity: ParityReport, path: Path) -> None:
    if not parity.ok:
        raise ExportError(
            str(path),
            " ".join(parity.problems).rstrip("."),
            "ONNX Runtime must agree with torch up to rounding",
            "Try another opset; the file was not written",
        )


def _first_that_runs(
    export: Callable[[int], ir.Model],
    opsets: Sequence[int],
    save: Callable[[ir.Model], None],
    load: Callable[[], Session | None],
) -> tuple[ir.Model, Session | None, list[str]]:
    """Exports, saves and loads with the first opset for which all of that works.

    Returns:
        The model, its session, and a sentence for each opset that did not work.
    """
    notes: list[str] = []
    # The oldest opset is read by most. A newer one is the way out where a model cannot be written in it.
    failure: ExportError | None = None
    for version in opsets:
        ir_model = export(version)
        try:
            # The version converter may leave the model at the opset that it was captured with.
            if ir_model.opset_imports.get("") != version:
                raise ExportError(
                    "opset",
                    f"the exporter cannot write this model with opset {version}",
                    "another opset is needed",
                    f"Use opset {OLDEST_OPSET}",
                )
            save(ir_model)
            return ir_model, load(), notes
        except ExportError as error:
            failure = error
            notes.append(f"Opset {version} does not work for this model: {error.found}.")
    assert failure is not None
    raise failure


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            "onnx.checker",
            f"it rejects the file ({error})",
            "a valid ONNX file is needed",
            "Try another opset",
        ) from error


@functools.cache
def newest_opset() -> int:
    """The newest opset that the exporter writes and the installed ONNX Runtime loads."""
    newest = min(_NEWEST_CONVERTED, onnx.defs.onnx_opset_version())
    # A runtime may know fewer opsets than the onnx package: a tiny model shows it.
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


def _export(
    model: nn.Module | ExportedProgram,
    inputs: Inputs,
    opset: int,
    *,
    dynamic_shapes: Any | None,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> ir.Model:
    model = with_own_folds(model)
    with quiet_loggers("torch.onnx", "torch.export", "onnxscript", level=logging.ERROR):
        try:
            if not _CAPTURES:
                if isinstance(model, ExportedProgram):
                    raise _needs_capture(model, "it is a program")
                arguments = _traceable(model, inputs, dynamic_shapes)
                names = dict(zip(arguments, input_names or arguments, strict=True))
                return _traced(model, inputs, opset, names, dynamic_shapes or {}, output_names)
            # The copy keeps the exporter's attribute changes away from the next attempt.
            program = torch.onnx.export(
                copy_model(model) if isinstance(model, nn.Module) else model,
                inputs.args,
                kwargs=inputs.kwargs or None,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes,
                input_names=input_names,
                output_names=output_names,
                verbose=False,
            )
        except ExportError:
            raise
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            # A line that names a class says what torch.export cannot capture.
            detail = next((line for line in lines if "class '" in line), lines[0] if lines else "")
            raise ExportError(
                type(model).__name__,
                f"torch.onnx.export fails ({type(error).__name__}: {detail[:300]})",
                "a model that torch.export can capture is needed",
                "See the exception this one was raised from",
            ) from error
    assert program is not None
    captured: ir.Model = program.model
    return captured


def _traceable(model: nn.Module, inputs: Inputs, dynamic_shapes: Any | None) -> list[str]:
    """The names of forward's arguments, one for each input.

    Raises:
        ExportError: If they are not known, or the dynamic axes are given in another way than by them.
    """
    values = (*inputs.args, *inputs.kwargs.values())
    signature = inspect.signature(model.forward)
    names = [*signature.bind(*inputs.args, **inputs.kwargs).arguments]
    if any(signature.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in names):
        raise _needs_capture(model, "forward has arguments that are given by name alone")
    axes = {} if dynamic_shapes is None else dynamic_shapes
    if not isinstance(axes, dict) or not all(isinstance(sizes, dict) for sizes in axes.values()):
        raise _needs_capture(model, "the dynamic axes are not given by names of inputs")
    if not all(isinstance(value, torch.Tensor) for value in values) or len(names) != len(values):
        raise _needs_capture(model, "there is an input that is no tensor, or has no name")
    return names


def _needs_capture(model: object, found: str) -> ExportError:
    return ExportError(
        type(model).__name__,
        f"{found}, and torch {torch.__version__} is installed",
        "torch 2.9 or newer exports it",
        "Install a newer torch",
    )


def _traced(
    model: nn.Module,
    inputs: Inputs,
    opset: int,
    names: dict[str, str],
    dynamic_shapes: dict[str, dict[int, Any]],
    output_names: Sequence[str] | None,
) -> ir.Model:
    """What torch before 2.9 writes, which runs the model once; `names`: argument -> input of the file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.onnx.export(
            copy_model(model),
            (*inputs.args, dict(inputs.kwargs)),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=opset,
            dynamic_axes={
                names[argument]: {
                    axis: getattr(size, "__name__", str(size)) for axis, size in sizes.items()
                }
                for argument, sizes in dynamic_shapes.items()
            },
            input_names=list(names.values()),
            output_names=output_names,
        )
    # Of sizes the proof tells, over a grid of them. Of values the other branch would be missing.
    if any(re.search("to a Python (boolean|float|number)", str(said.message)) for said in told):
        raise _needs_capture(model, "what it computes depends on the values of its inputs")
    return ir.from_proto(onnx.load_from_string(buffer.getvalue()))


def _save(
    model: ir.Model, *, path: Path, external_data: bool | None, metadata: dict[str, str]
) -> None:
    model.metadata_props.update(metadata)
    size = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    # Below the limit one file is simpler to move. Above it protobuf cannot hold the model.
    if external_data or (external_data is None and size > _EXTERNAL_ABOVE):
        save_with_data(model, path)
    else:
        ir.save(model, path)


def _operators(model: ir.Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    # Functions hold nodes of their own, which the main graph does not list.
    nodes = itertools.chain(
        model.graph.all_nodes(), *(f.all_nodes() for f in model.functions.values())
    )
    for node in nodes:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))
