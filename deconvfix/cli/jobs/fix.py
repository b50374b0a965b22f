"""Fixing a file: read, searched, and written only if there is something better to write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from deconvfix.attempt import Attempt
from deconvfix.cli.jobs.job import Job, kind_of
from deconvfix.cli.options import FixOptions
from deconvfix.cli.samples import CalibrationFiles, calibration_files
from deconvfix.cli.source import Source
from deconvfix.errors import OptionError
from deconvfix.files import check_output, output_folder
from deconvfix.fixing.fix import fix
from deconvfix.fixing.report import FixReport
from deconvfix.request import Request

__all__ = ["fix_file"]


def fix_file(source: Source, options: FixOptions) -> FixReport:
    """Writes the fixed model, if there is one.

    Raises:
        DeconvfixError: If a file or an option cannot be used; nothing is written then.
    """
    assert options.output is not None
    assert options.data is not None
    output = options.output
    data = _files(source, options.data, options)
    targets = None if options.targets is None else _files(source, options.targets, options)
    kind = kind_of(source.path)
    suffixes = tuple(
        suffix for suffix in kind.suffixes if suffix != ".onnx" or source.path.suffix == ".onnx"
    )
    if output.suffix not in suffixes:
        raise OptionError(
            str(output),
            f"the suffix is {output.suffix!r}",
            f"a file of this kind is fixed into {' or '.join(suffixes)}",
            "Export the fixed file afterwards (deconvfix export)",
        )
    check_output(output, overwrite=options.force, inputs=source.files)
    opened = kind.open(Job(source, output, Request()))
    batches: Any = data
    if isinstance(data, CalibrationFiles):
        batches = kind.bind(opened, data)
    true = None
    if isinstance(targets, CalibrationFiles):
        true = [_only(batch) for batch in targets]
    # Only now is it known which files were read.
    check_output(output, overwrite=True)
    found = fix(
        opened.model,
        data=batches,
        targets=true,
        example_inputs=opened.example,
        seconds=options.seconds,
        max_cost=options.max_cost,
        seed=options.seed,
        sample_rate=options.sample_rate,
    )
    report = replace(found.report, notes=(*opened.notes, *found.report.notes))
    if not report.fixed:
        return report
    tried = Attempt(opened.frontend, None, found.model, found.plan, (), {}, None, (), None, ())
    with output_folder(output, overwrite=options.force) as folder:
        kind.write(opened, tried, folder / output.name)
    return report


def _files(source: Source, path: str, options: FixOptions) -> CalibrationFiles | str:
    return calibration_files(source, path, samples=options.samples, value_range=options.value_range)


def _only(batch: Any) -> np.ndarray[Any, Any]:
    """The only array of a batch."""
    if len(batch) != 1:
        raise OptionError(
            "targets",
            f"there are {len(batch)} arrays",
            "the true outputs are one array, of the first output",
            "Give a .npy file, or a .npz file with one array",
        )
    [array] = batch.values()
    return np.asarray(array)
