"""What the command line does with .pt2 files, the programs of torch.export."""

from __future__ import annotations

import inspect as python_inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from deconvfix.attempt import Attempt
from deconvfix.cli.bench import Runner
from deconvfix.cli.jobs.architecture import BoundFiles, bound_inputs
from deconvfix.cli.jobs.job import Job, Opened, metadata_of, reloaded_error
from deconvfix.cli.jobs.torch_bench import file_runner, module_runner
from deconvfix.cli.samples import CalibrationFiles
from deconvfix.cli.source import Source
from deconvfix.conversion import inspect
from deconvfix.diagnose.inspection import Inspection
from deconvfix.errors import OptionError
from deconvfix.files import check_output
from deconvfix.frontends.program import file as program_file
from deconvfix.frontends.program.frontend import FRONTEND
from deconvfix.frontends.samples import in_batches_of
from deconvfix.frontends.torch.export import ExportReport, export_onnx
from deconvfix.frontends.torch.inputs import Inputs, as_inputs, equal
from deconvfix.frontends.torch.runtime_parity import verify_onnx
from deconvfix.parity.bounds import ParityReport
from deconvfix.plan import Plan
from deconvfix.request import Request

__all__ = ["KIND", "ProgramKind"]


class ProgramKind:
    """A program in, a program or an ONNX file out."""

    suffixes = (program_file.SUFFIX, ".onnx")

    def check(self, job: Job) -> None:
        """There is no module to measure a curve on."""
        if job.samples_curve:
            raise OptionError(
                "samples-curve",
                f"{job.source.path} holds no torch module",
                "a checkpoint and the code of its model are needed",
                "Omit it, or measure it on the checkpoint that the file comes from",
            )

    def open(self, job: Job) -> Opened:
        """The program, and inputs for it that were named."""
        program = _read(job.source)
        return Opened(FRONTEND, program, _example(job.source, program), file=job.source)

    def bind(self, opened: Opened, files: CalibrationFiles) -> list[Any]:
        """In batches of the program's own size."""
        program: ExportedProgram = opened.model
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
        return list(BoundFiles(batches, module))

    def whole_plan(self, opened: Opened, plan: Plan) -> Plan:
        """A program holds the whole model, converted or not."""
        return plan

    def curves(self, opened: Opened, request: Request, job: Job) -> tuple[None, None]:
        """None: see `check`."""
        return None, None

    def write(self, opened: Opened, tried: Attempt, path: Path) -> ExportedProgram:
        """The state must come back bit for bit."""
        program_file.write(tried.after, path)
        # The copy is our own; what was trusted before may be in it.
        again = program_file.read(path, trust=opened.file.trust)
        for name, value in tried.after.state_dict.items():
            if name not in again.state_dict or not equal(value, again.state_dict[name]):
                raise reloaded_error(name)
        return again

    def verifier(self, opened: Opened, path: Path) -> None:
        """The programs are compared as they were read."""

    def export(self, opened: Opened, tried: Attempt, job: Job) -> ParityReport | None:
        """By torch's exporter, proven in ONNX Runtime."""
        assert job.output is not None
        return export_onnx(
            tried.after,
            job.output,
            opened.example,
            opset=job.opset,
            overwrite=job.overwrite,
            metadata=metadata_of(tried.plan),
        ).parity

    def inspect(self, source: Source, sample_rate: float | None) -> Inspection:
        """Lists the transposed convolutions of a program."""
        program = _read(source)
        return inspect(program, _example(source, program), sample_rate=sample_rate)

    def verify(self, source: Source, after: Path) -> ParityReport:
        """Compares a program, or an ONNX file, with the program that it was made from."""
        program = _read(source)
        example = _example(source, program)
        if after.suffix == ".onnx":
            return verify_onnx(program.module(), after, example or program.example_inputs)
        converted = program_file.read(after, trust=source.trust)
        return FRONTEND.verify(program, converted, [] if example is None else [example], None)

    def runners(self, source: Source, after: Path, threads: int) -> tuple[Runner, Runner]:
        """A program, and another one or an ONNX file, ready to run on the same inputs."""
        program = _read(source)
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

    def export_file(
        self, source: Source, output: Path, *, opset: int | None, overwrite: bool
    ) -> ExportReport:
        """Exports a program (converted or not) to ONNX."""
        check_output(output, overwrite=overwrite, inputs=source.files)
        program = _read(source)
        example = _example(source, program)
        return export_onnx(program, output, example, opset=opset, overwrite=overwrite)


KIND = ProgramKind()


def _read(source: Source) -> ExportedProgram:
    return program_file.read(source.path, trust=source.trust)


def _input_shapes(program: ExportedProgram) -> list[tuple[int | None, ...]]:
    """Of its inputs that are tensors, None for each axis that is dynamic."""
    inputs = program.graph_signature.user_inputs
    values = [
        node.meta.get("val")
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in inputs
    ]
    return [
        tuple(n if isinstance(n, int) else None for n in value.shape)
        for value in values
        if isinstance(value, Tensor)
    ]


def _example(source: Source, program: ExportedProgram) -> Inputs | None:
    state = [value for value in program.state_dict.values() if isinstance(value, Tensor)]
    return bound_inputs(source, program.module(), state)
