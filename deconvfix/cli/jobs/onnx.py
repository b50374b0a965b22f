"""What the command line does with ONNX files. Nothing here imports torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from deconvfix.attempt import Attempt
from deconvfix.cli.bench import BenchReport, Runner, checked, report_of, session_runner
from deconvfix.cli.jobs.job import Job, Opened
from deconvfix.cli.options import BenchOptions
from deconvfix.cli.samples import CalibrationFiles
from deconvfix.cli.source import Source
from deconvfix.conversion import Verify, inspect
from deconvfix.diagnose.inspection import Inspection
from deconvfix.errors import ExportError, OptionError, ParityError
from deconvfix.frontends.onnx import file as onnx_file
from deconvfix.frontends.onnx.frontend import FRONTEND
from deconvfix.frontends.onnx.inputs import Feed, as_feed, shapes_of
from deconvfix.frontends.onnx.parity import compare_models, first_that_runs
from deconvfix.frontends.onnx.samples import rebatched
from deconvfix.parity.bounds import ParityReport
from deconvfix.parity.runtime import open_session, rejected_by_checker
from deconvfix.plan import Plan
from deconvfix.request import Request
from deconvfix.runtimes.base import shapes_in
from deconvfix.runtimes.departures import departures
from deconvfix.runtimes.proof import RuntimeReport, prove_in
from deconvfix.runtimes.registry import runtime_of
from deconvfix.runtimes.timing import time_in, title_of

__all__ = ["KIND", "OnnxKind", "bench_in", "verify_in"]

# For all timed runs in a runtime together.
_SECONDS = 60.0


class OnnxKind:
    """ONNX in, ONNX out."""

    suffixes = (".onnx",)

    def check(self, job: Job) -> None:
        """The opset stays, and there is no module to measure a curve on."""
        if job.opset is not None:
            raise OptionError(
                "opset",
                f"the value is {job.opset}",
                "an ONNX file keeps its own",
                "Omit --opset, or convert the file first (onnx.version_converter)",
            )
        if job.samples_curve:
            raise OptionError(
                "samples-curve",
                f"{job.source.path} holds no torch module",
                "a checkpoint and the code of its model are needed",
                "Omit it, or measure it on the checkpoint that the file comes from",
            )

    def open(self, job: Job) -> Opened:
        """The file with its external data in reach."""
        file = onnx_file.read(job.source.path)
        examples = _examples(job.source, file.model)
        return Opened(FRONTEND, file.model, examples[0] if examples else None, file=file)

    def bind(self, opened: Opened, files: CalibrationFiles) -> list[Any]:
        """In batches of the file's own size, in the dtypes of its inputs."""
        inputs = shapes_of(opened.model)
        if not files.names:
            files = replace(files, names=tuple(declared.name for declared in inputs))
        if files.shape is None and len(inputs) == 1:
            files = replace(files, shape=_sample_shape(inputs[0].shape))
        return list(rebatched(opened.model, files))

    def whole_plan(self, opened: Opened, plan: Plan) -> Plan:
        """An ONNX file holds the whole model, converted or not."""
        return plan

    def curves(self, opened: Opened, request: Request, job: Job) -> tuple[None, None]:
        """None: see `check`."""
        return None, None

    def write(self, opened: Opened, tried: Attempt, path: Path) -> ir.Model:
        """The file as it was, where nothing is replaced; it must pass the checks that the original passes."""
        if tried.plan.changed or opened.file.external:
            onnx_file.write(path, opened.file, tried.after)
        else:
            shutil.copyfile(opened.file.path, path)
        _check(opened.file.path, path)
        return onnx_file.read(path).model

    def verifier(self, opened: Opened, path: Path) -> Verify:
        """ONNX Runtime opens the files themselves, so that large ones need not fit into memory."""
        return partial(compare_models, paths=(opened.file.path, path))

    def prove(self, opened: Opened, tried: Attempt, job: Job, path: Path) -> RuntimeReport:
        """In the runtime of the target; see `runtimes.departures` for what is said of single layers.

        Where the function changes on purpose, the converted file is compared with itself in ONNX Runtime.
        """
        assert job.prove is not None
        runtime, plan, seconds = runtime_of(tried.plan.target), tried.plan, job.prove
        exact = all(decision.exact for decision in plan.decisions)
        # Read anew, as surgery has changed the one that was opened.
        before = onnx_file.read(opened.file.path)
        examples = [] if opened.example is None else [opened.example]
        report = prove_in(runtime, before.path if exact else path, path, examples, seconds)
        if not report.ok:
            departed = departures(runtime, before.model, plan, opened.example, seconds)
            raise ParityError(
                str(job.output),
                " ".join((report.verdict(), report.after.words, *departed)).rstrip("."),
                "the converted file must be right in the runtime of its target",
                "Nothing was written; exclude these layers, or choose another writing",
            )
        return report

    def export(self, opened: Opened, tried: Attempt, job: Job) -> NoReturn:
        """An ONNX file needs no export."""
        raise AssertionError("an ONNX file is written, not exported")

    def inspect(self, source: Source, sample_rate: float | None) -> Inspection:
        """Lists the ConvTranspose nodes of an ONNX file."""
        model = onnx_file.read(source.path).model
        examples = _examples(source, model)
        return inspect(model, examples[0] if examples else None, sample_rate=sample_rate)

    def verify(self, source: Source, after: Path) -> ParityReport:
        """Compares an ONNX file with the one it was made from."""
        _check_kind(after)
        before = onnx_file.read(source.path).model
        converted = onnx_file.read(after).model
        examples = _examples(source, before)
        return compare_models(before, converted, examples, None, (source.path, after))

    def runners(self, source: Source, after: Path, threads: int) -> tuple[Runner, Runner]:
        """An ONNX file and another one, ready to run on the same inputs."""
        _check_kind(after)
        before, _ = onnx_file.read(source.path).model, onnx_file.read(after)
        sessions = [open_session(str(path), threads=threads) for path in (source.path, after)]
        feed = _timed_on(source, before, sessions[0])
        return session_runner(sessions[0], feed), session_runner(sessions[1], feed)

    def export_file(
        self, source: Source, output: Path, *, opset: int | None, overwrite: bool
    ) -> NoReturn:
        """An ONNX file needs no export.

        Raises:
            OptionError: Always.
        """
        raise OptionError(
            str(source.path),
            "it is an ONNX file already",
            "a checkpoint or a .pt2 file is exported",
            "Use `deconvfix convert` to replace its transposed convolutions",
        )


KIND = OnnxKind()


def verify_in(runtime: str, source: Source, after: Path, seconds: float) -> RuntimeReport:
    """Runs an ONNX file and the one that it was made from in a runtime; see `runtimes.proof.prove_in`."""
    _check_kind(after)
    examples = _examples(source, onnx_file.read(source.path).model)
    return prove_in(runtime, source.path, after, examples, seconds)


def bench_in(
    runtime: str, source: Source, after: Path, options: BenchOptions, limit: float
) -> BenchReport:
    """Times an ONNX file and another one in a runtime; see `runtimes.timing.time_in`.

    Args:
        runtime: Its name.
        source: The original, and its inputs.
        after: The other file.
        options: Of the command.
        limit: Seconds that loading a file, or one sample, may take.

    Raises:
        OptionError: If the runtime is not installed, or no inputs can be made up.
        ExportError: If one of the files does not run there.
    """
    _check_kind(after)
    repeats = checked(options.repeats, least=1)
    before = onnx_file.read(source.path).model
    feed = _timed_on(source, before, open_session(str(source.path)))
    title = title_of(runtime)
    pair = (source.path, after)
    timed = time_in(
        runtime, pair, feed,
        threads=options.threads, seconds=_SECONDS, repeats=repeats, limit=limit,
    )  # fmt: skip
    for path, one in zip(pair, timed, strict=True):
        if one.words:
            raise ExportError(
                title,
                f"{path}: {one.words}",
                "both files must run to be timed",
                "See what it makes of them: deconvfix verify --runtime",
            )
    old, new = (1e3 * one.times for one in timed)
    return report_of((title, title), (old, new), shapes_in(feed), options.threads)


def _timed_on(source: Source, model: ir.Model, session: Any) -> Feed:
    """The inputs that files are timed on: those that were named, or made-up ones."""
    notes: list[str] = []
    feeds = [as_feed(model, example) for example in _examples(source, model)]
    feed = feeds[0] if feeds else first_that_runs(model, session, notes)
    if feed is None:
        raise OptionError(
            "inputs",
            "; ".join(notes),
            "the files are timed by running them",
            "Give inputs (--inputs FILE.npz or --input NAME=SHAPE)",
        )
    return feed


def _sample_shape(shape: Sequence[int | str] | None) -> tuple[int, ...] | None:
    """What a picture or a sound is cut to, where the file says it."""
    if not shape:
        return None
    sizes = tuple(n for n in shape[1:] if isinstance(n, int))
    return (1, *sizes) if len(sizes) == len(shape) - 1 else None


def _check_kind(after: Path) -> None:
    if after.suffix != ".onnx":
        raise OptionError(
            str(after),
            f"the suffix is {after.suffix!r}",
            "an ONNX file is compared with an ONNX file",
            "Name two files of one kind, or the checkpoint that an ONNX file comes from",
        )


def _examples(source: Source, model: ir.Model) -> list[dict[str, Any]]:
    """The inputs that were named, in the dtypes of the file's own inputs."""
    dtypes = {value.name: value.dtype for value in model.graph.inputs}
    feed = source.stored()
    for number, described in enumerate(source.described()):
        declared = dtypes.get(described.name)
        own = declared.numpy() if declared is not None else np.dtype(np.float32)
        dtype = own if described.dtype == "float32" else _dtype(described.dtype)
        feed[described.name] = described.values(number).astype(dtype)
    return [feed] if feed else []


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError as error:
        raise OptionError(
            "input",
            f"NumPy has no dtype {name!r}",
            "NAME=1x3x64x64 or NAME=1x77:int64 is needed",
            "Correct the dtype, or omit it",
        ) from error


def _check(before: Path, after: Path) -> None:
    """The converted file must pass the checks that the original passes."""
    for full in (False, True):
        if rejected_by_checker(before, full=full) is not None:
            return  # ONNX Runtime runs files that onnx.checker rejects
        reason = rejected_by_checker(after, full=full)
        if reason is not None:
            raise ExportError(
                "onnx.checker",
                f"it rejects the converted file ({reason})",
                "a file that passes before must pass afterwards",
                "Nothing was written; report this as a bug with the layer's geometry",
            )
