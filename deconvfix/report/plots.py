"""Pictures for the report, as data URIs: legible on light and dark, without anything from the network."""

from __future__ import annotations

import base64
import io
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Mark", "curves", "image", "kernels", "labelled", "trade_off"]

Array = NDArray[Any]
# Readable on white and on black.
_INK = "#7d8590"
# Told apart by those who do not see red and green too.
_COLORS = ("#d1242f", "#2f81f7", "#1f883d")
_SMALLEST = 192
# Names at marks: a share of the x axis for each, and so many letters and lines.
_LABEL_WIDTH = 0.11
_LETTERS = 16
_NAMES = 3


@dataclass(frozen=True)
class Mark:
    """A place on the x axis.

    Attributes:
        position: Where it is.
        names: What it belongs to.
        strength: The strongest marks are named first.
    """

    position: float
    names: tuple[str, ...]
    strength: float = 0.0


def image(array: Array, low: float | None = None, high: float | None = None) -> str:
    """An array as PNG, pixels enlarged to squares.

    Args:
        array: (C, H, W); three channels are colours, of any other number the first is shown.
        low: The value of black; by default the smallest.
        high: The value of white; by default the largest.
    """
    from matplotlib import image as writer

    shown = array.astype(np.float64)
    shown = shown[:3] if len(shown) >= 3 else np.repeat(shown[:1], 3, 0)
    low = float(shown.min()) if low is None else low
    high = float(shown.max()) if high is None else high
    shown = np.clip((shown - low) / ((high - low) or 1.0), 0, 1)
    # Enlarged here by whole pixels, as browsers blur small pictures.
    factor = max(1, round(_SMALLEST / min(shown.shape[1:])))
    shown = shown.repeat(factor, 1).repeat(factor, 2).transpose(1, 2, 0)
    buffer = io.BytesIO()
    writer.imsave(buffer, np.ascontiguousarray(shown), format="png")
    return _uri("image/png", buffer.getvalue())


def kernels(before: Array, after: Array) -> str:
    """Two kernels side by side on one scale, as PNG: blue below zero and red above, of one axis as bars.

    Args:
        before: (h, w), or (k,), of the trained layer.
        after: The same of the converted layer.
    """
    figure, axes = _figure(1, 2, (3.6, 1.8))
    # One symmetric scale, so that white is zero in both.
    limit = max(float(np.abs(before).max()), float(np.abs(after).max())) or 1.0
    for axis, kernel, title in zip(axes, (before, after), ("before", "after"), strict=True):
        if kernel.ndim == 1:
            axis.bar(np.arange(len(kernel)), kernel, color=_COLORS[0], width=0.7)
            axis.axhline(0, color=_INK, linewidth=0.8)
            axis.set_ylim(-1.05 * limit, 1.05 * limit)
        else:
            axis.imshow(kernel, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(title, color=_INK, fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_color(_INK)
    return _saved(figure, "png")


def curves(
    x: Array,
    lines: Sequence[tuple[str, Array]],
    *,
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
) -> str:
    """Curves over one axis as SVG.

    Args:
        x: Positions, (N,).
        lines: A name and values, (N,), for each curve.
        x_label: What x is, with its unit.
        y_label: What the values are, with their unit.
        marks: Vertical lines, and dots on the curves there. Where there is no room for all their
            names, the strongest have theirs.
    """
    figure, ((axis,),) = _figure(1, 1, (7.2, 3.0), squeeze=False)
    for mark in marks:
        axis.axvline(mark.position, color=_INK, linewidth=0.8, linestyle=":")
    for mark in labelled(marks, float(np.ptp(x)) * _LABEL_WIDTH):
        axis.text(mark.position, 1.02, _label(mark.names), color=_INK, fontsize=7, ha="center",
                  va="bottom", transform=axis.get_xaxis_transform())  # fmt: skip
    # The sample next to each mark.
    at = [int(np.abs(x - mark.position).argmin()) for mark in marks]
    for (name, values), color in zip(lines, _COLORS, strict=False):
        axis.plot(x, values, label=name, color=color, linewidth=1.2,
                  marker="o" if len(x) < 20 else None, markersize=3)  # fmt: skip
        axis.plot(x[at], values[at], color=color, linestyle="none", marker="o", markersize=4)
    axis.set_xlabel(x_label, color=_INK, fontsize=8)
    axis.set_ylabel(y_label, color=_INK, fontsize=8)
    axis.tick_params(colors=_INK, labelsize=7)
    for spine in axis.spines.values():
        spine.set_color(_INK)
    if len(lines) > 1:
        axis.legend(fontsize=7, labelcolor=_INK, frameon=False)
    return _saved(figure, "svg")


def labelled(marks: Sequence[Mark], apart: float) -> list[Mark]:
    """The marks whose names find room, the strongest first, `apart` from each other."""
    chosen: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: -mark.strength):
        if all(abs(mark.position - other.position) >= apart for other in chosen):
            chosen.append(mark)
    return chosen


def _label(names: Sequence[str]) -> str:
    """One name on each line; the ends of long ones, which tell layers apart."""
    lines = [n if len(n) <= _LETTERS else f"…{n[1 - _LETTERS :]}" for n in names[:_NAMES]]
    if len(names) > _NAMES:
        lines[-1] += f" +{len(names) - _NAMES}"
    # Names are no mathematical text.
    return "\n".join(lines).replace("$", r"\$")


def trade_off(
    marks: Sequence[tuple[float, float, str]], *, lowest: float, x_label: str, y_label: str
) -> str:
    """A line through named points as SVG; what lies outside is an arrow at the edge.

    Args:
        marks: x, y and a name for each point, in order. Some y must be finite.
        lowest: Smaller x are drawn there.
        x_label: What x is, with its unit.
        y_label: What y is, with its unit.
    """
    figure, ((axis,),) = _figure(1, 1, (7.2, 3.2), squeeze=False)
    finite = [y for _, y, _ in marks if np.isfinite(y)]
    # Room above the largest value for the arrows of infinite ones.
    top = max(finite) + 0.25 * max(max(finite) - min(finite), 4.0)
    shown = [(max(x, lowest), min(y, top)) for x, y, _ in marks]
    outside = [x < lowest or y > top for x, y, _ in marks]
    for i, (begin, end) in enumerate(itertools.pairwise(shown)):
        style = "--" if outside[i] or outside[i + 1] else "-"
        axis.plot(*zip(begin, end, strict=True), style, color=_COLORS[0], linewidth=1.2)
    middle = (min(shown)[0] + max(shown)[0]) / 2
    for (x, y, name), place in zip(marks, shown, strict=True):
        marker, note = "o", name
        if x < lowest:
            marker, note = "<", f"{name} (below {lowest:g} dB)"
        elif y > top:
            marker, note = "^", f"{name} (no difference)"
        axis.plot(*place, marker, color=_COLORS[0], markersize=6)
        # y rises with x: above on the left of a point, and below on its right, there is room.
        beside = {"xytext": (-6, 5), "ha": "right"}
        if place[0] <= middle:
            beside = {"xytext": (6, -12), "ha": "left"}
        axis.annotate(note, place, textcoords="offset points", color=_INK, fontsize=8, **beside)
    axis.margins(0.08, 0.15)
    axis.set_xlabel(x_label, color=_INK, fontsize=8)
    axis.set_ylabel(y_label, color=_INK, fontsize=8)
    axis.tick_params(colors=_INK, labelsize=7)
    for spine in axis.spines.values():
        spine.set_color(_INK)
    return _saved(figure, "svg")


def _figure(rows: int, columns: int, size: tuple[float, float], **more: Any) -> Any:
    # Without pyplot, which keeps figures and wants a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **more)


def _saved(figure: Any, kind: str) -> str:
    import matplotlib

    buffer = io.BytesIO()
    # The same picture gives the same bytes: no date, no random names.
    with (
        matplotlib.rc_context({"svg.hashsalt": "deconvfix", "svg.fonttype": "none"}),
        warnings.catch_warnings(),
    ):
        # Names of layers may be in any script; the browser that shows the picture has its fonts.
        warnings.filterwarnings("ignore", ".*missing from font", UserWarning)
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, transparent=True, dpi=110, metadata=metadata)
    return _uri("image/svg+xml" if kind == "svg" else "image/png", buffer.getvalue())


def _uri(media: str, content: bytes) -> str:
    return f"data:{media};base64,{base64.b64encode(content).decode()}"
