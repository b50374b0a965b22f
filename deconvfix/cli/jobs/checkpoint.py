"""What the command line does with checkpoint files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import deconvfix.frontends.torch.checkpoint as checkpoints
from deconvfix.attempt import Attempt
from deconvfix.cli.bench import Runner
from deconvfix.cli.jobs.architecture import BoundFiles, CheckpointSource
from deconvfix.cli.jobs.job import Job, Opened, metadata_of, reloaded_error
from deconvfix.cli.jobs.torch_bench import file_runner, module_runner
from deconvfix.cli.samples import CalibrationFiles
from deconvfix.cli.source import Source
from deconvfix.conversion import inspect
from deconvfix.curves.samples import measure_samples
from deconvfix.curves.strength import strength_curve
from deconvfix.diagnose.inspection import Inspection
from deconvfix.files import check_output
from deconvfix.frontends.torch.export import ExportReport, export_onnx
from deconvfix.frontends.torch.frontend import FRONTEND
from deconvfix.frontends.torch.inputs import equal
from deconvfix.frontends.torch.parity import compare_modules
from deconvfix.frontends.torch.pretrained import CONFIG
from deconvfix.frontends.torch.runtime_parity import verify_onnx
from deconvfix.parity.bounds import ParityReport
from deconvfix.plan import Plan
from deconvfix.report.curves import SamplesCurve, StrengthCurve
from deconvfix.request import Request

__all__ = ["KIND", "CheckpointKind"]

_EXPORT_RUNS = "the export to ONNX runs the model"


class CheckpointKind:
    """A checkpoint in, a checkpoint or an ONNX file out."""

    suffixes = (*checkpoints.SUFFIXES, ".onnx")

    def check(self, job: Job) -> None:
        """Nothing is out of reach: there is a module."""

    def open(self, job: Job) -> Opened:
        """The architecture with the weights of the file, in float64 if they are and stay it."""
        source = CheckpointSource.of(job.source)
        model, notes = source.model(wide=job.output is not None and not job.exports)
        example = source.example_inputs(model)
        if job.exports:
            example = source.required_inputs(model, _EXPORT_RUNS)
        return Opened(FRONTEND, model, example, notes, source)

    def bind(self, opened: Opened, files: CalibrationFiles) -> list[Any]:
        """As arguments of the model."""
        return list(BoundFiles(files, opened.model))

    def whole_plan(self, opened: Opened, plan: Plan) -> Plan:
        """The recipe of the file goes before."""
        source: CheckpointSource = opened.file
        return plan.after(source.checkpoint.recipe)

    def curves(
        self, opened: Opened, request: Request, job: Job
    ) -> tuple[SamplesCurve | None, StrengthCurve | None]:
        """Measured with the fit of the conversion."""
        by_samples = measure_samples(opened.model, request) if job.samples_curve else None
        by_strength = None
        if job.curve:
            assert request.calibration is not None
            by_strength = strength_curve(
                opened.model,
                calibration=request.calibration,
                to=request.to,
                example_inputs=request.example_inputs,
                init=request.init or "fit",
                grow=request.grow,
                reach=request.reach,
                memory=request.memory,
                seed=request.seed,
                include=request.include,
                exclude=request.exclude,
            )
        return by_samples, by_strength

    def write(self, opened: Opened, tried: Attempt, path: Path) -> nn.Module:
        """What was written must come back, bit for bit as far as its dtype goes."""
        source: CheckpointSource = opened.file
        after: nn.Module = tried.after
        state = after.state_dict()
        dtypes = checkpoints.stored_dtypes(
            source.checkpoint, opened.model.state_dict(), state, tried.plan
        )
        plan = self.whole_plan(opened, tried.plan)
        checkpoints.write(path, after, plan, source.checkpoint, dtypes)
        if source.path.is_dir():
            # A folder again, which deconvfix.load reads alone.
            shutil.copyfile(source.path / CONFIG, path.with_name(CONFIG))
        architecture = source.architecture()
        if any(value.dtype == torch.float64 for value in state.values()):
            architecture = architecture.double()
        again = checkpoints.load(path, architecture)
        read = again.state_dict()
        for name, value in state.items():
            stored = value.to(dtypes.get(name, value.dtype)).to(read[name].dtype)
            if not equal(stored.cpu(), read[name].cpu()):
                raise reloaded_error(name)
        return again

    def verifier(self, opened: Opened, path: Path) -> None:
        """The modules are compared, the converted one as it was read."""

    def export(self, opened: Opened, tried: Attempt, job: Job) -> ParityReport | None:
        """By torch's exporter, proven in ONNX Runtime."""
        assert job.output is not None
        return export_onnx(
            tried.after,
            job.output,
            opened.example,
            dynamic_shapes=job.source.dynamic_shapes(),
            opset=job.opset,
            overwrite=job.overwrite,
            metadata=metadata_of(self.whole_plan(opened, tried.plan)),
        ).parity

    def inspect(self, source: Source, sample_rate: float | None) -> Inspection:
        """Lists the transposed convolutions of a checkpoint's model."""
        checkpoint = CheckpointSource.of(source)
        model, notes = checkpoint.model()
        found = inspect(model, checkpoint.example_inputs(model), sample_rate=sample_rate)
        return replace(found, notes=(*notes, *found.notes))

    def verify(self, source: Source, after: Path) -> ParityReport:
        """Compares a converted checkpoint, or an ONNX file, with the original checkpoint."""
        before = CheckpointSource.of(source)
        model, _ = before.model()
        if after.suffix == ".onnx":
            example = before.required_inputs(model, "an ONNX file is verified by running it")
            return verify_onnx(model, after, example)
        inputs = before.example_inputs(model)
        converted = _converted(before, after)
        return compare_modules(model, converted, [] if inputs is None else [inputs], None)

    def runners(self, source: Source, after: Path, threads: int) -> tuple[Runner, Runner]:
        """A checkpoint's model, and a converted one or an ONNX file, ready to run on the same inputs."""
        before = CheckpointSource.of(source)
        model, _ = before.model()
        inputs = before.required_inputs(model, "the files are timed by running them")
        original = module_runner(model.eval(), inputs, threads)
        if after.suffix == ".onnx":
            return original, file_runner(after, inputs, threads)
        return original, module_runner(_converted(before, after).eval(), inputs, threads)

    def export_file(
        self, source: Source, output: Path, *, opset: int | None, overwrite: bool
    ) -> ExportReport:
        """Exports a checkpoint's model (converted or not) to ONNX."""
        checkpoint = CheckpointSource.of(source)
        check_output(output, overwrite=overwrite, inputs=source.files)
        model, _ = checkpoint.model()
        return export_onnx(
            model,
            output,
            checkpoint.required_inputs(model, _EXPORT_RUNS),
            dynamic_shapes=source.dynamic_shapes(),
            opset=opset,
            overwrite=overwrite,
        )


KIND = CheckpointKind()


def _converted(before: CheckpointSource, path: Path) -> nn.Module:
    """The model in a checkpoint that was made of another one."""
    model, _ = replace(before, path=path, state_key=None).model()
    return model
