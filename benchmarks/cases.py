"""The fixtures as cases: a trained network, what it was held out on, and inputs to calibrate on.

Calibration inputs are drawn like the training data, and pictures also from others: no labels are needed. The
held-out files are only measured on.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from fixtures._training import load_photographs, random_crops, seeded
from fixtures.train_audio_upsampler import analyse, draw_clips
from fixtures.train_digits_generator import draw_latents
from fixtures.train_photo_sharpener import blurred
from fixtures.train_segmenter import SIDE, draw_scenes

__all__ = ["NAMES", "Case", "load"]

FOLDER = Path(__file__).resolve().parents[1] / "fixtures"
BATCH = 8
# Not a seed of the training scripts: their latents and clips are held out too.
SEED = 1000

_PICTURES = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "rocket",
)


def _photographs(count: int) -> Tensor:
    """Crops of what was trained on, and of other pictures: two photographs alone hold too little."""
    pictures = (*load_photographs().train, *_other_pictures())
    return random_crops(pictures, count=count, side=SIDE, generator=seeded(SEED))


def _other_pictures() -> Iterator[Tensor]:
    """Pictures that come with scikit-image, whole and in half the size, (3, H, W) in [0, 1]."""
    for name in _PICTURES:
        picture = torch.from_numpy(getattr(skimage.data, name)().copy()).float() / 255
        picture = picture.permute(2, 0, 1) if picture.dim() == 3 else picture.expand(3, -1, -1)
        yield picture
        yield functional.avg_pool2d(picture, 2)


def _scenes(count: int) -> Tensor:
    return draw_scenes(load_photographs().train, count, generator=seeded(SEED))[0]


_DRAWS: dict[str, Callable[[int], Tensor]] = {
    "digits_generator": lambda count: draw_latents(count, generator=seeded(SEED)),
    "photo_autoencoder": _photographs,
    "audio_upsampler": lambda count: analyse(draw_clips(count, generator=seeded(SEED))),
    "segmenter": _scenes,
    "shuffle_autoencoder": _photographs,
    "photo_sharpener": lambda count: blurred(_photographs(count)),
}
NAMES = tuple(_DRAWS)


@dataclass(frozen=True)
class Case:
    """A fixture.

    Attributes:
        name: Of the fixture.
        model: In eval mode.
        inputs: The held-out inputs.
        target: What the held-out outputs are measured against.
        metric: The name of the fixture's own metric.
        evaluate: The metric, `evaluate(model, inputs, target)`.
        layers: The names of the layers that make a grid: transposed convolutions with a stride, or the
            convolutions that a pixel shuffle follows.
        others: The names of the transposed convolutions without a stride.
        shuffles: Whether the grid is one of pixel shuffles, which `equalized` and `fix` correct in place.
    """

    name: str
    model: nn.Module
    inputs: Tensor
    target: Tensor
    metric: str
    evaluate: Callable[[nn.Module, Tensor, Tensor], float]
    layers: tuple[str, ...]
    others: tuple[str, ...]
    shuffles: bool

    @property
    def distribution(self) -> str | None:
        """The distribution of a generator's inputs: there are as many as one wants."""
        return "normal" if self.name == "digits_generator" else None

    @property
    def is_sound(self) -> bool:
        """Whether the distance is a signal-to-noise ratio."""
        return self.target.dim() == 3 and self.target.shape[1] == 1

    def quality(self, model: nn.Module) -> float:
        """The fixture's own metric of a model."""
        return self.evaluate(model, self.inputs, self.target)

    def draw(self, count: int) -> list[tuple[Tensor]]:
        """Calibration inputs, in batches."""
        return [(batch,) for batch in _DRAWS[self.name](count).split(BATCH)]


def load(name: str) -> Case:
    """A fixture with its data."""
    entry = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))[name]
    script: Any = importlib.import_module(f"fixtures.train_{name}")
    module, _, builder = entry["builder"].partition(":")
    model: nn.Module = getattr(importlib.import_module(module), builder)()
    model.load_state_dict(load_file(FOLDER / entry["file"]))
    with np.load(FOLDER / entry["heldout"]["file"]) as arrays:
        [argument] = entry["inputs"]
        inputs, target = (torch.from_numpy(arrays[key]) for key in (argument, "target"))
    modules = dict(model.named_modules())
    found = {
        name: max(layer.stride) > 1
        for name, layer in modules.items()
        if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d))
    }
    shuffled = [
        name
        for name, follower in zip(modules, list(modules.values())[1:], strict=False)
        if isinstance(follower, nn.PixelShuffle)
    ]
    return Case(
        name=name,
        model=model.eval(),
        inputs=inputs,
        target=target,
        metric=entry["metric"],
        evaluate=script.evaluate,
        layers=(*(name for name, strided in found.items() if strided), *shuffled),
        others=tuple(name for name, strided in found.items() if not strided),
        shuffles=bool(shuffled),
    )
