"""The runtimes by name. A new one is a file in this folder and a line here."""

from __future__ import annotations

import importlib
from pathlib import Path

from deconvfix.errors import OptionError
from deconvfix.runtimes.base import Runtime
from deconvfix.targets.profile import NO_LIMITS

__all__ = ["RUNTIMES", "runtime_at", "runtime_named", "runtime_of"]

# Where there is no target.
_REFERENCE = "onnxruntime"
# Name -> "module:class".
RUNTIMES = {
    "iree": "deconvfix.runtimes.iree:Iree",
    "mnn": "deconvfix.runtimes.mnn:Mnn",
    "ncnn": "deconvfix.runtimes.ncnn:Ncnn",
    "onnxruntime": "deconvfix.runtimes.onnxruntime:OnnxRuntime",
    "onnxruntime-web": "deconvfix.runtimes.onnxruntime_web:OnnxRuntimeWeb",
    "opencv": "deconvfix.runtimes.opencv:OpenCV",
    "openvino": "deconvfix.runtimes.openvino:OpenVINO",
    "tract": "deconvfix.runtimes.tract:Tract",
}


def runtime_at(home: str) -> Runtime:
    """The runtime that is called "module:class"."""
    module, _, kind = home.partition(":")
    runtime: Runtime = getattr(importlib.import_module(module), kind)()
    return runtime


def runtime_named(name: str) -> Runtime:
    """A runtime by its name, installed.

    Raises:
        OptionError: If there is none of that name, or something that it needs is not installed.
    """
    if name not in RUNTIMES:
        raise OptionError(
            "runtime",
            f"the value is {name!r}",
            f"one of {', '.join(sorted(RUNTIMES))} is needed",
            "Correct the name",
        )
    runtime = runtime_at(RUNTIMES[name])
    missing = runtime.missing()
    if missing is not None:
        raise OptionError(
            "runtime",
            missing,
            f"files run in {runtime.title} with it",
            f"Install it: {runtime.install}",
        )
    return runtime


def runtime_of(target: str | None) -> str:
    """The name of the runtime in which files for a target run; ONNX Runtime where there is no target.

    Args:
        target: The name of a profile, or the path of one, which is named like its runtime then.

    Raises:
        OptionError: If there is none, or something that it needs is not installed.
    """
    name = _REFERENCE if target in (None, NO_LIMITS.name) else Path(str(target)).stem
    if name not in RUNTIMES:
        raise OptionError(
            "target",
            f"the value is {target!r}, and files for it are not run here",
            f"one of {', '.join(sorted(RUNTIMES))} is needed to measure or to prove in",
            "Choose one of these, or omit what runs files in the target",
        )
    runtime_named(name)
    return name
