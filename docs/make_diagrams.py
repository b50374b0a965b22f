"""Makes docs/form_*.svg: what each form does to a constant and a step: python docs/make_diagrams.py."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deconvfix  # noqa: E402

# k3 s2: even pixels see the first and the last tap, odd ones the tap between them.
KERNEL = (0.55, 0.8, 0.35)
SIGNAL = (*[1.0] * 9, 2.0, 2.0, 2.2, 2.0, 2.0, *[2.0] * 5)


def main() -> None:
    """One picture for each form."""
    mpl.rcParams.update({"svg.hashsalt": "deconvfix", "font.size": 9})
    layer = nn.ConvTranspose1d(1, 1, 3, stride=2, padding=1, output_padding=1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(KERNEL).view(1, 1, -1))
    x = torch.tensor(SIGNAL).view(1, 1, -1)
    for form in ("subpixel", "resize", "equalized", "notch"):
        init = None if form == "subpixel" else "fit"
        model = nn.Sequential(layer).eval()
        after = deconvfix.convert(model, to=form, init=init, example_inputs=(x,)).model
        draw(form, answers(model, x), answers(after, x))


def answers(model: nn.Module, x: Tensor) -> NDArray[np.float32]:
    """The output, without the pixels that the border reaches."""
    with torch.no_grad():
        return np.asarray(model(x)[0, 0, 8:-8].numpy())


def draw(form: str, before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
    """The two signals side by side, even and odd pixels in two colours."""
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 1.9), sharey=True, layout="constrained")
    for axis, title, y in zip(axes, ("transposed convolution", form), (before, after), strict=True):
        position = np.arange(len(y))
        axis.plot(position, y, color="0.7", linewidth=1, zorder=1)
        for phase, color in enumerate(("#1f77b4", "#d62728")):
            axis.scatter(position[phase::2], y[phase::2], s=14, color=color, label=f"phase {phase}")
        axis.set_title(title)
    axes[0].legend(loc="upper left", frameon=False, fontsize=8)
    figure.savefig(ROOT / f"docs/form_{form}.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
