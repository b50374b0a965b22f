"""IREE, compiled for the CPU."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.runtimes.base import Clock, Feed, Run, Runtime, clock_of, program

__all__ = ["Iree"]


class Iree(Runtime):
    """The file is imported as it is, with its open sizes, and compiled for this CPU; on one thread."""

    title = "IREE"
    modules = ("iree.compiler", "iree.runtime")
    install = "pip install 'deconvfix[iree]'"

    def version(self) -> str:
        """Of the compiler."""
        import iree.compiler.version

        return str(iree.compiler.version.VERSION)

    def load(
        self, path: str, example: Feed, outputs: tuple[str, ...], threads: int | None = None
    ) -> Run:
        """See `Runtime.load`."""
        call = _compiled(path)
        names = list(example)

        def run(feed: Feed) -> list[NDArray[Any]]:
            results = call(*(np.ascontiguousarray(feed[name]) for name in names))
            results = results if isinstance(results, (list, tuple)) else [results]
            return [np.array(result.to_host()) for result in results]

        return run

    def clock(self, path: str, feed: Feed, outputs: tuple[str, ...], threads: int) -> Clock:
        """See `Runtime.clock`."""
        if threads != 1:
            raise RuntimeError("its local-sync device runs on one thread")
        call = _compiled(path)
        arrays = [np.ascontiguousarray(array) for array in feed.values()]
        return clock_of(lambda: call(*arrays), threads)


def _compiled(path: str) -> Any:
    import iree.compiler
    import iree.runtime

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        importer = [sys.executable, "-m", "iree.compiler.tools.import_onnx"]
        done = program([*importer, str(Path(path).resolve()), "-o", "model.mlir"], folder)
        if done.returncode:
            words = (done.stdout + done.stderr).strip().splitlines()
            raise RuntimeError(f"its importer does not read it: {'; '.join(words[-2:])}")
        module = iree.compiler.compile_file(
            str(folder / "model.mlir"),
            target_backends=["llvm-cpu"],
            input_type="onnx",
            extra_args=["--iree-llvmcpu-target-cpu=host"],
        )
    loaded = iree.runtime.load_vm_flatbuffer(module, driver="local-sync")
    # The function of the graph, and not its asynchronous twin (NAME$async) or the module's own.
    names = loaded.vm_module.function_names
    [main] = [found for found in names if "$" not in found and not found.startswith("_")]
    return loaded[main]
