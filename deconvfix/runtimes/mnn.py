"""MNN, through its converter and its module interface."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.runtimes.base import Feed, Run, Runtime
from deconvfix.runtimes.process import heard

__all__ = ["Mnn"]

_CPU = {"backend": "CPU", "numThread": 1, "precision": "high"}
# The hint's number in MNN's header HintMode. By default its tiles are so large that 3x3 convolutions are off
# by 4e-3 of their output's size.
_WINOGRAD_MEMORY_LEVEL = 3


class Mnn(Runtime):
    """Float32 throughout, on one thread, with the smallest tiles of Winograd's algorithm.

    The converter is called as a library: the command `mnnconvert` installs packages by itself.
    """

    title = "MNN"
    modules = ("MNN",)
    install = "pip install 'deconvfix[mnn]'"

    def version(self) -> str:
        """Of the library."""
        import MNN

        return str(MNN.version())

    def load(self, path: str, example: Feed, outputs: tuple[str, ...]) -> Run:
        """See `Runtime.load`."""
        import _tools
        import MNN

        names = list(example)
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "model.mnn")
            command = ["mnnconvert", "-f", "ONNX", "--modelFile", path, "--MNNModel", file]
            with heard() as said:
                _tools.mnnconvert([*command, "--bizCode", "deconvfix"])
            if not Path(file).is_file():
                raise RuntimeError(f"its converter does not convert it: {said()}")
            manager = MNN.nn.create_runtime_manager((_CPU,))
            manager.set_hint(_WINOGRAD_MEMORY_LEVEL, 0)
            module = MNN.nn.load_module_from_file(
                file, names, list(outputs), runtime_manager=manager
            )

        def run(feed: Feed) -> list[NDArray[Any]]:
            arrays = [np.ascontiguousarray(feed[name]) for name in names]
            given = [MNN.expr.const(one, list(one.shape), MNN.expr.NCHW) for one in arrays]
            with heard() as said:
                results = module.forward(given)
                results = results if isinstance(results, (list, tuple)) else [results]
                found = [np.array(MNN.expr.convert(one, MNN.expr.NCHW).read()) for one in results]
            if any(array.size == 0 for array in found):
                raise RuntimeError(f"it gives nothing: {said()}")
            return found

        return run
