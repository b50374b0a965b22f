"""The dnn module of OpenCV on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.runtimes.base import Feed, Run, Runtime

__all__ = ["OpenCV"]


class OpenCV(Runtime):
    """As by default: the engine is its own choice, and Winograd's convolutions are on."""

    title = "OpenCV"
    modules = ("cv2",)
    install = "pip install 'deconvfix[opencv]'"

    def version(self) -> str:
        """Of the library."""
        import cv2

        return str(cv2.__version__)

    def load(self, path: str, example: Feed, outputs: tuple[str, ...]) -> Run:
        """See `Runtime.load`."""
        import cv2

        net = cv2.dnn.readNetFromONNX(path)

        def run(feed: Feed) -> list[NDArray[Any]]:
            for name, array in feed.items():
                net.setInput(np.ascontiguousarray(array), name)
            return [np.array(output) for output in net.forward(list(outputs))]

        return run
