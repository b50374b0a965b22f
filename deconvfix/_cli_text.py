"""Reports as text for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from deconvfix.report import finite

if TYPE_CHECKING:
    from deconvfix.inspection import Inspection, Layer
    from deconvfix.onnx_export import ExportReport
    from deconvfix.parity import ParityReport
    from deconvfix.report import ConversionReport

__all__ = ["conversion", "export", "finite", "inspection", "parity"]


def inspection(found: Inspection) -> Iterator[Any]:
    """One row for each layer, then notes."""
    if not found.layers:
        yield "No transposed convolution found."
    else:
        table = Table("Layer", "Channels", "Kernel", "Stride", "Overlap", "Ripple")
        table.columns[0].overflow = "fold"
        for layer in found.layers:
            table.add_row(*map(escape, _row(layer)))
        yield table
        for layer in found.layers:
            if layer.refusal:
                yield f"[red]refused[/red] {escape(layer.refusal)}"
        yield (
            "Overlap is uneven where the stride does not divide the kernel. Ripple: unevenness of "
            "the answer to a constant input, by the weights; below -60 dB it is invisible."
        )
    yield from map(escape, found.notes)


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
    yield table
    if report.fidelity is not None:
        psnr = report.fidelity.psnr_db
        yield (
            "Fidelity: "
            + ("" if psnr is None else f"{psnr:.1f} dB PSNR against the original; ")
            + f"largest ripple of a layer {report.fidelity.ripple_db_before:.1f} dB before, "
            f"{report.fidelity.ripple_db_after:.1f} dB after."
        )
    if report.parity is not None:
        yield from parity(report.parity)
    if report.export is not None:
        yield from parity(report.export, "ONNX Runtime against torch")
    yield from map(escape, report.notes)
    if report.output:
        yield f"Wrote {escape(report.output)}."
    yield f"[bold]{escape(report.verdict())}[/bold]"


def export(report: ExportReport) -> Iterator[Any]:
    """Where the file is, what is in it, and the proof."""
    if report.parity is not None:
        yield from parity(report.parity, "ONNX Runtime against torch")
    count = report.operators.get("ConvTranspose", 0)
    yield f"Wrote {escape(report.path)}, opset {report.opset}, {count} ConvTranspose."


def parity(report: ParityReport, title: str = "Proof") -> Iterator[Any]:
    """One line, and what is wrong."""
    agreement = "[green]in agreement[/green]" if report.ok else "[red]NOT in agreement[/red]"
    yield (
        f"{title}: {agreement}, {len(report.comparisons)} comparisons in {report.dtype}; "
        f"largest difference {report.max_abs:.3g}, {report.max_error_ratio:.3g} times what one "
        "rounding explains (limit 10)."
    )
    for problem in report.problems:
        yield f"[red]{escape(problem)}[/red]"
    if report.first_departure is not None:
        yield f"The first layer that departs: {escape(report.first_departure)}."
    yield from map(escape, report.notes)


def _row(layer: Layer) -> tuple[str, ...]:
    ripple = "?" if layer.ripple_db is None else f"{layer.ripple_db:.1f} dB"
    if layer.ripple_db is not None and layer.ripple_db <= -300:
        ripple = "none"
    if layer.kernel_size is None or layer.stride is None:
        return (layer.name or "(model)", "?", "?", "?", "?", ripple)
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
    )
