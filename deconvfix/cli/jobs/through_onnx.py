"""Checkpoints and programs for a target: the model is exported as it is, and its ONNX file converted."""

from __future__ import annotations

from dataclasses import replace

from deconvfix.cli.jobs.job import Job, convert_file, kind_of
from deconvfix.errors import OptionError
from deconvfix.files import scratch_folder
from deconvfix.forms import AUTO, DECONV
from deconvfix.report.report import ConversionReport
from deconvfix.targets.profile import profile_named

__all__ = ["convert_through_onnx", "needs_onnx"]

_EXPORTED_OPSET = 18


def needs_onnx(job: Job) -> bool:
    """Whether what is asked for can be had in ONNX files alone, and one is to be written."""
    asked = job.request
    written = (
        asked.target or asked.shuffle or asked.convolution == "phases" or asked.to in (AUTO, DECONV)
    )
    return job.exports and bool(written)


def convert_through_onnx(job: Job) -> ConversionReport:
    """Exports the model, proves the export, and converts the file that it is then.

    Raises:
        OptionError: If the layers are to change their function: these are fitted in the model.
        DeconvfixError: As `convert_file`.
    """
    if not job.request.form.is_exact:
        raise OptionError(
            "target",
            f"the form is {job.request.to!r}, and the model is no ONNX file",
            "the form subpixel is written for a target; others are fitted in the model first",
            "Convert into a checkpoint or program first, and then that one with --to subpixel and --target",
        )
    target = job.request.target
    newest = None if target is None else profile_named(target).opset
    opset = job.opset or min(_EXPORTED_OPSET, newest or _EXPORTED_OPSET)
    with scratch_folder() as folder:
        exported = folder / "exported.onnx"
        report = kind_of(job.source.path).export_file(
            job.source, exported, opset=opset, overwrite=False
        )
        source = replace(job.source, path=exported, arch=None, state_key=None, dynamic=())
        converted = convert_file(replace(job, source=source, opset=None))
    note = f"The model was exported as it is (opset {opset}), and that file was converted."
    return replace(
        converted,
        input=str(job.source.path),
        export=report.parity,
        notes=(*converted.notes, note),
    )
