"""The dnn module of OpenCV on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.runtimes.base import Clock, Feed, Run, Runtime, clock_of

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

    def load(
        self, path: str, example: Feed, outputs: tuple[str, ...], threads: int | None = None
    ) -> Run:
        """See `Runtime.load`."""
        forward = _forward(path, outputs, threads)
        return lambda feed: [np.array(output) for output in forward(feed)]

    def clock(self, path: str, feed: Feed, outputs: tuple[str, ...], threads: int) -> Clock:
        """See `Runtime.clock`: the outputs are not copied."""
        forward = _forward(path, outputs, threads)
        return clock_of(lambda: forward(feed), threads)


def _forward(
    path: str, outputs: tuple[str, ...], threads: int | None
) -> Callable[[Feed], Sequence[NDArray[Any]]]:
    import cv2

    if threads is not None:
        cv2.setNumThreads(threads)
    net = cv2.dnn.readNetFromONNX(path)

    def forward(feed: Feed) -> Sequence[NDArray[Any]]:
        for name, array in feed.items():
            net.setInput(np.ascontiguousarray(array), name)
        results: Sequence[NDArray[Any]] = net.forward(list(outputs))
        return results

    return forward
