"""ONNX Runtime on the CPU: sessions, and running them. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from deconvfix.errors import ExportError

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["open_session", "run_named"]


def open_session(
    model: bytes | str, *, optimize: bool = True, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU, quiet.

    Args:
        model: The file's content, or its path.
        optimize: Whether the graph is optimised as by default, or run node by node as it stands.
        threads: That it may use; None leaves that to ONNX Runtime.

    Raises:
        ExportError: If ONNX Runtime refuses the file.
    """
    # Set before the import: ONNX Runtime writes telemetry files otherwise.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            "ONNX Runtime",
            f"it does not load the file ({error})",
            "the file must run to be verified",
            "Try another opset or dtype, or export without verification",
        ) from error


def run_named(
    session: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """The outputs for inputs by name, in order.

    Raises:
        ExportError: If ONNX Runtime fails.
    """
    try:
        results: list[NDArray[Any]] = session.run(None, dict(feed))
    except Exception as error:
        shapes = {name: tuple(array.shape) for name, array in feed.items()}
        raise ExportError(
            "ONNX Runtime",
            f"it fails on inputs of shapes {shapes} ({error})",
            "the file must run wherever the model runs",
            "Make only those axes dynamic that the model allows",
        ) from error
    return results
