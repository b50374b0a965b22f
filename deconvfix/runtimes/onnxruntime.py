"""ONNX Runtime, with the graph optimised as it is by default."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from deconvfix.parity.worker import make_session
from deconvfix.runtimes.base import Feed, Run, Runtime

__all__ = ["OnnxRuntime"]


class OnnxRuntime(Runtime):
    """The runtime that everything is compared with."""

    title = "ONNX Runtime"
    modules = ("onnxruntime",)
    install = "pip install onnxruntime"

    def version(self) -> str:
        """Of the package."""
        import onnxruntime

        return str(onnxruntime.__version__)

    def load(
        self, path: str, example: Feed, outputs: tuple[str, ...], threads: int | None = None
    ) -> Run:
        """See `Runtime.load`."""
        session = make_session(path, optimize=True, threads=threads)

        def run(feed: Feed) -> list[NDArray[Any]]:
            results: list[NDArray[Any]] = session.run(list(outputs), feed)
            return results

        return run
