"""How far conversions without a checkerboard move trained networks, against what people do by hand.

    python benchmarks/fidelity.py [--fixtures digits_generator] [--rows '*calibrated*'] [--seconds 60]

For each of the trained networks in `fixtures/` a table: how close the converted network's outputs are to the
original's on the held-out file (whole outputs, border included; PSNR, for sound SNR), the fixture's own
metric against the ground truth (before -> after), the visible grid on them (see
docs/fix.md; likewise), the ripple of the network's answer to a constant input
(likewise), the time of the conversion, and the multiply-accumulates of the converted layers, relative to
those before. For calibrated rows "passes" is the time of the calibration without its solvers, over that of
one pass of the original and the converted network over the calibration inputs. Those are never held-out ones.
"""

from __future__ import annotations

import fnmatch
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import click
import torch
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deconvfix
from benchmarks import by_hand, cases, measures
from benchmarks.cases import Case
from deconvfix.report.report import versions

TUNED_SAMPLES = 512
FIX_SAMPLES = 256
GROWTH = (4, 16, 64, 256)
GROWTH_ROW = "equalized, calibrated"
# Of sounds alone: their silence is an input of its own.
SILENT = "equalized --flat zeros"


@dataclass(frozen=True)
class Row:
    """A way to convert a network.

    Attributes:
        name: As the table shows it.
        options: Of `deconvfix.convert`; empty where it is done by hand.
        build: Makes a layer by hand.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    build: Callable[[Any], nn.Module] | None = None

    @property
    def init(self) -> str:
        """Where the weights are from."""
        return str(self.options.get("init", ""))

    @property
    def in_place(self) -> bool:
        """Whether no layer takes the place of another, and no kernel grows."""
        corrects = self.options.get("to") == "equalized" and not self.options.get("grow")
        return corrects or "seconds" in self.options


def _row(name: str, to: str, init: str, **options: Any) -> Row:
    return Row(name, {"to": to, "init": init, **options})


ROWS = (
    _row("resize nearest, random weights", "resize", "random"),
    Row("sub-pixel, one kernel for all phases (ICNR)", build=by_hand.shared_kernel),
    Row("bilinear upsampling, then the trained kernel", build=by_hand.bilinear_then_kernel),
    _row("resize nearest, fit to the weights", "resize", "fit"),
    _row("equalized, fit to the weights", "equalized", "fit"),
    _row("notch, no data", "notch", "fit"),
    _row("resize linear, calibrated", "resize", "calibrated", interpolation="linear"),
    _row("equalized, calibrated", "equalized", "calibrated"),
    _row("equalized --grow 1, calibrated", "equalized", "calibrated", grow=1),
    _row("notch, calibrated", "notch", "calibrated"),
    _row("notch --grow 1, calibrated", "notch", "calibrated", grow=1),
    _row("notch --grow 2, calibrated", "notch", "calibrated", grow=2),
    _row("equalized --grow 1, tuned", "equalized", "tuned", grow=1),
    _row("notch --grow 1, tuned", "notch", "tuned", grow=1),
    Row("deconvfix fix", {"seconds": True}),
    _row(f"{SILENT}, calibrated", "equalized", "calibrated", flat_inputs="zeros"),
    _row(f"{SILENT}, tuned", "equalized", "tuned", flat_inputs="zeros"),
)


@dataclass(frozen=True)
class Result:
    """A row of the table.

    Attributes:
        row: Its name.
        distance_db: PSNR, for sound SNR; None where the outputs are equal.
        quality: The fixture's metric.
        ripple_db: Of the answer to a constant input; None where it was not found.
        visible: The visible grid on the held-out file, and that of the worst patches, in steps of 1/255;
            None where the outputs are too small.
        seconds: Of the conversion.
        macs: Of the converted layers, over those of the original layers.
        pass_seconds: One pass of both networks over the calibration inputs; calibrated rows only.
        calibrate_seconds: Inside the calibration.
        solve_seconds: Of these, inside the solvers.
    """

    row: str
    distance_db: float | None
    quality: float
    ripple_db: float | None
    visible: tuple[float, float] | None
    seconds: float
    macs: float
    pass_seconds: float | None = None
    calibrate_seconds: float | None = None
    solve_seconds: float | None = None

    @property
    def passes(self) -> float | None:
        """The calibration without the solvers, in passes of both networks over the same inputs."""
        if not self.calibrate_seconds or self.pass_seconds is None:
            return None
        return (self.calibrate_seconds - (self.solve_seconds or 0.0)) / self.pass_seconds


@dataclass(frozen=True)
class CaseResult:
    """The tables of one network; `growth` has (samples, distance) of the row `GROWTH_ROW`."""

    name: str
    metric: str
    unit: str
    layers: tuple[str, ...]
    quality: float
    ripple_db: float | None
    visible: tuple[float, float] | None
    rows: tuple[Result, ...]
    growth: tuple[tuple[int, float | None], ...]


def converted(case: Case, row: Row, samples: int, seconds: float) -> nn.Module:
    """The network of a case, converted. Where its inputs have a known distribution, tuning draws new ones."""
    if row.build is not None:
        return by_hand.replaced(case.model, case.layers, row.build)
    if "seconds" in row.options:
        model = deconvfix.fix(case.model, data=case.draw(FIX_SAMPLES), seconds=seconds).model
        return cast(nn.Module, model)
    options = dict(row.options)
    # Shuffles are found by a run.
    options["example_inputs"] = case.draw(1)[0]
    if row.init in ("calibrated", "tuned"):
        options["calibration"] = case.draw(samples)
        # The batch that outputs are tried on has to be larger than a sample.
        options["example_inputs"] = options["calibration"][0]
    if row.init == "tuned":
        options["tuning"] = deconvfix.Tuning(seconds=seconds)
        if case.distribution is not None:
            options["calibration"] = case.distribution
    conversion = deconvfix.convert(case.model, exclude=case.others, verify=False, **options)
    return cast(nn.Module, conversion.model)


def measured(
    case: Case, row: Row, samples: int, seconds: float, ripple: measures.FlatRipple
) -> Result:
    """Converts a case and measures the result."""
    started = time.perf_counter()
    with measures.watched() as spent:
        model = converted(case, row, samples, seconds)
    took = time.perf_counter() - started
    timing: dict[str, float] = {}
    if row.init == "calibrated" and spent.calibrate:
        timing = {
            "pass_seconds": measures.pass_seconds((case.model, model), case.draw(samples)),
            "calibrate_seconds": spent.calibrate,
            "solve_seconds": spent.solve,
        }
    return Result(
        row=row.name,
        distance_db=measures.distance_db(case, model),
        quality=case.quality(model),
        ripple_db=ripple(model),
        visible=_visible(case, model, ripple),
        seconds=took,
        macs=measures.macs(case, model) / measures.macs(case, case.model),
        **timing,
    )


def _visible(
    case: Case, model: nn.Module, ripple: measures.FlatRipple
) -> tuple[float, float] | None:
    found = measures.visible(case, model, ripple.periods)
    return None if found is None else (found.mean, found.worst)


def run_case(
    case: Case,
    rows: Sequence[Row],
    *,
    samples: int = 64,
    tuned_samples: int = TUNED_SAMPLES,
    seconds: float = 60.0,
    growth: Sequence[int] = GROWTH,
    told: Callable[[str], None] = lambda text: None,
) -> CaseResult:
    """All of one network's numbers.

    Args:
        case: The network.
        rows: The conversions.
        samples: Calibration samples of the calibrated rows.
        tuned_samples: Those of the tuned rows.
        seconds: Budget of each tuned row.
        growth: Numbers of samples to compare.
        told: Called with what comes next.
    """
    ripple = measures.FlatRipple(case)
    results = []
    for row in rows:
        if row.name.startswith(SILENT) and not case.is_sound:
            continue
        if case.shuffles and not row.in_place:
            continue
        told(f"{case.name}: {row.name}")
        count = tuned_samples if row.init == "tuned" else samples
        results.append(measured(case, row, count, seconds, ripple))
    by_samples = []
    [growing] = [row for row in ROWS if row.name == GROWTH_ROW]
    for count in () if case.shuffles else growth:
        told(f"{case.name}: {growing.name}, {count} samples")
        model = converted(case, growing, count, seconds)
        by_samples.append((count, measures.distance_db(case, model)))
    return CaseResult(
        name=case.name,
        metric=case.metric,
        unit="SNR" if case.is_sound else "PSNR",
        layers=case.layers,
        quality=case.quality(case.model),
        ripple_db=ripple(case.model),
        visible=_visible(case, case.model, ripple),
        rows=tuple(results),
        growth=tuple(by_samples),
    )


# --- showing ------------------------------------------------------------------------------------

_SHORT = {"Fréchet distance from held-out digits in 20 principal components": "Fréchet distance"}
# deconvfix's number for no ripple at all.
_NO_RIPPLE = -300
# Wide enough for the table where the output is no terminal.
_WIDTH = 140


def header(case: CaseResult) -> list[str]:
    """The columns of a case's table."""
    return [
        "conversion",
        f"{case.unit} to the original, dB",
        _SHORT.get(case.metric, case.metric),
        "visible grid (worst), steps of 255",
        "ripple, dB",
        "seconds",
        "MACs",
        "passes",
    ]


def cells(case: CaseResult, result: Result) -> list[str]:
    """A row as text."""
    return [
        result.row,
        _decibels(result.distance_db),
        f"{case.quality:.2f} -> {result.quality:.2f}",
        f"{_steps(case.visible)} -> {_steps(result.visible)}",
        f"{_number(case.ripple_db)} -> {_number(result.ripple_db)}",
        f"{result.seconds:.1f}",
        f"x{result.macs:.2f}",
        "" if result.passes is None else f"{result.passes:.1f}",
    ]


def _steps(value: tuple[float, float] | None) -> str:
    return "?" if value is None else f"{max(value[0], 0):.2f} ({max(value[1], 0):.2f})"


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f}"


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    return "none" if value <= _NO_RIPPLE else f"{value:.0f}"


def as_markdown(case: CaseResult) -> str:
    """The table, and how the distance grows with the samples."""
    lines = [f"`{case.name}` ({', '.join(case.layers)}):", ""]
    lines += ["| " + " | ".join(header(case)) + " |", "|" + "---|" * len(header(case))]
    lines += ["| " + " | ".join(cells(case, row)) + " |" for row in case.rows]
    return "\n".join([*lines, "", _grown(case), ""])


def _grown(case: CaseResult) -> str:
    if not case.growth:
        return ""
    points = ", ".join(f"{count}: {_decibels(value)}" for count, value in case.growth)
    return f"{GROWTH_ROW}, {case.unit} in dB by the number of samples: {points}"


def as_table(case: CaseResult) -> Table:
    """The same for a terminal."""
    table = Table(title=f"{case.name} ({', '.join(case.layers)})", caption=_grown(case))
    for number, title in enumerate(header(case)):
        table.add_column(title, justify="right" if number else "left")
    for row in case.rows:
        table.add_row(*cells(case, row))
    return table


def as_json(cases: Iterable[CaseResult], command: str, **about: Any) -> dict[str, Any]:
    """Everything that was measured."""
    found = []
    for case in cases:
        entry = asdict(case)
        for row, result in zip(entry["rows"], case.rows, strict=True):
            row["passes"] = result.passes
        found.append(entry)
    return {
        "format": "deconvfix.benchmarks.fidelity/1",
        "command": command,
        "versions": versions(),
        **about,
        "fixtures": found,
    }


@click.command()
@click.option(
    "--fixtures",
    multiple=True,
    type=click.Choice(cases.NAMES),
    help="Only these networks. Repeatable; default: all.",
)
@click.option("--rows", default="*", metavar="PATTERN", help="Only rows whose names match it.")
@click.option("--seconds", default=60.0, show_default=True, help="Budget of each tuned row.")
@click.option("--samples", default=64, show_default=True, help="Of calibrated rows.")
@click.option("--tuned-samples", default=TUNED_SAMPLES, show_default=True, help="Of tuned rows.")
@click.option("--growth/--no-growth", default=True, help="Other numbers of samples too.")
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--markdown", is_flag=True, help="Print Markdown instead of tables for terminals.")
def main(
    fixtures: tuple[str, ...],
    rows: str,
    seconds: float,
    samples: int,
    tuned_samples: int,
    growth: bool,
    threads: int,
    json_file: Path | None,
    markdown: bool,
) -> None:
    """Measure how far conversions without a checkerboard move the trained fixtures."""
    chosen = [row for row in ROWS if fnmatch.fnmatch(row.name, rows)]
    if not chosen:
        raise click.UsageError(f"No row matches {rows!r}: {', '.join(e.name for e in ROWS)}.")
    command = shlex.join(["python", "benchmarks/fidelity.py", *sys.argv[1:]])
    torch.set_num_threads(threads)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    progress = Console(stderr=True, highlight=False)
    found = []
    with threadpool_limits(threads):
        for name in fixtures or cases.NAMES:
            case = cases.load(name)
            result = run_case(
                case,
                chosen,
                samples=samples,
                tuned_samples=tuned_samples,
                seconds=seconds,
                growth=GROWTH if growth else (),
                told=progress.print,
            )
            found.append(result)
            if markdown:
                print(as_markdown(result), flush=True)
            else:
                console.print(as_table(result))
    told = ", ".join(f"{package} {version}" for package, version in versions().items())
    print(f"{command}\n{told}; threads: {threads}")
    if json_file is not None:
        about = as_json(found, command, threads=threads, seconds=seconds, samples=samples)
        json_file.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
