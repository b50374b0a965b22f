"""Runtimes that are ONNX Runtime with a fault, for the checks that must see it."""

import os
import re
import signal
import subprocess
import time

import numpy as np

from deconvfix.parity.worker import prepare
from deconvfix.runtimes.base import Runtime
from deconvfix.runtimes.onnxruntime import OnnxRuntime


class Fake(Runtime):
    """ONNX Runtime, with `distorted` applied to what it gives."""

    title = "Fake"
    modules = ()
    install = "pip install fake"

    def version(self):
        return "1.2"

    def load(self, path, example, outputs, threads=None):
        run = OnnxRuntime().load(path, example, outputs, threads)
        return lambda feed: self.distorted(path, run(feed))

    def distorted(self, path, outputs):
        return outputs


class Reordered(Fake):
    """Off by a few roundings of each output's size, as another order of summation is."""

    def distorted(self, path, outputs):
        rng = np.random.default_rng(0)
        eps = np.finfo(np.float32).eps
        return [
            (y + 4 * eps * np.abs(y).max() * rng.uniform(-1, 1, y.shape)).astype(y.dtype)
            for y in outputs
        ]


class Half(Fake):
    """Outputs rounded to float16."""

    def distorted(self, path, outputs):
        return [y.astype(np.float16).astype(y.dtype) for y in outputs]


class Shifted(Fake):
    """All values one pixel further."""

    def distorted(self, path, outputs):
        return [np.roll(y, 1, axis=-1) for y in outputs]


class LastPixel(Fake):
    """One wrong value among all."""

    def distorted(self, path, outputs):
        outputs = [y.copy() for y in outputs]
        outputs[0].reshape(-1)[-1] += 0.01
        return outputs


class NotANumber(Fake):
    def distorted(self, path, outputs):
        return [np.full_like(y, np.nan) for y in outputs]


class Cropped(Fake):
    def distorted(self, path, outputs):
        return [y[..., :-1] for y in outputs]


class Twice(Fake):
    """One output too many."""

    def distorted(self, path, outputs):
        return [*outputs, *outputs]


class WrongOriginal(Fake):
    """Every ConvTranspose wrong, without an error."""

    def distorted(self, path, outputs):
        return [y + 1 for y in outputs] if has_layer(path) else outputs


class Unlike(Fake):
    """Every file wrong, and a ConvTranspose otherwise."""

    def distorted(self, path, outputs):
        off = 1 if has_layer(path) else 2
        return [y + off for y in outputs]


class OtherSizesWrong(Fake):
    """Right for the sizes that the file was loaded with, and wrong for all others."""

    def load(self, path, example, outputs, threads=None):
        run = super().load(path, example, outputs, threads)
        shapes = {name: array.shape for name, array in example.items()}

        def run_checked(feed):
            same = {name: array.shape for name, array in feed.items()} == shapes
            return run(feed) if same else [y + 1 for y in run(feed)]

        return run_checked


class LoadedAnew(OtherSizesWrong):
    """The same, loaded anew for other sizes: right."""

    fixed_sizes = True


class OneSample(Fake):
    """Without a batch."""

    batches = False

    def load(self, path, example, outputs, threads=None):
        run = super().load(path, example, outputs, threads)

        def run_checked(feed):
            assert all(array.shape[0] == 1 for array in feed.values()), "one sample"
            return run(feed)

        return run_checked


class Refuses(Fake):
    def load(self, path, example, outputs, threads=None):
        raise ValueError("\x1b[31mopset 17\nis too new")


class FailsToRun(Fake):
    def distorted(self, path, outputs):
        raise RuntimeError("rank 5 is not implemented")


class Dies(Fake):
    def distorted(self, path, outputs):
        os.kill(os.getpid(), signal.SIGSEGV)


class Hangs(Fake):
    def distorted(self, path, outputs):
        time.sleep(1000)


class Sleeps(Fake):
    """As many milliseconds as the end of the file's name says, and nothing else."""

    def load(self, path, example, outputs, threads=None):
        seconds = int(re.findall(r"\d+", path)[-1]) / 1e3

        def run(feed):
            time.sleep(seconds)
            return []

        return run


class DiesOfLayers(Fake):
    """Of every ConvTranspose."""

    def distorted(self, path, outputs):
        if has_layer(path):
            os.kill(os.getpid(), signal.SIGSEGV)
        return outputs


class RefusesLayers(Fake):
    def load(self, path, example, outputs, threads=None):
        if has_layer(path):
            raise ValueError("opset 17 is too new")
        return super().load(path, example, outputs, threads)


class Clocked(Fake):
    """As many milliseconds as `milliseconds` says of what is in a file, without any noise."""

    def clock(self, path, feed, outputs, threads):
        with open(path, "rb") as file:
            milliseconds = self.milliseconds(file.read())
        return lambda runs: runs * milliseconds / 1e3

    def milliseconds(self, content):
        raise NotImplementedError


class FastDcr(Clocked):
    """DepthToSpace of mode DCR is fast, and every other writing slow."""

    def milliseconds(self, content):
        return 5 if b"DCR" in content else 20 if is_written(content) else 10


class WrongDcr(FastDcr):
    """The same, and DCR is wrong."""

    def distorted(self, path, outputs):
        with open(path, "rb") as file:
            return [y + (b"DCR" in file.read()) for y in outputs]


class WrongCrd(Fake):
    def distorted(self, path, outputs):
        with open(path, "rb") as file:
            return [y + (b"CRD" in file.read()) for y in outputs]


class DeadlyDcr(FastDcr):
    """The same, and DCR ends the process when it is timed."""

    def milliseconds(self, content):
        if b"DCR" in content:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().milliseconds(content)


class SlowAsWhole(FastDcr):
    """The same, but what has a Relu beside a convolution takes long."""

    def milliseconds(self, content):
        slow = is_written(content) and b"Relu" in content
        return 40 if slow else super().milliseconds(content)


class RefusesWhole(FastDcr):
    """The same, but what has a Relu beside a convolution is refused."""

    def milliseconds(self, content):
        if is_written(content) and b"Relu" in content:
            raise ValueError("too much at once")
        return super().milliseconds(content)


class SlowWritings(Clocked):
    def milliseconds(self, content):
        return 12 if is_written(content) else 10


class Noisy(Clocked):
    """All take the same time, give or take a fifth."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def milliseconds(self, content):
        return 10

    def clock(self, path, feed, outputs, threads):
        return lambda runs: runs * 1e-2 * self.rng.uniform(0.8, 1.2)


class WrongLayers(FastDcr):
    """Every ConvTranspose wrong, and fast; DCR is wrong, too."""

    def milliseconds(self, content):
        return 1 if not is_written(content) else 15 if b"Split" in content else 20

    def distorted(self, path, outputs):
        with open(path, "rb") as file:
            content = file.read()
        return [y + (not is_written(content) or b"DCR" in content) for y in outputs]


class WrongWritings(Fake):
    """Everything that has a convolution."""

    def distorted(self, path, outputs):
        with open(path, "rb") as file:
            written = is_written(file.read())
        return [y + written for y in outputs]


class Spawns(Fake):
    """Hangs in a process of its own, as a converter may."""

    def distorted(self, path, outputs):
        subprocess.run(["sleep", "1000"], preexec_fn=prepare, check=True)


class NotInstalled(Fake):
    modules = ("there_is_no_such_package",)


def has_layer(path):
    """Whether a file holds a ConvTranspose."""
    with open(path, "rb") as file:
        return b"ConvTranspose" in file.read()


def is_written(content):
    """Whether the bytes of a file hold the operator Conv: a length, and the name."""
    return b"\x04Conv" in content


NAMES = {
    kind.__name__: f"{__name__}:{kind.__name__}"
    for kind in (
        Cropped, DeadlyDcr, Dies, DiesOfLayers, FailsToRun, Fake, FastDcr, Half, Hangs, LastPixel, LoadedAnew,
        Noisy, NotANumber, NotInstalled, OneSample, OtherSizesWrong, Refuses, RefusesLayers, RefusesWhole,
        Reordered, Shifted, Sleeps, SlowAsWhole, SlowWritings, Spawns, Twice, Unlike, WrongCrd, WrongDcr,
        WrongLayers, WrongOriginal, WrongWritings,
    )
}  # fmt: skip
