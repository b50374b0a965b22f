"""Reports as text for a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich import markup
from rich.table import Table

from deconvfix.core.decibels import INVISIBLE_DB, LOWEST_DB, decibels_in_words
from deconvfix.errors import printable
from deconvfix.parity.bounds import LIMIT
from deconvfix.report.report import finite

if TYPE_CHECKING:
    from deconvfix.cli.bench import BenchReport
    from deconvfix.cli.tolerance import ToleranceReport
    from deconvfix.diagnose.fidelity import Fidelity
    from deconvfix.diagnose.inspection import Inspection, Layer, OutputDiagnosis
    from deconvfix.fixing.report import FixReport
    from deconvfix.frontends.torch.export import ExportReport
    from deconvfix.parity.bounds import ParityReport
    from deconvfix.report.curves import SamplesCurve
    from deconvfix.report.report import ConversionReport
    from deconvfix.runtimes.proof import RuntimeReport

__all__ = [
    "bench",
    "conversion",
    "escape",
    "export",
    "finite",
    "in_runtime",
    "inspection",
    "parity",
    "planned",
    "tolerance",
]

_MOST_LINES = 8
_STANDS_OUT_DB = 10.0


def escape(text: str) -> str:
    """Words of a model, as they stand: neither rich nor a terminal obeys what is in them."""
    return markup.escape(printable(text))


def inspection(found: Inspection, *, gradients: bool = False) -> Iterator[Any]:
    """One row for each layer, then notes; the sentences about gradients where they were asked for."""
    if not found.layers:
        yield "No transposed convolution found."
    else:
        table = Table("Layer", "Channels", "Kernel", "Stride", "Overlap", "Ripple", "Period")
        table.columns[0].overflow = "fold"
        for layer in found.layers:
            table.add_row(*map(escape, _row(layer)))
        yield table
        for layer in found.layers:
            if layer.refusal:
                yield f"[red]refused[/red] {escape(layer.refusal)}"
        yield (
            "Overlap: uneven where the stride does not divide the kernel size. Ripple: how much the "
            "output for a constant input varies with the phase, computed from the weights; below "
            f"{INVISIBLE_DB:.0f} dB it is invisible. Period: output pixels after which the grid repeats"
            + ("." if found.outputs else ", assuming that the layers follow each other.")
        )
        yield from map(escape, _reasons(found))
        yield "The advice is about grids. To replace these layers and keep the function: deconvfix convert."
        yield from map(escape, _tones(found))
        for output in found.outputs:
            yield from map(escape, _output(output))
    if gradients:
        yield from _gradients(found)
    yield from map(escape, found.notes)


def _gradients(found: Inspection) -> Iterator[str]:
    if not found.advice:
        yield "Gradients: no convolution whose gradient has a grid."
        return
    for sentence in found.advice[:_MOST_LINES]:
        yield f"Gradients: {escape(sentence)}"
    if len(found.advice) > _MOST_LINES:
        yield f"Gradients: {len(found.advice) - _MOST_LINES} more layers like these; see --json."
    yield "Such layers are not converted. For a new model, choose kernels that the stride divides."


def conversion(report: ConversionReport) -> Iterator[Any]:
    """One row for each layer, fidelity, proofs, notes and the verdict."""
    table = Table("Layer", "Decision", "MACs", "What happened")
    table.columns[0].overflow = "fold"
    for layer in report.layers:
        cost = ""
        if layer.macs_before and layer.macs_after:
            cost = f"x{layer.macs_after / layer.macs_before:.2f}"
        color = {"replaced": "green", "refused": "red"}.get(layer.decision, "")
        decision = f"[{color}]{layer.decision}[/{color}]" if color else layer.decision
        table.add_row(escape(layer.name or "(model)"), decision, cost, escape(layer.reason))
    if report.layers:  # else the file is copied
        yield table
    if report.layers and report.tallies is not None:
        table = Table("", "Before", "After")
        for column in table.columns[1:]:
            column.justify = "right"
        for what, *counts in report.tallies.rows():
            table.add_row(escape(what), *counts)
        yield table
    if report.fidelity is not None:
        yield escape(report.change() or "")
        yield from map(escape, _fidelity(report.fidelity))
    if report.samples_curve is not None:
        yield from map(escape, _curve(report.samples_curve))
    if report.curve is not None:
        table = Table("Strength", "PSNR", "Ripple, network", "Ripple, layers")
        for row in report.curve.rows():
            table.add_row(*row)
        yield table
        yield from map(escape, report.curve.notes)
    if report.parity is not None:
        yield from parity(report.parity)
    if report.export is not None:
        yield from parity(report.export, "Verified in ONNX Runtime")
    if report.in_runtime is not None:
        yield from in_runtime(report.in_runtime)
    yield from map(escape, report.notes)
    if report.output:
        yield f"Wrote {escape(report.output)}."
    yield f"[bold]{escape(report.verdict())}[/bold]"


def planned(report: ConversionReport) -> Iterator[Any]:
    """A dry run as a difference: what goes, what comes, and what stays with its reason."""
    for layer in report.layers:
        name = escape(layer.name or "(model)")
        if layer.decision != "replaced":
            color = "[red]refused[/red]" if layer.decision == "refused" else layer.decision
            yield f"  {name}: {escape(layer.op)}, {color}: {escape(layer.reason)}"
            continue
        cost = ""
        if layer.macs_before and layer.macs_after:
            cost = f"; x{layer.macs_after / layer.macs_before:.2f} multiply-accumulates"
        yield f"  {name}"
        yield f"[red]-   {escape(layer.op)}[/red]"
        yield f"[green]+   {', '.join(layer.steps)}[/green] ({escape(layer.reason)}{cost})"
    yield from map(escape, report.notes)
    yield f"[bold]{escape(report.verdict())} Nothing was written but the recipe, if one was asked for.[/bold]"


def _fidelity(fidelity: Fidelity) -> Iterator[str]:
    """The numbers of what was changed on purpose."""
    for output in fidelity.outputs:
        if (seen := output.visible_in_words()) is not None:
            yield f"  Output {output.index}: {seen}."
    pairs = [
        (
            "Largest layer ripple (from the weights)",
            fidelity.ripple_db_before,
            fidelity.ripple_db_after,
        ),
        (
            "Ripple of the whole model",
            fidelity.network_ripple_db_before,
            fidelity.network_ripple_db_after,
        ),
    ]
    for what, before, after in pairs:
        if before is not None and after is not None:
            yield f"  {what}: {decibels_in_words(before)} before, {decibels_in_words(after)} after."
    if (match := fidelity.match_in_words()) is not None:
        yield f"  Match to the original: {match}, on {fidelity.measured_on()}."

    for output in fidelity.outputs:
        if (moved := output.shift_in_words()) is not None:
            yield f"  {moved}"


def _curve(curve: SamplesCurve) -> Iterator[str]:
    """One line for each fit, and what they say."""
    yield f"Calibrated fits, compared with the original on {curve.heldout} held-out samples:"
    for point in curve.points:
        psnr = "nothing to compare" if point.psnr_db is None else f"{point.psnr_db:.1f} dB PSNR"
        yield f"  {point.samples:>5} samples  {psnr}"
    yield f"  {curve.sentence()}"


def fixed(report: FixReport, *, explain: bool) -> Iterator[Any]:
    """What was measured and tried, and the choice."""
    columns = (
        ("Tones", "Silence", "Match") if report.is_sound else ("Grid", "Worst", "Match", "Colour")
    )
    table = Table("Candidate", *columns, "Cost", "Verdict")
    original = ("the original", report.original, 1.0, ())
    rows = [original, *((c.name, c.measured, c.cost, c.objections) for c in report.candidates)]
    for name, found, cost, objections in rows:
        cells = [""] * len(columns) if found is None else report.cells(found)
        table.add_row(escape(name), *cells, f"x{cost:.2f}", escape("; ".join(objections)))
    yield table
    yield f"{report.units()} {report.goal}; on {report.heldout} held-out samples."
    yield from map(escape, report.notes)
    yield f"[bold]{escape(report.explain() if explain else report.reason)}[/bold]"


def export(report: ExportReport) -> Iterator[Any]:
    """Where the file is, what is in it, and the proof."""
    if report.parity is not None:
        yield from parity(report.parity, "Verified in ONNX Runtime")
    count = report.operators.get("ConvTranspose", 0)
    yield f"Wrote {escape(report.path)}, opset {report.opset}, {count} ConvTranspose."


def parity(report: ParityReport, title: str = "Verified") -> Iterator[Any]:
    """One line for the verdict, then what is wrong."""
    if report.ok and not report.comparisons:
        yield "Nothing was compared."
        yield from map(escape, report.notes)
        return
    count, agree = len(report.comparisons), sum(found.ok for found in report.comparisons)
    if report.ok and not report.ran:
        title = f"Layers {title.lower()}"
    verdict = f"[green]{title}[/green]" if report.ok else f"[red]NOT {title.lower()}[/red]"
    if not report.ok:
        agreement = f"{agree} of {count} comparisons agree"
    elif count == 1:
        agreement = "the only comparison agrees"
    else:
        agreement = f"all {count} comparisons agree"
    what = "the outputs" if report.ran else "the layers"
    yield (
        f"{verdict}: {agreement} ({report.dtype}). Largest difference of {what} {report.max_abs:.3g}; "
        f"largest error of any comparison {report.max_error_ratio:.3g}x the rounding bound "
        f"(limit {LIMIT:g}x)."
    )
    for problem in report.problems:
        yield f"[red]{escape(problem)}[/red]"
    if report.first_departure is not None:
        yield f"The first layer that differs: {escape(report.first_departure)}."
    yield from map(escape, report.notes)


def tolerance(report: ToleranceReport) -> Iterator[Any]:
    """One row for each output, and the verdict."""
    table = Table("Output", "SNR", "Largest difference", "Beyond the limits")
    for output in report.outputs:
        table.add_row(
            str(output.index),
            f"{output.snr_db:.1f} dB" if output.snr_db < -LOWEST_DB else "equal",
            f"{output.max_abs:.3g}",
            f"{100 * output.beyond:.2g} %",
        )
    yield table
    limits = report.limits
    asked = [
        f"{name} {value:g}{unit}"
        for name, value, unit in (
            ("SNR", limits.min_snr, " dB"),
            ("atol", limits.atol, ""),
            ("rtol", limits.rtol, ""),
        )
        if value is not None
    ]
    words = "[green]Within" if report.ok else "[red]NOT within"
    color = "[/green]" if report.ok else "[/red]"
    yield f"{words} the limits{color} ({', '.join(asked)}), on one set of inputs."


def in_runtime(report: RuntimeReport) -> Iterator[Any]:
    """One row for each file, what happened, and the verdict."""
    table = Table("", report.runtime, "Largest difference", "Over the rounding bound")
    for name, fared in (("before", report.before), ("after", report.after)):
        color = "green" if fared.status == "right" else "red"
        ran = fared.max_abs is not None
        table.add_row(
            name,
            f"[{color}]{fared.status}[/{color}]",
            f"{fared.max_abs:.3g}" if ran else "",
            f"{fared.error_ratio:.3g}x (limit {LIMIT:g}x)" if ran else "",
        )
    yield table
    for fared in (report.before, report.after):
        if fared.words:
            yield f"{escape(fared.file)}: {escape(fared.words)}."
    yield from map(escape, report.notes)
    yield f"[bold]{escape(report.verdict())}[/bold]"


def bench(report: BenchReport) -> Iterator[Any]:
    """One row for each model, and the ratio."""
    table = Table("", "Runtime", "Median", "Middle half of runs")
    for name, timing in (("before", report.before), ("after", report.after)):
        low, high = timing.quartiles_ms
        table.add_row(
            name, timing.runtime, f"{timing.median_ms:.3g} ms", f"{low:.3g} to {high:.3g} ms"
        )
    yield table
    low, high = report.ratio_quartiles
    threads = "1 thread" if report.threads == 1 else f"{report.threads} threads"
    yield (
        f"Time before / time after: {report.ratio:.2f} (above 1, the converted model is faster). Middle "
        f"half of {report.repeats} pairs: {low:.2f} to {high:.2f}; {threads}."
    )
    at = ", ".join(f"{name} {'x'.join(map(str, size))}" for name, size in report.inputs.items())
    verdict = report.verdict
    known = (
        f"with {100 * verdict.confidence:g} % confidence the ratio is {verdict.low:.3g} to "
        f"{verdict.high:.3g}"
        if math.isfinite(verdict.high)
        else "it takes 8 or more repeats"
    )
    yield f"[bold]At inputs {escape(at)}: {verdict.words()}[/bold] ({known})."
    if report.before.runtime != report.after.runtime:
        yield "The two models run in different runtimes, which is part of the ratio."


def _reasons(found: Inspection) -> Iterator[str]:
    """Why each form is recommended, layers of one reason together."""
    layers: dict[str, list[str]] = {}
    for layer in found.layers:
        if layer.recommendation is not None:
            form, reason = layer.recommendation.form, layer.recommendation.reason
            layers.setdefault(f"{form}. {reason}", []).append(layer.name or "(model)")
    for reason, names in layers.items():
        yield f"{', '.join(names)}: {reason}"


def _tones(found: Inspection) -> Iterator[str]:
    """The frequencies of grids in Hz, where the sample rate was given."""
    for layer in found.layers:
        tones = [tone for tone in layer.frequencies if tone.hz is not None]
        if not tones:
            continue
        words = [
            f"{tone.hz:g} Hz" + ("" if tone.ripple_db is None else f" ({tone.ripple_db:.1f} dB)")
            for tone in tones[:_MOST_LINES]
        ]
        more = ", ..." if len(tones) > _MOST_LINES else ""
        others = sorted({other for tone in tones for other in tone.coincides_with})
        shared = f"; images of {', '.join(others)} coincide with them" if others else ""
        yield f"{layer.name or '(model)'}: tones at {', '.join(words)}{more}{shared}."


def _output(output: OutputDiagnosis) -> Iterator[str]:
    where = f"Output {output.index}"
    flat = output.flat_field
    if output.visible is not None:
        yield f"{where}: {output.visible.in_words()}."
    if output.heard is not None:
        heard = "are heard" if output.heard.is_heard else "are not heard"
        yield f"{where}: tones that are locked to the phase: {output.heard.in_words()}; they {heard}."
    if flat is not None:
        yield (
            f"{where}: on a constant input the ripple is {flat.ripple_db:.1f} dB; phases differ by up to "
            f"{flat.apart:.3g}."
        )
    for variance in output.phase_variances:
        period = "x".join(map(str, variance.period))
        yield (
            f"{where}: the phase within a period of {period} explains {100 * variance.share:.2g} % of the "
            f"fine structure, rms {variance.rms:.2g} (F = {variance.f_statistic:.3g}, "
            f"p = {variance.p_value:.2g}; {', '.join(map(_named, variance.layers))})."
        )
    peaks = sorted(
        (peak for peak in output.peaks if peak.ratio_db >= _STANDS_OUT_DB),
        key=lambda peak: -peak.ratio_db,
    )
    for peak in peaks[:_MOST_LINES]:
        at = ", ".join(f"{frequency:.4g}" for frequency in peak.frequency)
        unit = f"{peak.hz:g} Hz" if peak.hz is not None else f"({at}) cycles per pixel"
        layers = ", ".join(map(_named, peak.layers)) or "several layers together"
        yield f"{where}: a peak of {peak.ratio_db:.1f} dB at {unit}, caused by {layers}."
    if len(peaks) > _MOST_LINES:
        yield f"{where}: {len(peaks) - _MOST_LINES} more peaks; see --json."
    if output.peaks and not peaks:
        yield f"{where}: no frequency of a grid stands out by {_STANDS_OUT_DB:g} dB or more."


def _named(layer: str) -> str:
    return layer or "(model)"


def _row(layer: Layer) -> tuple[str, ...]:
    ripple = "?" if layer.ripple_db is None else f"{layer.ripple_db:.1f} dB"
    if layer.ripple_db is not None and layer.ripple_db <= -300:
        ripple = "none"
    if layer.kernel_size is None or layer.stride is None:
        return (layer.name or "(model)", "?", "?", "?", "?", ripple, "?")
    channels = f"{layer.in_channels}->{layer.out_channels}"
    if layer.groups != 1:
        channels += f" /{layer.groups}"
    return (
        layer.name or "(model)",
        channels,
        "x".join(map(str, layer.kernel_size)),
        "x".join(map(str, layer.stride)),
        "uneven" if layer.uneven_overlap else "even",
        ripple,
        "?" if layer.period is None else "x".join(map(str, layer.period)),
    )
