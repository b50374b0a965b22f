"""Makes docs/before_after.png from the trained fixtures: python docs/make_pictures.py (two minutes)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import deconvfix  # noqa: E402
from benchmarks import cases, measures  # noqa: E402

ZOOM, SIZE, GAP, TITLE = 6, 40, 8, 22


def main() -> None:
    """Flat grey and a held-out crop through the original and two converted networks."""
    case = cases.load("photo_autoencoder")
    original, calibration = case.model, case.draw(512)
    # Large enough that the border is out of sight; what the local means reach is eight times as wide.
    flat = torch.full((1, 3, 256, 256), 0.5)
    crop = case.inputs[3:4]
    tuned = deconvfix.convert(
        original,
        to="notch",
        grow=1,
        init="tuned",
        calibration=calibration,
        example_inputs=calibration[0],
        tuning=deconvfix.Tuning(steps=2000, learning_rate=3e-3),
    ).model
    columns: list[tuple[str, nn.Module]] = [
        ("original", original),
        ("notch: no data, no training", deconvfix.convert(original, to="notch").model),
        ("notch --grow 1 --init tuned", tuned),
    ]
    for title, model in columns[1:]:
        print(f"{title}: {measures.distance_db(case, model):.1f} dB, {case.quality(model):.2f} dB")
    width = len(columns) * (SIZE * ZOOM + GAP) + GAP
    sheet = Image.new("RGB", (width, TITLE + 2 * (SIZE * ZOOM + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, model) in enumerate(columns):
        left = GAP + column * (SIZE * ZOOM + GAP)
        draw.text((left, 5), title, fill="black")
        for row, inputs in enumerate((flat, crop)):
            with torch.no_grad():
                output = model(inputs)
            tile = picture(stretched(output) if row == 0 else output)
            sheet.paste(tile, (left, TITLE + row * (SIZE * ZOOM + GAP)))
    sheet.save(ROOT / "docs/before_after.png", optimize=True)


def stretched(image: Tensor) -> Tensor:
    """Contrast times four around the mean colour."""
    mean = image.mean((2, 3), keepdim=True)
    return 0.5 + 4 * (image - mean)


def picture(image: Tensor) -> Image.Image:
    """The middle of an image, enlarged without smoothing."""
    begin = (image.shape[-1] - SIZE) // 2
    middle = image[0, :, begin : begin + SIZE, begin : begin + SIZE].clamp(0, 1)
    pixels = (middle.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(pixels).resize((SIZE * ZOOM, SIZE * ZOOM), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
