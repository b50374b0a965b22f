"""Calibration inputs in files: read as data, cut to size, and refused in words."""

import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image
from torch import nn

from deconvfix.cli import samples as module
from deconvfix.cli.samples import CalibrationFiles, calibration_files
from deconvfix.cli.source import Source
from deconvfix.errors import OptionError
from tests.support.command import Net, arch, assert_fails_in_words, run, run_json, save

PICTURE = (1, 3, 8, 12)


def files(path, shape=None, **options):
    return CalibrationFiles(path, ("x",), shape, **options)


def read(path, shape=None, **options):
    """All batches, put together."""
    return np.concatenate([batch["x"] for batch in files(path, shape, **options)])


def refused(path, shape=PICTURE, **options):
    """The error for a file, which has four parts."""
    with pytest.raises(OptionError) as caught:
        list(files(path, shape, **options))
    error = caught.value
    assert all((error.where, error.found, error.needed, error.todo))
    return str(error)


# --- arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_come_in_batches_always_the_same(tmp_path, suffix):
    array = np.random.default_rng(0).random((19, 2, 3), np.float32)
    path = tmp_path / f"samples.{suffix}"
    if suffix == "npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, x=array, target=np.zeros(3))
    batches = [batch["x"] for batch in files(path)]
    assert [len(each) for each in batches] == [8, 8, 3]
    assert np.array_equal(np.concatenate(batches), array)
    assert np.array_equal(read(path), array)
    assert np.array_equal(read(path, most=5), array[:5])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_take_turns_with_arrays(tmp_path, world):
    array = np.random.default_rng(0).random((19, 2), np.float32)
    np.savez(tmp_path / "samples.npz", x=array)
    for rank in range(world):
        shared = read(tmp_path / "samples.npz", most=17, first=rank, step=world)
        assert np.array_equal(shared, array[:17][rank::world])


def test_a_process_without_a_sample_is_an_error(tmp_path):
    np.savez(tmp_path / "samples.npz", x=np.ones((2, 3)))
    with pytest.raises(OptionError, match="there are 2 samples for 3 processes"):
        read(tmp_path / "samples.npz", first=2, step=3)


def test_every_input_of_a_model_has_its_array(tmp_path):
    path = tmp_path / "two.npz"
    np.savez(path, x=np.ones((3, 2)), y=np.arange(3), other=np.zeros(1))
    [batch] = CalibrationFiles(path, ("x", "y"), None)
    assert {name: each.shape for name, each in batch.items()} == {"x": (3, 2), "y": (3,)}


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"y": np.ones(3)}, "no arrays of samples called x"),
        ({"x": np.float32(1)}, "no arrays of samples called x"),
        ({"x": np.ones((0, 3))}, "no arrays of samples called x"),
        ({"x": np.array(["a", "b"])}, "x is an array of <U1, not of numbers"),
        ({"x": np.array([{}], object)}, "pickle"),
    ],
    ids=["other name", "no axis", "empty", "words", "objects"],
)
def test_arrays_that_are_no_samples_are_refused(tmp_path, arrays, text):
    np.savez(tmp_path / "bad.npz", **arrays)
    assert text in refused(tmp_path / "bad.npz")


def test_inputs_of_different_lengths_are_refused(tmp_path):
    path = tmp_path / "two.npz"
    np.savez(path, x=np.ones((3, 2)), y=np.ones((4, 2)))
    with pytest.raises(OptionError, match="different numbers of samples: x has 3, y has 4"):
        list(CalibrationFiles(path, ("x", "y"), None))


def test_arrays_of_one_input_need_to_know_which(tmp_path):
    np.save(tmp_path / "samples.npy", np.ones((3, 2)))
    with pytest.raises(OptionError, match="2 inputs are described"):
        list(CalibrationFiles(tmp_path / "samples.npy", ("x", "y"), None))


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros(100_000))
    assert len(read(path, most=10**6)) == 100_000
    monkeypatch.setattr(module, "_MOST_BYTES", 700_000)
    assert "it unpacks to 800," in refused(path)


def test_a_header_that_promises_too_much_is_refused(tmp_path):
    """numpy.load takes memory for what a header says."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,)}"
    header += b" " * (117 - len(header)) + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    (tmp_path / "long.npy").write_bytes(content)
    refused(tmp_path / "long.npy")
    with zipfile.ZipFile(tmp_path / "long.npz", "w") as archive:
        archive.writestr("x.npy", content)
    refused(tmp_path / "long.npz")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x05\x06" + bytes(18)], ids=repr)
def test_files_that_hold_no_arrays_are_refused(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    assert "it cannot be read" in refused(tmp_path / "bad.npz")


# --- pictures -----------------------------------------------------------------------------------


def gradient(size, mode="RGB"):
    """Values from black to white, from left to right."""
    width, height = size
    row = np.linspace(0, 255, width).round().astype(np.uint8)
    return Image.fromarray(np.broadcast_to(row, (height, width)).copy()).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_pictures_of_every_mode_become_the_same_numbers(tmp_path, mode):
    """Two steps of 8 bits for the ways through other colour spaces; 1 bit is black or white."""
    picture = gradient((12, 8), "L" if mode == "I;16" else mode)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture, np.uint16) * 257)
        assert picture.mode == mode
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    picture.save(tmp_path / f"picture.{suffix}")
    got = read(tmp_path, PICTURE, most=1)
    assert (got.shape, got.dtype) == (PICTURE, np.float32)
    if mode == "1":
        assert set(np.unique(got)) == {0, 1}
        return
    want = np.broadcast_to(np.linspace(0, 1, 12), PICTURE)
    np.testing.assert_allclose(got, want, atol=2.5 / 255)


def test_pictures_are_cut_or_enlarged_to_the_input(tmp_path):
    """Also where rounding would make the enlarged picture a pixel too small."""
    for index, size in enumerate([(40, 30), (5, 30), (40, 3), (3, 7), (12, 8), (11, 23)]):
        gradient(size).save(tmp_path / f"{index}.png")
    (tmp_path / "folder.png").mkdir()
    gradient((9, 9), "L").save(tmp_path / "folder.png" / "deep.JPG")
    (tmp_path / "notes.txt").write_text("no picture")
    batches = list(files(tmp_path, PICTURE, most=16))
    assert [each["x"].shape for each in batches] == [(8, 3, 8, 12)] * 2
    assert np.array_equal(read(tmp_path, PICTURE), read(tmp_path, PICTURE))
    gray = read(tmp_path, (1, 1, 8, 12), most=4)
    assert gray.shape == (4, 1, 8, 12)


def test_processes_take_turns_with_pictures(tmp_path):
    """A sample is cut out at the same place, whichever process reads it."""
    for index, size in enumerate([(20, 16), (12, 30), (14, 14)]):
        gradient(size).save(tmp_path / f"{index}.png")
    alone = read(tmp_path, PICTURE, most=7)
    for rank in range(2):
        assert np.array_equal(read(tmp_path, PICTURE, most=7, first=rank, step=2), alone[rank::2])


def test_pictures_stay_as_they_are_where_no_size_is_described(tmp_path):
    gradient((12, 8)).save(tmp_path / "a.png")
    gradient((5, 6)).save(tmp_path / "b.png")
    assert [each["x"].shape for each in files(tmp_path)] == [(1, 3, 8, 12), (1, 3, 6, 5)]


def test_black_and_white_become_what_the_model_takes(tmp_path):
    gradient((12, 8)).save(tmp_path / "a.png")
    got = read(tmp_path, PICTURE, most=1, low=-1.0, high=1.0)
    assert (got.min(), got.max()) == (-1, 1)


def test_pictures_lie_the_way_their_camera_was_held(tmp_path):
    """Orientation 6: the first row of the file is the right edge."""
    picture = gradient((12, 8))
    exif = Image.Exif()
    exif[274] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    got = read(tmp_path)
    assert got.shape == (1, 3, 12, 8)
    assert (np.diff(got, axis=2) > 0).all()


def png_of(width, height):
    """The beginning of a PNG that claims a size."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


# Pillow warns at 89 million pixels and refuses twice as many: neither is opened.
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bombs_are_not_unpacked(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_of(side, side))
    assert "decompression bomb" in refused(tmp_path)


def test_narrow_pictures_are_not_enlarged_to_a_bomb(tmp_path):
    Image.new("L", (60_000, 1)).save(tmp_path / "line.png")
    assert "it is too narrow; enlarged, it would be" in refused(tmp_path, (1, 3, 512, 512))


@pytest.mark.parametrize(
    "content", [b"", b"hello", png_of(12, 8)[:40], b"\x89PNG\r\n\x1a\n"], ids=range(4)
)
def test_broken_pictures_are_refused(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    assert "broken.png: it cannot be read" in refused(tmp_path)


def test_pictures_without_a_white_are_refused(tmp_path):
    Image.fromarray(np.ones((8, 12), np.float32)).save(tmp_path / "float.tif")
    assert "its mode is F, which does not define what is white" in refused(tmp_path)


@pytest.mark.parametrize("shape", [(1, 4, 8, 12), (1, 48, 20), (1, 3, 4, 8, 12), (1, 10)])
def test_pictures_for_inputs_that_are_none_are_refused(tmp_path, shape):
    gradient((12, 8)).save(tmp_path / "a.png")
    assert f"the model's input is {shape}" in refused(tmp_path, shape)


# --- folders ------------------------------------------------------------------------------------


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    assert "it contains no picture and no sound" in refused(tmp_path)


def test_a_pipe_in_a_folder_is_not_opened(tmp_path):
    """It would wait for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png: it cannot be read (it is not a regular file)" in refused(tmp_path)


def test_links_inside_a_folder_are_followed_and_others_are_not(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    gradient((12, 8)).save(folder / "a.png")
    (folder / "b.png").symlink_to("a.png")
    assert len(read(folder)) == 2
    gradient((12, 8)).save(tmp_path / "private.png")
    (folder / "c.png").symlink_to("../private.png")
    assert "it is a link to a place outside of the folder" in refused(folder)


def test_links_that_lead_nowhere_are_refused(tmp_path):
    (tmp_path / "a.png").symlink_to("absent.png")
    (tmp_path / "b.png").symlink_to("b.png")
    assert "a.png: it cannot be read" in refused(tmp_path)


# --- sounds -------------------------------------------------------------------------------------


def sine(path, seconds=1.0, channels=1, rate=8000):
    t = np.arange(int(seconds * rate)) / rate
    one = 0.5 * np.sin(2 * np.pi * 440 * t)
    soundfile.write(path, np.stack([one] * channels, 1), rate)


def test_sounds_are_cut_repeated_and_mixed_to_the_input(tmp_path):
    sine(tmp_path / "long.wav")
    sine(tmp_path / "short.flac", 0.01)
    sine(tmp_path / "stereo.ogg", channels=2)
    got = read(tmp_path, (1, 1, 512), most=6)
    assert (got.shape, got.dtype) == ((6, 1, 512), np.float32)
    assert np.array_equal(got, read(tmp_path, (1, 1, 512), most=6))
    # A sine's rms is 0.5 / sqrt(2); ogg is lossy.
    rms = np.sqrt((got**2).mean((1, 2)))
    np.testing.assert_allclose(rms, 0.3536, rtol=0.1)
    assert not np.array_equal(got[0], got[3]), "another part of the long one"
    assert [each["x"].shape for each in files(tmp_path)][2] == (1, 2, 8000)


@pytest.mark.parametrize("content", [b"", b"RIFF and no more"], ids=repr)
def test_broken_sounds_are_refused(tmp_path, content):
    (tmp_path / "broken.wav").write_bytes(content)
    assert "broken.wav: it cannot be read" in refused(tmp_path, (1, 1, 64))


def test_silence_of_no_length_is_refused(tmp_path):
    sine(tmp_path / "empty.wav", 0)
    assert "it contains no sound" in refused(tmp_path, (1, 1, 64))


def test_endless_sounds_are_not_read_at_once(tmp_path, monkeypatch):
    sine(tmp_path / "long.wav")
    monkeypatch.setattr(module, "_MOST_PIXELS", 4000)
    assert "it has 8,000 samples, at most 4,000 are read" in refused(tmp_path, None)
    assert read(tmp_path, (1, 1, 64), most=1).shape == (1, 1, 64)


def test_sounds_for_inputs_that_are_none_are_refused(tmp_path):
    sine(tmp_path / "a.wav")
    assert "a sound gives an input of shape (N, C, T)" in refused(tmp_path, PICTURE)


# --- what the command line names ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "options", "text"),
    [
        ("absent", {}, "there is no file or folder 'absent'"),
        ("/dev/null", {}, "neither a regular file nor a folder"),
        (".", {"samples": 0}, "samples: the value is 0; at least 1 is needed"),
        (".", {"value_range": (0.0, float("nan"))}, "two different finite numbers"),
        (".", {"value_range": (1.0, 1.0)}, "two different finite numbers"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused(tmp_path, named, options, text):
    options = {"samples": 64, "value_range": (0.0, 1.0), **options}
    with pytest.raises(OptionError, match=text) as caught:
        calibration_files(Source(tmp_path / "net.pt", inputs=("x=1x3x8x12",)), named, **options)
    assert caught.value.todo


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(OptionError, match="neither a regular file nor a folder"):
        calibration_files(
            Source(tmp_path / "net.pt"),
            str(tmp_path / "pipe.npz"),
            samples=4,
            value_range=(0.0, 1.0),
        )


FIT = ("--to", "equalized", "--init", "calibrated", "--calibration")


class Gray(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 2, 4, stride=2, padding=1)

    def forward(self, x):
        return self.up(x)


def test_a_folder_of_pictures_calibrates_a_checkpoint(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        gradient((20 + index, 16)).save(folder / f"{index}.png")
    path = save(tmp_path, Gray())
    options = ("--arch", f"{__name__}:Gray", "--input", "x=1x1x8x8", *FIT, folder, "--samples", "6")
    report = run_json("convert", path, *options, "-o", tmp_path / "out.safetensors")
    assert report["fidelity"]["calibration_samples"] == 6


def test_arrays_get_the_dtype_of_the_model(tmp_path):
    """numpy makes float64, and models are float32."""
    path = save(tmp_path)
    np.savez(tmp_path / "samples.npz", x=np.random.default_rng(0).random((9, 2, 5, 6)))
    options = (*arch("Net"), "--input", "x=1x2x5x6", *FIT, tmp_path / "samples.npz")
    report = run_json("convert", path, *options, "-o", tmp_path / "out.safetensors")
    assert report["fidelity"]["calibration_samples"] == 9
    assert report["ok"]


@pytest.mark.parametrize("shape", [(9, 3, 5, 6), (9, 2), (9,)])
def test_arrays_that_the_model_does_not_take_are_told_in_words(tmp_path, shape):
    path = save(tmp_path, Net())
    np.savez(tmp_path / "samples.npz", x=np.ones(shape, np.float32))
    options = (*arch("Net"), "--input", "x=1x2x5x6", *FIT, tmp_path / "samples.npz")
    result = run("convert", path, *options, "-o", tmp_path / "out.safetensors")
    assert_fails_in_words(result, "cannot be run on inputs of shapes")
    assert not (tmp_path / "out.safetensors").exists()
