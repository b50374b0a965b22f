"""OpenVINO on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.runtimes.base import Clock, Feed, Run, Runtime, clock_of

__all__ = ["OpenVINO"]


class OpenVINO(Runtime):
    """In float32: on some CPUs it takes bfloat16 or float16 by itself, which is another question."""

    title = "OpenVINO"
    modules = ("openvino",)
    install = "pip install 'deconvfix[openvino]'"

    def version(self) -> str:
        """Of the library, without the build."""
        import openvino

        return str(openvino.__version__).partition("-")[0]

    def load(
        self, path: str, example: Feed, outputs: tuple[str, ...], threads: int | None = None
    ) -> Run:
        """See `Runtime.load`."""
        compiled = _compiled(path, threads)

        def run(feed: Feed) -> list[NDArray[Any]]:
            results = compiled(feed)
            return [np.array(results[output]) for output in compiled.outputs]

        return run

    def clock(self, path: str, feed: Feed, outputs: tuple[str, ...], threads: int) -> Clock:
        """See `Runtime.clock`: neither inputs nor outputs are copied."""
        request = _compiled(path, threads).create_infer_request()
        return clock_of(lambda: request.infer(feed, share_inputs=True, share_outputs=True), threads)


def _compiled(path: str, threads: int | None) -> Any:
    import openvino

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return openvino.Core().compile_model(path, "CPU", settings)
