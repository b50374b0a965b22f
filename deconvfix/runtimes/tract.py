"""tract, an inference library in Rust, through its Python package."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.runtimes.base import Feed, Run, Runtime

__all__ = ["Tract"]


class Tract(Runtime):
    """The sizes of the inputs are set before its analysis, as its own command does it.

    Sizes that the file stores for values inside are left out: where they are names, they contradict numbers.
    """

    title = "tract"
    modules = ("tract",)
    install = "pip install 'deconvfix[tract]'"
    fixed_sizes = True

    def version(self) -> str:
        """Of the library."""
        import tract

        return str(tract.version())

    def load(
        self, path: str, example: Feed, outputs: tuple[str, ...], threads: int | None = None
    ) -> Run:
        """See `Runtime.load`."""
        import onnx
        import tract

        if threads is not None and threads > 1:
            raise RuntimeError("its Python package runs on one thread")
        proto = onnx.load(path)
        del proto.graph.value_info[:]
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "model.onnx")
            onnx.save(proto, file)
            model = tract.onnx().load(file)
        names = [model.input_name(index) for index in range(model.input_count())]
        for index, name in enumerate(names):
            array = example[name]
            model.set_input_fact(index, ",".join([*map(str, array.shape), _dtype(array)]))
        for index in range(model.output_count()):
            model.set_output_fact(index, None)  # what the file declares may be wrong or open
        model.analyse()
        runnable = model.into_model().into_runnable()

        def run(feed: Feed) -> list[NDArray[Any]]:
            arrays = [np.ascontiguousarray(feed[name]) for name in names]
            return [output.to_numpy() for output in runnable.run(arrays)]

        return run


def _dtype(array: NDArray[Any]) -> str:
    """As tract writes it: f32, i64, u8, bool."""
    found = re.fullmatch(r"(float|int|uint)(\d+)", str(array.dtype))
    return f"{found[1][0]}{found[2]}" if found else str(array.dtype)
