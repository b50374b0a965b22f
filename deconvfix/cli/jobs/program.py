"""What the command line does with .pt2 files, the programs of torch.export."""

from __future__ import annotations

import inspect as python_inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from deconvfix.cli.bench import Runner
from deconvfix.cli.jobs.architecture import BoundFiles, bound_inputs
from deconvfix.cli.jobs.job import (
    check_files,
    fits_no_samples,
    read_recipe,
    reloaded_error,
    told_in_onnx,
    told_of,
    write_recipe,
)
from deconvfix.cli.jobs.torch_bench import file_runner, module_runner
from deconvfix.cli.samples import CalibrationFiles
from deconvfix.cli.source import Source
from deconvfix.conversion import convert, inspect
from deconvfix.conversion import verify as verify_models
from deconvfix.diagnose.inspection import Inspection
from deconvfix.errors import OptionError
from deconvfix.files import check_output, output_folder
from deconvfix.frontends.program import file as program_file
from deconvfix.frontends.samples import in_batches_of
from deconvfix.frontends.torch.compare import equal
from deconvfix.frontends.torch.export import ExportReport, export_onnx
from deconvfix.frontends.torch.inputs import Inputs, as_inputs, flat_tensors, run_model
from deconvfix.frontends.torch.runtime_parity import verify_onnx
from deconvfix.parity.bounds import ParityReport
from deconvfix.report.report import ConversionReport

__all__ = ["convert_file", "export_file", "inspect_file", "runners", "take_part", "verify_files"]


def inspect_file(source: Source, *, sample_rate: float | None = None) -> Inspection:
    """Lists the transposed convolutions of a program."""
    program = program_file.read(source.path, trust=source.trust)
    return inspect(program, _example(source, program), sample_rate=sample_rate)


def convert_file(
    source: Source,
    output: Path | None,
    *,
    recipe: Path | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    opset: int | None = None,
    pictures: bool = False,
    samples_curve: bool = False,
    **options: Any,
) -> ConversionReport:
    """Converts a program into a program or an ONNX file.

    Args:
        source: The file, and inputs for it; by default those that it was exported with.
        output: .pt2 or .onnx; None only for a dry run.
        recipe: A recipe to carry out; with `dry_run` the file to write it to.
        dry_run: Plan only.
        overwrite: Whether existing files may be replaced.
        opset: Of an ONNX output.
        pictures: Gather what an HTML report draws.
        samples_curve: Not for files whose layers cannot be fitted to samples.
        options: As for `deconvfix.convert`.
    """
    if samples_curve:
        raise fits_no_samples(source.path)
    suffixes = (program_file.SUFFIX, ".onnx")
    check_files(source, output, recipe, suffixes, dry_run=dry_run, overwrite=overwrite)
    if dry_run:
        program = program_file.read(source.path, trust=source.trust)
        options = _bound(options, program)
        example = _example(source, program)
        conversion = convert(program, example_inputs=example, verify=False, **options)
        write_recipe(conversion.plan, recipe, overwrite)
        return told_of(source, conversion, (), None)
    assert output is not None
    program = program_file.read(source.path, trust=source.trust)
    example = _example(source, program)
    options = _bound(options, program)
    plan = read_recipe(recipe)
    conversion = convert(program, example_inputs=example, plan=plan, pictures=pictures, **options)
    report = told_of(source, conversion, (), output)
    if output.suffix == ".onnx":
        exported = export_onnx(
            conversion.model,
            output,
            example,
            opset=opset,
            overwrite=overwrite,
            metadata=told_in_onnx(conversion.plan),
        )
        return replace(report, export=exported.parity)
    with output_folder(output, overwrite=overwrite) as folder:
        written = folder / output.name
        program_file.write(conversion.model, written)
        # The copy is our own; what was trusted before may be in it.
        again = program_file.read(written, trust=source.trust)
        _check_reload(conversion.model, again, example or conversion.model.example_inputs)
    return report


def take_part(source: Source, output: Path, *, recipe: Path | None = None, **options: Any) -> None:
    """Fits with the other processes of torch.distributed, the first of which verifies and writes.

    Args:
        source: As for `convert_file`, like what follows.
        output: Likewise; nothing is written.
        recipe: Likewise.
        options: Likewise; the calibration samples are this process's own.
    """
    program = program_file.read(source.path, trust=source.trust)
    convert(
        program,
        example_inputs=_example(source, program),
        plan=read_recipe(recipe),
        verify=False,
        **_bound(options, program),
    )


def export_file(
    source: Source, output: Path, *, opset: int | None = None, overwrite: bool = False
) -> ExportReport:
    """Exports a program (converted or not) to ONNX."""
    check_output(output, overwrite=overwrite, inputs=source.files)
    program = program_file.read(source.path, trust=source.trust)
    example = _example(source, program)
    return export_onnx(program, output, example, opset=opset, overwrite=overwrite)


def verify_files(source: Source, after: Path) -> ParityReport:
    """Holds a program, or an ONNX file, against the program that it comes from."""
    program = program_file.read(source.path, trust=source.trust)
    example = _example(source, program)
    if after.suffix == ".onnx":
        return verify_onnx(program.module(), after, example or program.example_inputs)
    converted = program_file.read(after, trust=source.trust)
    return verify_models(program, converted, [] if example is None else [example])


def runners(source: Source, after: Path, threads: int) -> tuple[Runner, Runner]:
    """A program, and another one or an ONNX file, ready to run on the same inputs."""
    program = program_file.read(source.path, trust=source.trust)
    example = _example(source, program) or program.example_inputs
    if example is None:
        raise OptionError(
            "input",
            "no example inputs are given, and the program holds none",
            "the files are timed by running them",
            "Describe each input, for example --input x=1x3x64x64, or give --inputs FILE.npz",
        )
    inputs = as_inputs(example)
    before = module_runner(program.module(), inputs, threads)
    if after.suffix == ".onnx":
        return before, file_runner(after, inputs, threads)
    converted = program_file.read(after, trust=source.trust)
    return before, module_runner(converted.module(), inputs, threads)


def _check_reload(written: ExportedProgram, again: ExportedProgram, example: Any | None) -> None:
    """What was written must come back, bit for bit: the state, and the outputs."""
    for name, value in written.state_dict.items():
        if name not in again.state_dict or not equal(value, again.state_dict[name]):
            raise reloaded_error(name)
    if example is not None:
        wanted, got = (
            flat_tensors(run_model(each.module(), as_inputs(example))) for each in (written, again)
        )
        if len(wanted) != len(got) or not all(map(equal, wanted, got)):
            raise reloaded_error("outputs")


def _bound(options: dict[str, Any], program: ExportedProgram) -> dict[str, Any]:
    """The options with calibration files read, once, in batches of the program's own size."""
    files = options.get("calibration")
    if not isinstance(files, CalibrationFiles):
        return options
    module = program.module()
    names = tuple(python_inspect.signature(module.forward).parameters)
    shapes = _input_shapes(program)
    if not files.names:
        files = replace(files, names=names)
    if files.shape is None and len(names) == len(shapes) == 1:
        sizes = tuple(n for n in shapes[0][1:] if n is not None)
        whole = len(sizes) == len(shapes[0]) - 1
        files = replace(files, shape=(1, *sizes) if whole else None)
    first = {shape[0] for shape in shapes if shape}
    size = first.pop() if len(first) == 1 else None
    batches = files if size is None else in_batches_of(size, files)
    return {**options, "calibration": list(BoundFiles(batches, module))}


def _input_shapes(program: ExportedProgram) -> list[tuple[int | None, ...]]:
    """Of its inputs that are tensors, None for each axis that is dynamic."""
    inputs = program.graph_signature.user_inputs
    values = [
        node.meta.get("val")
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in inputs
    ]
    return [
        tuple(n if isinstance(n, int) else None for n in each.shape)
        for each in values
        if isinstance(each, Tensor)
    ]


def _example(source: Source, program: ExportedProgram) -> Inputs | None:
    state = [each for each in program.state_dict.values() if isinstance(each, Tensor)]
    return bound_inputs(source, program.module(), state)
