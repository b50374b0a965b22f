"""Runners for `bench`: torch modules, and ONNX files on the inputs of torch modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from deconvfix.cli.bench import Runner, session_runner
from deconvfix.frontends.torch.inputs import Inputs, run_model
from deconvfix.frontends.torch.runtime_parity import feed_of
from deconvfix.parity.runtime import open_session

__all__ = ["file_runner", "module_runner"]


def module_runner(model: nn.Module, inputs: Inputs, threads: int) -> Runner:
    """A module as it is. The number of threads is torch's, for the whole process.

    Raises:
        ModelError: If the model does not accept the inputs.
    """
    torch.set_num_threads(threads)
    run_model(model, inputs)  # its errors say what is wrong

    def run() -> Any:
        with torch.inference_mode():
            return model(*inputs.args, **inputs.kwargs)

    named = {str(number): value for number, value in enumerate(inputs.args)} | inputs.kwargs
    shapes = {
        name: tuple(value.shape) for name, value in named.items() if isinstance(value, torch.Tensor)
    }
    return Runner("torch", run, shapes)


def file_runner(path: Path, inputs: Inputs, threads: int) -> Runner:
    """An ONNX file in ONNX Runtime, its tensors bound in order.

    Raises:
        ExportError: If ONNX Runtime does not load or run it.
    """
    session = open_session(str(path), threads=threads)
    return session_runner(session, feed_of(session, inputs))
