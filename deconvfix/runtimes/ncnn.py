"""ncnn, through pnnx, its converter of ONNX files."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.runtimes.base import Clock, Feed, Run, Runtime, clock_of, program
from deconvfix.runtimes.process import heard

__all__ = ["Ncnn"]


class Ncnn(Runtime):
    """In float32, by default on one thread; its maps have channels and space, and no batch."""

    title = "ncnn"
    modules = ("ncnn", "pnnx")
    install = "pip install 'deconvfix[ncnn]'"
    fixed_sizes = True
    batches = False

    def version(self) -> str:
        """Of the library."""
        import ncnn

        return str(ncnn.__version__)

    def load(
        self, path: str, example: Feed, outputs: tuple[str, ...], threads: int | None = None
    ) -> Run:
        """See `Runtime.load`."""
        names, net = list(example), _net(path, example, threads)

        def run(feed: Feed) -> list[NDArray[Any]]:
            if any(feed[name].shape[0] != 1 for name in names):
                raise RuntimeError("it takes one sample at a time")
            mats = [_mat(feed[name]) for name in names]
            with heard() as said:
                found = _extracted(net, mats, len(outputs))
            if any(status for status, _ in found):
                raise RuntimeError(f"it does not run it: {said()}")
            return [np.array(result)[np.newaxis] for _, result in found]

        return run

    def clock(self, path: str, feed: Feed, outputs: tuple[str, ...], threads: int) -> Clock:
        """See `Runtime.clock`: what it writes is not listened to, and nothing is copied."""
        net, mats = _net(path, feed, threads), [_mat(array) for array in feed.values()]

        def run() -> None:
            if any(status for status, _ in _extracted(net, mats, len(outputs))):
                raise RuntimeError("it does not run it")

        return clock_of(run, threads)


def _mat(array: NDArray[Any]) -> Any:
    import ncnn

    return ncnn.Mat(np.ascontiguousarray(array[0])).clone()


def _extracted(net: Any, mats: list[Any], outputs: int) -> list[tuple[int, Any]]:
    """Status and values of each output."""
    extractor = net.create_extractor()
    for index, mat in enumerate(mats):
        extractor.input(f"in{index}", mat)
    return [extractor.extract(f"out{index}") for index in range(outputs)]


def _net(path: str, example: Feed, threads: int | None) -> Any:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads or 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _convert(path, example, folder)
        with heard() as said:
            failed = net.load_param(str(folder / "model.ncnn.param")) or net.load_model(
                str(folder / "model.ncnn.bin")
            )
        if failed:
            raise RuntimeError(f"it does not load what pnnx makes of it: {said()}")
    return net


def _convert(path: str, example: Feed, folder: Path) -> None:
    """Writes model.ncnn.param and model.ncnn.bin into a folder."""
    specification = importlib.util.find_spec("pnnx")
    assert specification is not None
    [home] = specification.submodule_search_locations or [""]
    # pnnx writes beside its input. Importing the package would import torch.
    shutil.copyfile(path, folder / "model.onnx")
    shapes = [f"[{','.join(map(str, array.shape))}]{_dtype(array)}" for array in example.values()]
    command = [str(Path(home) / "pnnx"), "model.onnx", f"inputshape={','.join(shapes)}", "fp16=0"]
    done = program(command, folder)
    if done.returncode or not (folder / "model.ncnn.bin").is_file():
        last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-3:]
        raise RuntimeError(f"pnnx ends with {done.returncode}: {'; '.join(last)}")


def _dtype(array: NDArray[Any]) -> str:
    """As pnnx writes it: f32, i64, u8."""
    return f"{array.dtype.kind}{8 * array.dtype.itemsize}"
