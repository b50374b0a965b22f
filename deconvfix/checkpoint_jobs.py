"""What the command line does with checkpoint files, each job as one function."""

from __future__ import annotations

import functools
import importlib
import inspect as python_inspect
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

import deconvfix.checkpoint as checkpoints
from deconvfix.conversion import convert, inspect, versions
from deconvfix.errors import CheckpointError, ModelError, OptionError, ParityError
from deconvfix.files import check_output, output_folder
from deconvfix.frontends.torch_inputs import Inputs
from deconvfix.frontends.torch_parity import compare_modules
from deconvfix.inspection import Inspection
from deconvfix.onnx_export import ExportReport, export_onnx
from deconvfix.onnx_verify import verify_onnx
from deconvfix.parity import ParityReport
from deconvfix.plan import Plan
from deconvfix.report import ConversionReport

__all__ = [
    "Source",
    "convert_file",
    "export_file",
    "inspect_file",
    "parse_arch_kwargs",
    "verify_files",
]

# Example inputs that the command line makes up: 4 GiB in float32.
_MOST_ELEMENTS = 2**30


@dataclass(frozen=True)
class Source:
    """A checkpoint, its architecture, and inputs for it, as named on the command line.

    Attributes:
        path: The checkpoint.
        arch: "module:callable" that builds the model.
        arch_kwargs: Keyword arguments for it.
        state_key: Where the state dict is in the file.
        inputs: "NAME=1x3x64x64" or "NAME=1x77:int64" for each input.
        inputs_file: A .npz file with an array for each input.
        dynamic: "NAME=0,2,3": axes that may change.
    """

    path: Path
    arch: str
    arch_kwargs: dict[str, Any]
    state_key: str | None = None
    inputs: tuple[str, ...] = ()
    inputs_file: Path | None = None
    dynamic: tuple[str, ...] = ()

    @functools.cached_property
    def checkpoint(self) -> checkpoints.Checkpoint:
        """The file, read as data."""
        return checkpoints.read(self.path, self.state_key)

    def architecture(self) -> nn.Module:
        """A new instance of the architecture, in eval mode."""
        return _build(self.arch, self.arch_kwargs).eval()

    def model(self, *, wide: bool = False) -> tuple[nn.Module, tuple[str, ...]]:
        """The model with its weights (converted, if the checkpoint is), and notes about the file.

        Args:
            wide: Make it float64 if the file is, so that no digit is lost.
        """
        checkpoint = self.checkpoint
        model = self.architecture()
        if wide and any(each.dtype == torch.float64 for each in checkpoint.state.values()):
            model = model.double()
        if checkpoint.recipe is not None:
            note = f"The checkpoint was converted before ({checkpoint.recipe.to})."
            return checkpoints.load(self.path, model, state_key=self.state_key), (note,)
        unused = checkpoints.load_state(model, checkpoint)
        notes = []
        if checkpoint.state_key:
            notes.append(f"The weights are those under {checkpoint.state_key!r}.")
        if checkpoint.left_out:
            notes.append(f"Left out of the checkpoint: {', '.join(checkpoint.left_out)}.")
        if unused:
            notes.append(f"Not in the architecture, left out: {', '.join(unused[:8])}.")
        return model, tuple(notes)

    def example_inputs(self, model: nn.Module) -> Inputs | None:
        """Inputs by the names of forward's arguments; None if none were described."""
        named = {**_described(self.inputs), **_stored(self.inputs_file)}
        if not named:
            return None
        floats = {each.dtype for each in model.parameters() if each.is_floating_point()}
        if floats == {torch.float64}:
            named = {n: x.double() if x.is_floating_point() else x for n, x in named.items()}
        return _bind(model, named)

    def dynamic_shapes(self) -> dict[str, dict[int, str]] | None:
        """For torch.onnx.export: axis 0 is called "batch", the others NAME_axis."""
        return _dynamic(self.dynamic, self.inputs, self.inputs_file) if self.dynamic else None


def inspect_file(source: Source) -> Inspection:
    """Lists the transposed convolutions of a checkpoint's model."""
    model, notes = source.model()
    found = inspect(model, source.example_inputs(model))
    return Inspection(found.layers, (*notes, *found.notes))


def convert_file(
    source: Source,
    output: Path | None,
    *,
    recipe: Path | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    opset: int | None = None,
    **options: Any,
) -> ConversionReport:
    """Converts a checkpoint into a checkpoint or an ONNX file.

    Args:
        source: The checkpoint.
        output: .safetensors, .pt, .pth, .ckpt or .onnx; None only for a dry run.
        recipe: A recipe to carry out; with `dry_run` the file to write it to.
        dry_run: Plan only.
        overwrite: Whether existing files may be replaced.
        opset: Of an ONNX output.
        options: As for `deconvfix.convert`.
    """
    inputs = (source.path, *filter(None, (source.inputs_file,)))
    if output is not None and not dry_run:
        if output.suffix not in (*checkpoints.SUFFIXES, ".onnx"):
            raise OptionError(
                str(output),
                f"the suffix is {output.suffix!r}",
                f"one of {', '.join((*checkpoints.SUFFIXES, '.onnx'))} is needed",
                "Choose the output's kind by its suffix",
            )
        check_output(output, overwrite=overwrite, inputs=(*inputs, *filter(None, (recipe,))))
    if recipe is not None and dry_run:
        check_output(recipe, overwrite=overwrite, inputs=inputs)
    plan = None
    if recipe is not None and not dry_run:
        plan = Plan.from_json(_read_text(recipe))
    onnx = output is not None and output.suffix == ".onnx"
    model, notes = source.model(wide=not onnx)
    example = source.example_inputs(model)
    if onnx and example is None and not dry_run:
        raise OptionError(
            "input",
            "no example inputs are given",
            "the export to ONNX runs the model",
            "Describe each input, for example --input x=1x3x64x64",
        )
    conversion = convert(model, example_inputs=example, plan=plan, verify=not dry_run, **options)
    whole_plan = conversion.plan.after(source.checkpoint.recipe)
    report = replace(
        conversion.report, input=str(source.path), notes=(*notes, *conversion.report.notes)
    )
    if dry_run:
        if recipe is not None:
            with output_folder(recipe, overwrite=overwrite) as folder:
                text = whole_plan.to_json()
                (folder / recipe.name).write_text(text, encoding="utf-8")
        return report
    assert output is not None
    if onnx:
        exported = export_onnx(
            conversion.model,
            output,
            example,
            dynamic_shapes=source.dynamic_shapes(),
            opset=opset,
            overwrite=overwrite,
            metadata={
                "deconvfix.version": versions().get("deconvfix", "unknown"),
                "deconvfix.recipe": whole_plan.to_json(),
            },
        )
        return replace(report, output=str(output), export=exported.parity)
    with output_folder(output, overwrite=overwrite) as folder:
        written = folder / output.name
        before, after = model.state_dict(), conversion.model.state_dict()
        dtypes = checkpoints.stored_dtypes(source.checkpoint, before, after, conversion.plan)
        checkpoints.write(written, conversion.model, whole_plan, source.checkpoint, dtypes)
        _check_reload(written, conversion.model, source, dtypes)
    return replace(report, output=str(output))


def export_file(
    source: Source, output: Path, *, opset: int | None = None, overwrite: bool = False
) -> ExportReport:
    """Exports a checkpoint's model (converted or not) to ONNX."""
    inputs = (source.path, *filter(None, (source.inputs_file,)))
    check_output(output, overwrite=overwrite, inputs=inputs)
    model, _ = source.model()
    example = source.example_inputs(model)
    if example is None:
        raise OptionError(
            "input",
            "no example inputs are given",
            "the export to ONNX runs the model",
            "Describe each input, for example --input x=1x3x64x64",
        )
    return export_onnx(
        model,
        output,
        example,
        dynamic_shapes=source.dynamic_shapes(),
        opset=opset,
        overwrite=overwrite,
    )


def verify_files(before: Source, after: Path) -> ParityReport:
    """Holds a converted checkpoint, or an ONNX file, against the original checkpoint."""
    model, _ = before.model()
    example = before.example_inputs(model)
    if after.suffix == ".onnx":
        if example is None:
            raise OptionError(
                "input",
                "no example inputs are given",
                "an ONNX file is verified by running it",
                "Describe each input, for example --input x=1x3x64x64, or give --inputs FILE.npz",
            )
        return verify_onnx(model, after, example)
    converted, _ = replace(before, path=after, state_key=None).model()
    return compare_modules(model, converted, [] if example is None else [example], None)


def _check_reload(
    path: Path, model: nn.Module, source: Source, dtypes: dict[str, torch.dtype]
) -> None:
    """What was written must come back, bit for bit as far as its dtype goes."""
    architecture = source.architecture()
    if any(each.dtype == torch.float64 for each in model.state_dict().values()):
        architecture = architecture.double()
    again = checkpoints.load(path, architecture).state_dict()
    for name, value in model.state_dict().items():
        stored = value.to(dtypes.get(name, value.dtype)).to(again[name].dtype)
        if not torch.equal(stored.cpu(), again[name].cpu()):
            raise ParityError(
                name,
                "the written checkpoint gives another value",
                "what was written must come back",
                "Nothing was written; report this as a bug",
            )


def _build(arch: str, arch_kwargs: dict[str, Any]) -> nn.Module:
    module_name, _, attribute = arch.partition(":")
    if not module_name or not attribute:
        raise OptionError(
            "arch",
            f"the value is {arch!r}",
            "'module:callable' is needed",
            "Name the Python module and the callable that builds the model",
        )
    # The user's own code lies where the command is run.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        builder: Any = functools.reduce(
            getattr, attribute.split("."), importlib.import_module(module_name)
        )
        model = builder(**arch_kwargs)
    except Exception as error:
        raise ModelError(
            arch,
            f"it does not build ({type(error).__name__}: {error})",
            "a callable that returns the model is needed",
            "Run the command where the module can be imported, and check --arch-kwargs",
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            arch,
            f"it returns a {type(model).__name__}",
            "a torch.nn.Module is needed",
            "Name the callable that builds the model",
        )
    return model


def _described(descriptions: Sequence[str]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    named = {}
    for text in descriptions:
        name, _, rest = text.partition("=")
        sizes, _, dtype_name = rest.partition(":")
        dtype = getattr(torch, dtype_name or "float32", None)
        digits = sizes.split("x") if sizes else []
        if (
            not name
            or not rest
            or not isinstance(dtype, torch.dtype)
            or not all(each.isdecimal() and len(each) < 10 for each in digits)
        ):
            raise OptionError(
                "input",
                f"the value is {text!r}",
                "NAME=1x3x64x64 or NAME=1x77:int64 is needed",
                "Give the name of forward's argument, its shape and, if not float32, its dtype",
            )
        shape = [int(each) for each in digits]
        if math.prod(shape) > _MOST_ELEMENTS:
            raise OptionError(
                "input",
                f"{text!r} has {math.prod(shape):,} elements",
                f"at most {_MOST_ELEMENTS:,} are made up",
                "Describe a smaller input",
            )
        if dtype.is_floating_point or dtype.is_complex:
            named[name] = torch.randn(shape, generator=generator).to(dtype)
        else:
            named[name] = torch.randint(0, 2, shape, generator=generator).to(dtype)
    return named


def _stored(path: Path | None) -> dict[str, Tensor]:
    if path is None:
        return {}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise OptionError(
            str(path),
            f"it cannot be read ({error})",
            "a .npz file with one array for each input is needed",
            "Write it with numpy.savez(path, NAME=array, ...)",
        ) from error


def _bind(model: nn.Module, named: dict[str, Tensor]) -> Inputs:
    """Positional where forward allows it, so that the exported inputs get their names."""
    parameters = python_inspect.signature(model.forward).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    unknown = [name for name in named if name not in parameters and not takes_any]
    if unknown:
        raise OptionError(
            "input",
            f"forward has no argument {', '.join(map(repr, unknown))}",
            f"the names of forward's arguments are needed: {', '.join(parameters)}",
            "Correct the names",
        )
    args = []
    for name, parameter in parameters.items():
        if name not in named or parameter.kind is parameter.KEYWORD_ONLY:
            break
        args.append(named[name])
    positional = list(parameters)[: len(args)]
    return Inputs(tuple(args), {name: x for name, x in named.items() if name not in positional})


def _dynamic(
    dynamic: Sequence[str], inputs: Sequence[str], inputs_file: Path | None
) -> dict[str, dict[int, str]]:
    names = [*(text.partition("=")[0] for text in inputs), *_stored(inputs_file)]
    shapes: dict[str, dict[int, str]] = {name: {} for name in names}
    for text in dynamic:
        name, _, axes = text.partition("=")
        if name not in shapes or not all(each.isdecimal() for each in axes.split(",")):
            raise OptionError(
                "dynamic",
                f"the value is {text!r}",
                f"NAME=0,2,3 with a name of an input is needed ({', '.join(names)})",
                "Correct the value",
            )
        shapes[name] = {
            int(axis): "batch" if axis == "0" else f"{name}_{axis}" for axis in axes.split(",")
        }
    return shapes


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            str(path),
            f"it cannot be read ({error})",
            "a recipe is needed",
            "Write one with --dry-run --recipe FILE",
        ) from error


def parse_arch_kwargs(text: str) -> dict[str, Any]:
    """Reads --arch-kwargs.

    Raises:
        OptionError: If it is not a JSON object.
    """
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise OptionError(
            "arch-kwargs",
            f"the value is {text!r}",
            "a JSON object is needed",
            'Write it like {"width": 64}',
        )
    return value
