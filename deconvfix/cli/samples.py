"""Calibration inputs in files: arrays, pictures, sounds. Read as data, one batch at a time."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from deconvfix.cli.source import Described, Source
from deconvfix.errors import OptionError
from deconvfix.files import note_read
from deconvfix.frontends.samples import DISTRIBUTIONS

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["CalibrationFiles", "calibration_files"]

_PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_SOUNDS = (".flac", ".mp3", ".ogg", ".wav")
_BATCH = 8
# Of one picture (Pillow itself refuses twice as many), of one sound, and of all arrays unpacked.
_MOST_PIXELS = 2**27
_MOST_BYTES = 2**32
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
        first: The first of them that is this process's, where several share them.
        step: Every so many from there on.
    """

    path: Path
    names: tuple[str, ...]
    shape: tuple[int, ...] | None
    low: float = 0.0
    high: float = 1.0
    most: int = 64
    first: int = 0
    step: int = 1

    def __iter__(self) -> Iterator[Batch]:
        """One batch after the other, always the same.

        Raises:
            OptionError: If a file cannot be read.
        """
        if self.path.is_dir():
            yield from self._samples()
            return
        arrays = self._arrays()
        count = min([self.most, *(len(array) for array in arrays.values())])
        self._check_share(count)
        shared = {name: array[self.first : count : self.step] for name, array in arrays.items()}
        for start in range(0, -(-(count - self.first) // self.step), _BATCH):
            yield {name: array[start : start + _BATCH] for name, array in shared.items()}

    def _check_share(self, count: int) -> None:
        if count <= self.first:
            raise OptionError(
                "calibration",
                f"there are {count} samples for {self.step} processes",
                "each process needs at least one",
                "Use fewer processes, or give more samples",
            )

    def _arrays(self) -> Batch:
        note_read(self.path)
        try:
            with open(self.path, "rb") as file:
                _check_archive(file)
                loaded = np.load(file, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    arrays = {self._only_name(): loaded}
                else:
                    with loaded:
                        arrays = {
                            name: np.asarray(loaded[name])
                            for name in loaded.files
                            if not self.names or name in self.names
                        }
        except (
            OSError,
            ValueError,
            TypeError,
            EOFError,
            MemoryError,
            NotImplementedError,
            BadZipFile,
            zlib.error,
        ) as error:
            raise _unreadable(self.path, str(error) or type(error).__name__) from error
        # One sample of each input after the other: their numbers must agree.
        counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if not counts or not all(counts.values()):
            called = f" called {', '.join(self.names)}" if self.names else ""
            raise _unreadable(self.path, f"it has no arrays of samples{called}")
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise _unreadable(self.path, f"its arrays have different numbers of samples: {listed}")
        for name, array in arrays.items():
            if array.dtype.kind not in "fiubc":
                raise _unreadable(self.path, f"{name} is an array of {array.dtype}, not of numbers")
        return arrays

    def _samples(self) -> Iterator[Batch]:
        # In the order of their names, so that the same samples are read each time.
        files = sorted(
            path
            for path in self.path.rglob("*")
            if path.suffix.lower() in (*_PICTURES, *_SOUNDS) and not path.is_dir()
        )[: self.most]
        for path in files:
            _check_member(path, self.path)
            note_read(path)
        if not files:
            raise _unreadable(self.path, "it contains no picture and no sound")
        name = self._only_name()
        # Where samples are cut out, a large picture gives more than one.
        count = len(files) if self.shape is None else self.most
        self._check_share(count)
        chosen = iter(range(self.first, count, self.step))
        while batch := list(itertools.islice(chosen, 1 if self.shape is None else _BATCH)):
            yield {name: np.concatenate([self._sample(files[n % len(files)], n) for n in batch])}

    def _sample(self, file: Path, number: int) -> NDArray[np.float32]:
        rng = np.random.default_rng(number)  # of its own: the same sample in any process
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
    source: Source,
    named: str,
    *,
    samples: int,
    value_range: tuple[float, float],
    share: tuple[int, int] = (0, 1),
) -> CalibrationFiles | str:
    """What --calibration names: a distribution, or files.

    Args:
        source: Describes the model's inputs.
        named: What was typed.
        samples: How many are read, by all processes together.
        value_range: What black and white become.
        share: Number of this process, and of all, which take turns with the samples.

    Raises:
        OptionError: If there are no such files.
    """
    if named in DISTRIBUTIONS:
        return named
    if samples < 1:
        raise OptionError(
            "samples", f"the value is {samples}", "at least 1 is needed", "64 or more are better"
        )
    if not all(map(math.isfinite, value_range)) or value_range[0] == value_range[1]:
        raise OptionError(
            "value-range",
            f"black becomes {value_range[0]:g} and white {value_range[1]:g}",
            "two different finite numbers are needed",
            "Give what the model was trained on, for example 0 1 or -1 1",
        )
    path = Path(named)
    if path.exists() and not (path.is_dir() or path.is_file()):
        raise _unreadable(path, "it is neither a regular file nor a folder")
    if not path.exists():
        raise OptionError(
            "calibration",
            f"there is no file or folder {named!r}",
            f"samples are needed, or one of {', '.join(DISTRIBUTIONS)}",
            "Give a .npz or .npy file, or a folder of pictures or sounds",
        )
    described: Sequence[Described] = source.described()
    names = tuple(member.name for member in described) or tuple(source.stored())
    shape = described[0].shape if len(described) == 1 else None
    return CalibrationFiles(path, names, shape, *value_range, samples, *share)


def _check_archive(file: IO[bytes]) -> None:
    """Refuses a .npz file whose arrays would not fit into memory: a few bytes can unpack to anything."""
    packed = zipfile.is_zipfile(file)
    file.seek(0)
    if packed:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        file.seek(0)
        if size > _MOST_BYTES:
            raise ValueError(f"it unpacks to {size:,} bytes, at most {_MOST_BYTES:,} are read")


def _check_member(path: Path, folder: Path) -> None:
    """A folder of samples is data: no link leads out of it, and nothing is read that never ends.

    Raises:
        OptionError: If it is not a regular file in the folder.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise _unreadable(path, "it is a link to a place outside of the folder")
    if not path.is_file():
        raise _unreadable(path, "it is not a regular file")


def _picture(
    path: Path, shape: tuple[int, ...] | None, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(1, C, H, W) in [0, 1]; enlarged if it is smaller than `shape`, and cut to it at random."""
    if shape is not None and (len(shape) != 4 or shape[1] not in (1, 3)):
        raise _unfit(path, "a picture", "(N, 1, H, W) or (N, 3, H, W)", shape)
    status = path.stat()
    stamp = (status.st_mtime_ns, status.st_size)
    picture = _decoded(path, shape is not None and shape[1] == 1, stamp)
    if shape is not None:
        height, width = shape[2:]
        factor = max(height / picture.height, width / picture.width, 1.0)
        # Rounded up: what is cut out must fit in.
        size = (math.ceil(picture.width * factor), math.ceil(picture.height * factor))
        if factor > 1 and math.prod(size) > _MOST_PIXELS:
            raise _unreadable(
                path, f"it is too narrow; enlarged, it would be {size[0]} x {size[1]}"
            )
        if factor > 1:
            picture = picture.resize(size)
    array: NDArray[Any] = np.asarray(picture)
    array = array[None, None] if array.ndim == 2 else array.transpose(2, 0, 1)[None]
    # Cut first: a large picture in float64 would need gigabytes.
    return (array if shape is None else _cut(array, shape[2:], rng)) / 255.0


# Many samples are cut out of a large picture, and decoding it takes longer than all of them.
@functools.lru_cache(maxsize=2)
def _decoded(path: Path, gray: bool, stamp: tuple[int, int]) -> Image.Image:
    """The picture, in colours or gray, the right way up; nothing writes into it.

    Args:
        path: The file.
        gray: Whether one channel is wanted.
        stamp: Changes when the file does.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise _missing("pictures", "pillow") from error
    try:
        with warnings.catch_warnings():
            # Pillow only warns of pictures that are large enough to be a trap.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                picture = _eight_bits(opened, gray=gray)
                picture = ImageOps.exif_transpose(picture)
    except (
        *(OSError, ValueError, SyntaxError, MemoryError),
        *(Image.DecompressionBombError, Image.DecompressionBombWarning),
    ) as error:
        raise _unreadable(path, str(error) or type(error).__name__) from error
    return picture


def _eight_bits(picture: Image.Image, *, gray: bool) -> Image.Image:
    """In colours or gray; Pillow clips 16 bits at 255 instead of scaling them.

    Raises:
        ValueError: If nothing says what is white.
    """
    from PIL import Image

    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        scaled = (np.asarray(picture, np.float64) / 257).round().astype(np.uint8)
        exif = picture.getexif()
        picture = Image.fromarray(scaled)
        picture.getexif().update(exif)
    if picture.mode in ("I", "F"):
        raise ValueError(f"its mode is {picture.mode}, which does not define what is white")
    return picture.convert("L" if gray else "RGB")


def _sound(
    path: Path, shape: tuple[int, ...] | None, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(1, C, T) in [-1, 1], repeated if it is shorter than `shape`, and cut to it at random."""
    try:
        import soundfile
    except ImportError as error:
        raise _missing("sounds", "soundfile") from error
    if shape is not None and len(shape) != 3:
        raise _unfit(path, "a sound", "(N, C, T)", shape)
    opening: Callable[..., Any] = soundfile.SoundFile
    try:
        with opening(path) as sound:
            length = int(sound.frames)
            if shape is not None and length > shape[2]:
                sound.seek(int(rng.integers(0, length - shape[2] + 1)))
                length = shape[2]
            if length * sound.channels > _MOST_PIXELS:
                raise ValueError(f"it has {length:,} samples, at most {_MOST_PIXELS:,} are read")
            samples = sound.read(length, dtype="float64", always_2d=True)
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        raise _unreadable(path, str(error)) from error
    if not len(samples):
        raise _unreadable(path, "it contains no sound")
    array: NDArray[np.float64] = samples.T[None]
    if shape is None:
        return array
    if shape[1] != array.shape[1]:
        array = np.repeat(array.mean(1, keepdims=True), shape[1], 1)
    if array.shape[2] < shape[2]:
        array = np.tile(array, (1, 1, -(-shape[2] // array.shape[2])))
    return _cut(array, shape[2:], rng)


def _cut(array: NDArray[Any], size: Sequence[int], rng: np.random.Generator) -> NDArray[Any]:
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


def _unfit(path: Path, kind: str, given: str, shape: tuple[int, ...]) -> OptionError:
    return OptionError(
        str(path),
        f"{kind} gives an input of shape {given}, and the model's input is {shape}",
        "calibration samples must have the shape of the model's input",
        "Give a .npz or .npy file of such arrays",
    )


def _missing(what: str, package: str) -> OptionError:
    return OptionError(
        "calibration",
        f"the package {package} is not installed",
        f"it reads {what}",
        "Install deconvfix[media]",
    )
