"""Makes docs/before_after.png from a trained fixture: python docs/make_pictures.py (two minutes)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deconvfix  # noqa: E402
from benchmarks import cases  # noqa: E402
from deconvfix.grid.visible import (  # noqa: E402
    grid_power,
    patch_corner,
    smooth_patches,
    visible_grid,
)

ZOOM, GAP, TITLE, CONTRAST, PERIOD = 8, 8, 22, 4, (8, 8)


def main() -> None:
    """Held-out pictures through the original and the fixed network, where the grid is strongest."""
    case = cases.load("photo_autoencoder")
    found = deconvfix.fix(case.model, data=case.draw(256), seconds=60)
    print(found.report.explain())
    with torch.no_grad():
        old, new = (model(case.inputs).numpy() for model in (case.model, found.model))
    for values in (old, new):
        print(visible_grid(values, PERIOD, like=old))
    for name, model in (("original", case.model), ("fixed", found.model)):
        print(f"{name}: {case.quality(model):.2f} dB")
    patches = smooth_patches(old, PERIOD)
    assert patches is not None
    strongest = int(patches[grid_power(old, PERIOD)[patches].argmax()])
    sample, (top, left), (height, width) = patch_corner(strongest, old.shape, PERIOD)
    tiles = []
    for values in (old[sample], new[sample]):
        region = values[:, top : top + height, left : left + width]
        middle = region.mean((1, 2), keepdims=True)
        tiles.append([enlarged(middle + CONTRAST * (region - middle)), enlarged(values, ZOOM // 2)])
    side = height * ZOOM
    sheet = Image.new("RGB", (4 * (side + GAP) + GAP, TITLE + side + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    titles = (
        f"original, contrast x{CONTRAST}",
        f"fixed, contrast x{CONTRAST}",
        "original",
        "fixed",
    )
    for column, (title, tile) in enumerate(
        zip(titles, (tiles[0][0], tiles[1][0], tiles[0][1], tiles[1][1]), strict=True)
    ):
        draw.text((GAP + column * (side + GAP), 5), title, fill="black")
        sheet.paste(tile, (GAP + column * (side + GAP), TITLE))
    sheet.save(ROOT / "docs/before_after.png", optimize=True)


def enlarged(values: NDArray[np.float32], zoom: int = ZOOM) -> Image.Image:
    """Without smoothing."""
    pixels = (values.clip(0, 1).transpose(1, 2, 0) * 255).round().astype(np.uint8)
    size = (values.shape[2] * zoom, values.shape[1] * zoom)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
