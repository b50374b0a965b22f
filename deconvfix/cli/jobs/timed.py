"""`bench` for every kind of file: in this process, or in a runtime."""

from __future__ import annotations

from pathlib import Path

from deconvfix.cli.bench import BenchReport, bench
from deconvfix.cli.jobs.job import kind_of
from deconvfix.cli.options import BenchOptions
from deconvfix.cli.source import Source

__all__ = ["time_files"]


def time_files(source: Source, after: Path, options: BenchOptions, limit: float) -> BenchReport:
    """Times a file and another one in turns, in a runtime (ONNX files) if the options name one.

    Args:
        source: The original, and its inputs.
        after: The other file.
        options: Of the command.
        limit: Seconds that one run in a runtime may take.

    Raises:
        DeconvfixError: If a file or an option cannot be used, or a file does not run.
    """
    if options.runtime is None:
        pair = kind_of(source.path).runners(source, after, options.threads)
        return bench(*pair, repeats=options.repeats, threads=options.threads)
    from deconvfix.cli.jobs.onnx import bench_in

    return bench_in(options.runtime, source, after, options, limit)
