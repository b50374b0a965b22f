"""The report of `fix` as a page: regions before and after, enlarged, then the candidates."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.extras import undrawn

__all__ = ["page"]

# How much of the range of the region before fills black to white, at least in steps of 255.
_LEAST_CONTRAST = 8


def page(report: Any) -> str:
    """The whole page of a `FixReport`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deconvfix.fixing", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    without = undrawn()
    shown = () if without else report.pictures
    return environment.get_template("fix.html.jinja").render(
        report=report,
        regions=[(pictures.title, _drawn(pictures)) for pictures in shown],
        trade_off=None if without else _trade_off(report),
        undrawn=without,
    )


def _png(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shown(values: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    picture = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1).transpose(1, 2, 0)
    return picture if picture.shape[2] == 3 else picture[..., 0]


def _drawn(pictures: Any) -> str:
    """`Pictures`: region before and after with one contrast, the samples, and their difference."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.2), layout="constrained")
    axes = figure.subplots(2, 3)
    whole = pictures.whole_before
    span = float(np.ptp(whole)) or 1.0
    # Around the middle of each, by the same factor: a shift of colour shows in the samples below.
    width = max(
        float(np.ptp(pictures.before)), float(np.ptp(pictures.after)), _LEAST_CONTRAST / 255 * span
    )
    for axis, values, title in zip(
        axes[0], (pictures.before, pictures.after), ("before", "after"), strict=False
    ):
        middle = float(np.median(values))
        axis.imshow(
            _shown(values, middle - width / 2, middle + width / 2), cmap="gray", vmin=0, vmax=1,
            interpolation="nearest",
        )  # fmt: skip
        axis.set_title(f"region, {title} (contrast x{span / width:.0f})", fontsize=9)
    difference = pictures.after.astype(np.float64) - pictures.before
    largest = float(np.abs(difference).max()) or 1.0
    axes[0][2].imshow(
        difference.mean(0), cmap="coolwarm", vmin=-largest, vmax=largest, interpolation="nearest"
    )
    axes[0][2].set_title(f"difference, up to {255 * largest / span:.1f} steps", fontsize=9)
    low, high = float(whole.min()), float(whole.max())
    for axis, values, title in zip(
        axes[1], (whole, pictures.whole_after), ("before", "after"), strict=False
    ):
        axis.imshow(_shown(values, low, high), cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"sample, {title}", fontsize=9)
        rows, columns = pictures.before.shape[1:]
        top, left = pictures.corner
        edge_x = [left, left + columns, left + columns, left, left]
        axis.plot(edge_x, [top, top, top + rows, top + rows, top], color="red", linewidth=0.8)
    # Of the luminance: a grid is a set of points at multiples of one over its period.
    spectra = [
        np.log10(np.abs(np.fft.fftshift(np.fft.fft2(values.mean(0) - values.mean()))) + 1e-6)
        for values in (whole, pictures.whole_after)
    ]
    axes[1][2].imshow(np.concatenate(spectra, 1), cmap="magma")
    axes[1][2].set_title("spectra, before and after", fontsize=9)
    for axis in axes.ravel():
        axis.set_axis_off()
    return _png(figure)


def _trade_off(report: Any) -> str:
    """Grid against match, one point for each candidate, larger where it costs more."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axis = figure.subplots()
    points = [("the original", report.original, 1.0, True)]
    points += [
        (candidate.name, candidate.measured, candidate.cost, not candidate.objections)
        for candidate in report.candidates
        if candidate.measured is not None
    ]
    for number, (name, found, cost, good) in enumerate(points):
        axis.scatter(
            [max(found.seen, 0.0)], [found.match_db], s=60 * cost**2, label=name,
            color=f"C{number}", marker="o" if good else "x",
        )  # fmt: skip
    axis.set_xlabel(
        "tones, thousandths of the programme" if report.is_sound else "visible grid, steps of 255"
    )
    axis.set_ylabel("match to the goal, dB")
    axis.legend(fontsize=7)
    return _png(figure)
