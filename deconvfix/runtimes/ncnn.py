"""ncnn, through pnnx, its converter of ONNX files."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.runtimes.base import Feed, Run, Runtime, program
from deconvfix.runtimes.process import heard

__all__ = ["Ncnn"]


class Ncnn(Runtime):
    """In float32, on one thread; its maps have channels and space, and no batch."""

    title = "ncnn"
    modules = ("ncnn", "pnnx")
    install = "pip install 'deconvfix[ncnn]'"
    fixed_sizes = True
    batches = False

    def version(self) -> str:
        """Of the library."""
        import ncnn

        return str(ncnn.__version__)

    def load(self, path: str, example: Feed, outputs: tuple[str, ...]) -> Run:
        """See `Runtime.load`."""
        import ncnn

        net = ncnn.Net()
        net.opt.num_threads = 1
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
        names = list(example)

        def run(feed: Feed) -> list[NDArray[Any]]:
            if any(feed[name].shape[0] != 1 for name in names):
                raise RuntimeError("it takes one sample at a time")
            extractor = net.create_extractor()
            with heard() as said:
                for index, name in enumerate(names):
                    array = np.ascontiguousarray(feed[name][0])
                    extractor.input(f"in{index}", ncnn.Mat(array).clone())
                found = [extractor.extract(f"out{index}") for index in range(len(outputs))]
            if any(status for status, _ in found):
                raise RuntimeError(f"it does not run it: {said()}")
            return [np.array(result)[np.newaxis] for _, result in found]

        return run


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
