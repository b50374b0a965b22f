"""ONNX models written with their weights in a file beside them, which is called by its content."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from deconvfix.files import content_name

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["save_with_data"]


def save_with_data(model: ir.Model, path: Path) -> None:
    """Writes a model with its weights in a file beside it; one tensor at a time is in memory.

    A graph names its weights by their content, so that it never meets those of another model, whatever is
    interrupted between the two files.

    Args:
        model: It is not changed.
        path: The file, in a folder of `files.output_folder`.

    Raises:
        OSError: If there is no room for it.
    """
    import onnx_ir as ir

    # Asked before gigabytes are written in vain.
    size = sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    # onnx_ir may have written gigabytes before it finds the disk full.
    if size > shutil.disk_usage(path.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    data = path.with_name("data")
    # With one worker a single tensor is in memory at a time.
    ir.save(model, path, external_data=data.name, max_workers=1)
    if not data.exists() or not data.stat().st_size:
        data.unlink(missing_ok=True)  # every tensor is small enough to stay in the graph
        return
    # The name is known only after the data is written, so the graph is written twice.
    name = content_name(path, data)
    written = ir.load(path)
    for graph in written.graphs():
        for value in graph.initializers.values():
            old = value.const_value
            if isinstance(old, ir.ExternalTensor):
                assert isinstance(old.shape, ir.Shape)
                value.const_value = ir.ExternalTensor(
                    name, old.offset, old.length, old.dtype, shape=old.shape, name=old.name
                )
    # The graph is small: its tensors stay in the data file.
    ir.save(written, path)
    data.rename(data.with_name(name))
