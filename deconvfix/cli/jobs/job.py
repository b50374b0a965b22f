"""A conversion of a file, the same for every kind: check, read, convert, write, prove what was written.

A kind of file is a module with a `KIND`, and a line in `_KINDS` here.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from deconvfix import __version__
from deconvfix.attempt import Attempt, attempt, finished, rewritten
from deconvfix.cli.bench import Runner
from deconvfix.cli.samples import CalibrationFiles
from deconvfix.cli.source import Source
from deconvfix.conversion import Verify, prove
from deconvfix.diagnose.fidelity import MADE_UP
from deconvfix.diagnose.inspection import Inspection
from deconvfix.errors import CheckpointError, DeconvfixError, OptionError, ParityError
from deconvfix.extras import needs
from deconvfix.files import check_output, note_read, output_folder, write_text
from deconvfix.frontends.base import Frontend
from deconvfix.parity.bounds import ParityReport
from deconvfix.plan import Plan
from deconvfix.report.curves import SamplesCurve, StrengthCurve
from deconvfix.report.report import ConversionReport
from deconvfix.report.tally import tallies_of
from deconvfix.request import Request

if TYPE_CHECKING:
    from deconvfix.runtimes.proof import RuntimeReport

__all__ = [
    "Job",
    "Kind",
    "Opened",
    "ProvesInRuntime",
    "can_share",
    "convert_file",
    "kind_of",
    "metadata_of",
    "needs_architecture",
    "reloaded_error",
    "take_part",
]

# Suffix -> module. Every other file is taken for a checkpoint, which needs code to build its model.
_KINDS = {".onnx": "deconvfix.cli.jobs.onnx", ".pt2": "deconvfix.cli.jobs.program"}
_CHECKPOINT = "deconvfix.cli.jobs.checkpoint"
_LARGEST_RECIPE = 2**26


@dataclass(frozen=True)
class Job:
    """A conversion that the command line asks for.

    Attributes:
        source: The file, and inputs for its model.
        output: The file to write; its suffix chooses the kind. None only for a dry run.
        request: What is to be done. `calibration` and `flat_inputs` may be files, which the kind reads.
        recipe: A recipe to carry out; for a dry run the file to write it to.
        dry_run: Plan only.
        overwrite: Whether existing files may be replaced.
        opset: Of an ONNX file that is exported.
        samples_curve: Report how the outputs come closer with the number of calibration samples.
        curve: Report what other strengths would do.
        others: Further files that the run will write.
        prove: Seconds for each run of a proof in the target's runtime; None: without such a proof.
    """

    source: Source
    output: Path | None
    request: Request
    recipe: Path | None = None
    dry_run: bool = False
    overwrite: bool = False
    opset: int | None = None
    samples_curve: bool = False
    curve: bool = False
    others: tuple[Path, ...] = ()
    prove: float | None = None

    @property
    def exports(self) -> bool:
        """Whether another kind of file is written as ONNX."""
        if self.output is None or self.dry_run:
            return False
        return self.output.suffix == ".onnx" != self.source.path.suffix


@dataclass(frozen=True)
class Opened:
    """A file that was read.

    Attributes:
        frontend: Of its model's kind.
        model: Its model, as the front end takes it.
        example: The example inputs that were named; None without.
        notes: Sentences about the file.
        file: What the kind needs of it to write another one.
    """

    frontend: Frontend
    model: Any
    example: Any | None
    notes: tuple[str, ...] = ()
    file: Any = None


class Kind(Protocol):
    """What the command line needs of a kind of file."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the files that it can be converted into."""
        ...

    def check(self, job: Job) -> None:
        """Raises OptionError for what this kind of file cannot do."""
        ...

    def open(self, job: Job) -> Opened:
        """Reads the file."""
        ...

    def bind(self, opened: Opened, files: CalibrationFiles) -> list[Any]:
        """Calibration files as inputs of the model, batch by batch."""
        ...

    def whole_plan(self, opened: Opened, plan: Plan) -> Plan:
        """The way from the original architecture, where the file was converted before."""
        ...

    def curves(
        self, opened: Opened, request: Request, job: Job
    ) -> tuple[SamplesCurve | None, StrengthCurve | None]:
        """The curves that the job asks for."""
        ...

    def write(self, opened: Opened, tried: Attempt, path: Path) -> Any:
        """Writes what was converted, reads it again, and returns that model.

        Raises:
            ParityError: If what was written does not come back.
        """
        ...

    def verifier(self, opened: Opened, path: Path) -> Verify | None:
        """Compares the files themselves; None: the models, as the front end does."""
        ...

    def export(self, opened: Opened, tried: Attempt, job: Job) -> ParityReport | None:
        """Writes an ONNX file and proves it in ONNX Runtime."""
        ...

    def inspect(self, source: Source, sample_rate: float | None) -> Inspection:
        """Lists the transposed convolutions of a file's model."""
        ...

    def verify(self, source: Source, after: Path) -> ParityReport:
        """Compares a file with the one it was made from."""
        ...

    def runners(self, source: Source, after: Path, threads: int) -> tuple[Runner, Runner]:
        """Two files, ready to run on the same inputs."""
        ...

    def export_file(
        self, source: Source, output: Path, *, opset: int | None, overwrite: bool
    ) -> Any:
        """Exports a file's model as it is to ONNX."""
        ...


@runtime_checkable
class ProvesInRuntime(Protocol):
    """A kind of file that runtimes take."""

    def prove(self, opened: Opened, tried: Attempt, job: Job, path: Path) -> RuntimeReport:
        """Runs a file and the one that it became, at `path`, in the runtime of its target.

        Raises:
            OptionError: If the target has no runtime here, or it is not installed.
            ParityError: If the converted file is not right there; it names the layers that are not.
        """
        ...


def kind_of(path: Path) -> Kind:
    """The kind of a file; nothing else is imported."""
    with needs("torch", str(path)):
        kind: Kind = importlib.import_module(_KINDS.get(path.suffix, _CHECKPOINT)).KIND
    return kind


def needs_architecture(path: Path) -> bool:
    """Whether a file holds weights only, without the model."""
    return path.suffix not in _KINDS


def can_share(path: Path) -> bool:
    """Whether several processes can fit a file's layers together: those of ONNX are fitted without torch."""
    return path.suffix != ".onnx"


def convert_file(job: Job) -> ConversionReport:
    """Converts a file; what is proven is the file that was written.

    Raises:
        DeconvfixError: If a file or an option cannot be used, or the proof fails; nothing is written then.
    """
    # Everything that can be refused is refused before the model is read.
    kind = kind_of(job.source.path)
    kind.check(job)
    prover = kind if isinstance(kind, ProvesInRuntime) else None
    if job.prove is not None:
        _check_provable(job, prover)
    _check_files(job, kind.suffixes)
    opened = kind.open(job)
    request = _bound(kind, opened, job)
    # Only now is it known which files were read: weights outside of the model's file, samples in folders.
    for path in (job.output, job.recipe if job.dry_run else None, *job.others):
        if path is not None:
            check_output(path, overwrite=True)
    if job.dry_run:
        tried = attempt(opened.frontend, opened.model, replace(request, verify=False))
        _write_recipe(kind.whole_plan(opened, tried.plan), job)
        return _with_files(job, opened, tried.report())
    # First: these are what may lack samples, and a distillation takes long.
    samples_curve, curve = kind.curves(opened, request, job)
    tried = attempt(opened.frontend, opened.model, request)
    name = str(job.source.path)
    assert job.output is not None
    if job.exports:
        report = prove(tried, request, name=name)
        tried = replace(tried, after=finished(tried))
        report = replace(report, export=kind.export(opened, tried, job))
    else:
        # Written, read again and proven in a folder beside the output, which gets it only then.
        with output_folder(job.output, overwrite=job.overwrite) as folder:
            path = folder / job.output.name
            if not tried.plan.decisions and _copied(job, opened, path):
                report = replace(tried.report(), notes=(*tried.notes, _NOTHING_FOUND))
            else:
                written = replace(tried, after=finished(tried))
                tried = rewritten(tried, kind.write(opened, written, path))
                report = prove(tried, request, name=name, verify=kind.verifier(opened, path))
                if job.prove is not None and prover is not None:
                    report = replace(report, in_runtime=prover.prove(opened, tried, job, path))
    report = replace(report, samples_curve=samples_curve, curve=curve)
    # --input makes inputs up; real ones come from --inputs, or are the calibration samples.
    made_up = bool(job.source.inputs) and job.request.calibration is None
    if report.fidelity is not None and made_up and MADE_UP not in report.notes:
        report = replace(report, notes=(*report.notes, MADE_UP))
    return _with_files(job, opened, report)


_NOTHING_FOUND = (
    "The file has no transposed convolution: the output is a copy of it, byte for byte."
)


def _copied(job: Job, opened: Opened, path: Path) -> bool:
    """Copies a file in which nothing was found; False where the copy would not be the same model.

    That is one of another kind, or one whose weights lie beside the file, in another folder.
    """
    assert job.output is not None
    source = job.source.path
    elsewhere = source.resolve().parent != job.output.resolve().parent
    if source.suffix != path.suffix or (elsewhere and getattr(opened.file, "external", False)):
        return False
    shutil.copyfile(source, path)
    return True


def take_part(job: Job) -> None:
    """Fits with the other processes of torch.distributed, the first of which verifies and writes.

    The calibration samples of the job are this process's own.
    """
    kind = kind_of(job.source.path)
    opened = kind.open(job)
    request = replace(_bound(kind, opened, job), verify=False)
    attempt(opened.frontend, opened.model, request)


def metadata_of(plan: Plan) -> dict[str, str]:
    """Metadata of an exported ONNX file: what was done to the model."""
    return {"deconvfix.version": __version__, "deconvfix.recipe": plan.to_json()}


def reloaded_error(where: str) -> ParityError:
    """The error for a written file that does not give back what was written."""
    return ParityError(
        where,
        "the written file gives a different value",
        "reading the file must give back what was written",
        "Nothing was written; report this as a bug",
    )


def _bound(kind: Kind, opened: Opened, job: Job) -> Request:
    """The request with files read: calibration samples once, the recipe, example inputs."""
    calibration, flat_inputs = (
        kind.bind(opened, given) if isinstance(given, CalibrationFiles) else given
        for given in (job.request.calibration, job.request.flat_inputs)
    )
    return replace(
        job.request,
        exported=job.exports,
        calibration=calibration,
        flat_inputs=flat_inputs,
        example_inputs=opened.example,
        plan=None if job.dry_run else _read_recipe(job.recipe),
    )


def _check_provable(job: Job, prover: ProvesInRuntime | None) -> None:
    if job.dry_run or prover is None:
        raise OptionError(
            "prove",
            "it is a dry run" if job.dry_run else f"{job.source.path} is no ONNX file",
            "an ONNX file and the one that it becomes are run",
            "Omit --prove, or prove the exported file (deconvfix verify --runtime)",
        )


def _check_files(job: Job, suffixes: tuple[str, ...]) -> None:
    """Checks the files that a conversion writes, before any work is done for them.

    Raises:
        OptionError: If one cannot be written, or its suffix is another.
    """
    if job.dry_run:
        if job.recipe is not None:
            check_output(job.recipe, overwrite=job.overwrite, inputs=job.source.files)
        return
    assert job.output is not None
    if job.output.suffix not in suffixes:
        raise OptionError(
            str(job.output),
            f"the suffix is {job.output.suffix!r}",
            f"a file of this kind is converted into {' or '.join(suffixes)}",
            "Choose the output's kind by its suffix",
        )
    inputs = (*job.source.files, *filter(None, (job.recipe,)))
    check_output(job.output, overwrite=job.overwrite, inputs=inputs)


def _with_files(job: Job, opened: Opened, report: ConversionReport) -> ConversionReport:
    """The report with the names of the files, and what there is to say about them."""
    written = None if job.dry_run else job.output
    both = written is not None and job.source.path.suffix == written.suffix == ".onnx"
    return replace(
        report,
        tallies=tallies_of(job.source.path, written, _sizes(opened)) if both and written else None,
        input=str(job.source.path),
        output=None if job.dry_run else str(job.output),
        notes=(*opened.notes, *report.notes),
    )


def _sizes(opened: Opened) -> Iterator[dict[str, tuple[int, ...]]]:
    """Of the inputs of an ONNX model: those that were given, else those that it is run with."""
    from deconvfix.frontends.onnx.inputs import make_feeds

    given = opened.example
    with contextlib.suppress(DeconvfixError):  # inputs that none can be made up for
        for feed in make_feeds(opened.model) if given is None else [given]:
            yield {name: array.shape for name, array in feed.items()}


def _read_recipe(path: Path | None) -> Plan | None:
    if path is None:
        return None
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_RECIPE:
            raise OSError("it is not a regular file, or larger than any recipe")
        note_read(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            str(path),
            f"it cannot be read ({error})",
            "a recipe is needed",
            "Write one with --dry-run --recipe FILE",
        ) from error
    return Plan.from_json(text)


def _write_recipe(plan: Plan, job: Job) -> None:
    if job.recipe is not None:
        write_text(job.recipe, plan.to_json(), overwrite=job.overwrite)
