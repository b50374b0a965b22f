"""Calibration inputs in files: arrays, pictures, sounds. Read as data, one batch at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from deconvfix.errors import OptionError
from deconvfix.source import Described, Source

__all__ = ["DISTRIBUTIONS", "CalibrationFiles", "calibration_files"]

DISTRIBUTIONS = ("normal", "uniform")
_PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_SOUNDS = (".flac", ".mp3", ".ogg", ".wav")
_BATCH = 8
Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class CalibrationFiles:
    """Batches of named arrays that can be read again and again.

    Attributes:
        path: A .npz file (an array for each input), a .npy file (of the only input), or a folder of
            pictures or sounds.
        names: Names of the model's inputs, as far as they were described.
        shape: What a picture (1, C, H, W) or a sound (1, C, T) is cut to; None leaves it as it is.
        low: What black (or silence's lower end) becomes.
        high: What white becomes.
        most: So many samples are read.
    """

    path: Path
    names: tuple[str, ...]
    shape: tuple[int, ...] | None
    low: float = 0.0
    high: float = 1.0
    most: int = 64

    def __iter__(self) -> Iterator[Batch]:
        """One batch after the other, always the same.

        Raises:
            OptionError: If a file cannot be read.
        """
        if self.path.is_dir():
            yield from self._samples()
            return
        arrays = self._arrays()
        count = min(self.most, *(len(each) for each in arrays.values()))
        for start in range(0, count, _BATCH):
            yield {name: each[start : min(start + _BATCH, count)] for name, each in arrays.items()}

    def _arrays(self) -> Batch:
        try:
            with open(self.path, "rb") as file:
                loaded = np.load(file, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    return {self._only_name(): loaded}
                with loaded:
                    arrays = {name: np.array(loaded[name]) for name in loaded.files}
        except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
            raise _unreadable(self.path, str(error)) from error
        arrays = {
            name: each for name, each in arrays.items() if not self.names or name in self.names
        }
        if not arrays or any(each.ndim == 0 for each in arrays.values()):
            raise _unreadable(
                self.path, f"it has no arrays of samples called {', '.join(self.names)}"
            )
        return arrays

    def _samples(self) -> Iterator[Batch]:
        files = sorted(
            each for each in self.path.rglob("*") if each.suffix.lower() in (*_PICTURES, *_SOUNDS)
        )[: self.most]
        if not files:
            raise _unreadable(self.path, "there is no picture and no sound in it")
        name = self._only_name()
        rng = np.random.default_rng(0)
        # Where samples are cut out, a large picture gives more than one.
        count = len(files) if self.shape is None else self.most
        chosen = iter(itertools.islice(itertools.cycle(files), count))
        while batch := list(itertools.islice(chosen, 1 if self.shape is None else _BATCH)):
            yield {name: np.concatenate([self._sample(file, rng) for file in batch])}

    def _sample(self, file: Path, rng: np.random.Generator) -> NDArray[np.float32]:
        if file.suffix.lower() in _SOUNDS:
            return _sound(file, self.shape, rng).astype(np.float32)
        picture = self.low + (self.high - self.low) * _picture(file, self.shape, rng)
        return picture.astype(np.float32)

    def _only_name(self) -> str:
        if len(self.names) != 1:
            raise OptionError(
                "calibration",
                f"{self.path} has samples of one input, and {len(self.names)} inputs are described",
                "it must be clear which input they are for",
                "Describe that input with --input NAME=SHAPE, or give a .npz file of named arrays",
            )
        return self.names[0]


def calibration_files(
    source: Source, named: str, *, samples: int, value_range: tuple[float, float]
) -> CalibrationFiles | str:
    """What --calibration names: a distribution, or files.

    Raises:
        OptionError: If there are no such files.
    """
    if named in DISTRIBUTIONS:
        return named
    path = Path(named)
    if not path.exists():
        raise OptionError(
            "calibration",
            f"there is no file or folder {named!r}",
            f"samples are needed, or one of {', '.join(DISTRIBUTIONS)}",
            "Give a .npz or .npy file, or a folder of pictures or sounds",
        )
    described: Sequence[Described] = source.described()
    names = tuple(each.name for each in described) or tuple(source.stored())
    shape = described[0].shape if len(described) == 1 else None
    return CalibrationFiles(path, names, shape, *value_range, most=samples)


def _picture(
    path: Path, shape: tuple[int, ...] | None, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(1, C, H, W) in [0, 1]; enlarged if it is smaller than `shape`, and cut to it at random."""
    try:
        from PIL import Image
    except ImportError as error:
        raise _missing("pictures", "pillow") from error
    channels = 3 if shape is None else shape[1]
    try:
        with Image.open(path) as opened:
            picture = opened.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, str(error)) from error
    if shape is not None:
        height, width = shape[2:]
        factor = max(height / picture.height, width / picture.width, 1.0)
        size = (round(picture.width * factor), round(picture.height * factor))
        if factor > 1:
            picture = picture.resize(size)
    array = np.asarray(picture, np.float64) / 255
    array = array[None, None] if array.ndim == 2 else array.transpose(2, 0, 1)[None]
    return array if shape is None else _cut(array, shape[2:], rng)


def _sound(
    path: Path, shape: tuple[int, ...] | None, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(1, C, T) in [-1, 1], repeated if it is shorter than `shape`, and cut to it at random."""
    try:
        import soundfile
    except ImportError as error:
        raise _missing("sounds", "soundfile") from error
    read: Callable[..., Any] = soundfile.read
    try:
        samples, _ = read(path, dtype="float64", always_2d=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    array: NDArray[np.float64] = samples.T[None]
    if shape is None:
        return array
    if shape[1] != array.shape[1]:
        array = np.repeat(array.mean(1, keepdims=True), shape[1], 1)
    if array.shape[2] < shape[2]:
        array = np.tile(array, (1, 1, -(-shape[2] // array.shape[2])))
    return _cut(array, shape[2:], rng)


def _cut(
    array: NDArray[np.float64], size: Sequence[int], rng: np.random.Generator
) -> NDArray[np.float64]:
    begins = [
        int(rng.integers(0, have - want + 1))
        for have, want in zip(array.shape[2:], size, strict=True)
    ]
    window: tuple[Any, ...] = tuple(
        slice(b, b + want) for b, want in zip(begins, size, strict=True)
    )
    return array[(..., *window)]


def _unreadable(path: Path, reason: str) -> OptionError:
    return OptionError(
        str(path),
        f"it cannot be read ({reason})",
        "samples to calibrate on are needed",
        "Give a .npz or .npy file with a first axis of samples, or a folder of pictures or sounds",
    )


def _missing(what: str, package: str) -> OptionError:
    return OptionError(
        "calibration",
        f"the package {package} is not installed",
        f"it reads {what}",
        "Install deconvfix[media]",
    )
