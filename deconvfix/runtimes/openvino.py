"""OpenVINO on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.runtimes.base import Feed, Run, Runtime

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

    def load(self, path: str, example: Feed, outputs: tuple[str, ...]) -> Run:
        """See `Runtime.load`."""
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(path, "CPU", settings)

        def run(feed: Feed) -> list[NDArray[Any]]:
            results = compiled(feed)
            return [np.array(results[output]) for output in compiled.outputs]

        return run
