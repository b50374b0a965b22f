"""MNN, through its converter and its module interface."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.runtimes.base import Clock, Feed, Run, Runtime, clock_of
from deconvfix.runtimes.process import heard

__all__ = ["Mnn"]

_CPU = {"backend": "CPU", "precision": "high"}
# The hint's number in MNN's header HintMode. By default its tiles are so large that 3x3 convolutions are off
# by 4e-3 of their output's size.
_WINOGRAD_MEMORY_LEVEL = 3


class Mnn(Runtime):
    """Float32 throughout, by default on one thread, with the smallest tiles of Winograd's algorithm.

    The converter is called as a library: the command `mnnconvert` installs packages by itself.
    """

    title = "MNN"
    modules = ("MNN",)
    install = "pip install 'deconvfix[mnn]'"

    def version(self) -> str:
        """Of the library."""
        import MNN

        return str(MNN.version())

    def load(
        self, path: str, example: Feed, outputs: tuple[str, ...], threads: int | None = None
    ) -> Run:
        """See `Runtime.load`."""
        import MNN

        names, module = list(example), _module(path, list(example), outputs, threads)

        def run(feed: Feed) -> list[NDArray[Any]]:
            given = [_value(feed[name]) for name in names]
            with heard() as said:
                found = [
                    np.array(MNN.expr.convert(one, MNN.expr.NCHW).read())
                    for one in _results(module, given)
                ]
            if any(array.size == 0 for array in found):
                raise RuntimeError(f"it gives nothing: {said()}")
            return found

        return run

    def clock(self, path: str, feed: Feed, outputs: tuple[str, ...], threads: int) -> Clock:
        """See `Runtime.clock`: what it writes is not listened to, and outputs stay where they are."""
        module = _module(path, list(feed), outputs, threads)
        given = [_value(array) for array in feed.values()]

        def run() -> None:
            for one in _results(module, given):
                one.read()  # it computes when it is asked for values

        return clock_of(run, threads)


def _value(array: NDArray[Any]) -> Any:
    import MNN

    return MNN.expr.const(np.ascontiguousarray(array), list(array.shape), MNN.expr.NCHW)


def _results(module: Any, given: list[Any]) -> list[Any]:
    results = module.forward(given)
    return list(results) if isinstance(results, (list, tuple)) else [results]


def _module(path: str, names: list[str], outputs: tuple[str, ...], threads: int | None) -> Any:
    import _tools
    import MNN

    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "model.mnn")
        command = ["mnnconvert", "-f", "ONNX", "--modelFile", path, "--MNNModel", file]
        with heard() as said:
            _tools.mnnconvert([*command, "--bizCode", "deconvfix"])
        if not Path(file).is_file():
            raise RuntimeError(f"its converter does not convert it: {said()}")
        manager = MNN.nn.create_runtime_manager(({**_CPU, "numThread": threads or 1},))
        manager.set_hint(_WINOGRAD_MEMORY_LEVEL, 0)
        return MNN.nn.load_module_from_file(file, names, list(outputs), runtime_manager=manager)
