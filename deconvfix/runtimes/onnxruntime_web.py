"""onnxruntime-web: ONNX Runtime as WebAssembly, in node."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.runtimes.base import Feed, Run, Runtime, program

__all__ = ["OnnxRuntimeWeb"]

_PACKAGE = "onnxruntime-web"
# What node runs; its argument is a folder with the request, and it writes the answer there.
_SCRIPT = """
const { readFileSync, writeFileSync } = require("node:fs");
const { createRequire } = require("node:module");
const request = JSON.parse(readFileSync("request.json"));
const ort = createRequire(request.modules)("onnxruntime-web");
ort.env.wasm.numThreads = 1;
const arrays = {
  float32: Float32Array, float64: Float64Array, int32: Int32Array, int64: BigInt64Array,
  uint8: Uint8Array, int8: Int8Array, bool: Uint8Array,
};
(async () => {
  const session = await ort.InferenceSession.create(request.model, { executionProviders: ["wasm"] });
  const feed = {};
  request.inputs.forEach(({ name, dtype, shape }, index) => {
    const bytes = readFileSync(`in${index}`);
    const copy = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
    feed[name] = new ort.Tensor(dtype, new arrays[dtype](copy), shape);
  });
  const results = await session.run(feed);
  const outputs = request.outputs.map((name, index) => {
    const { data, dims, type } = results[name];
    writeFileSync(`out${index}`, Buffer.from(data.buffer, data.byteOffset, data.byteLength));
    return { dtype: type, shape: dims };
  });
  writeFileSync("answer.json", JSON.stringify(outputs));
})().catch((error) => { console.error(error.message ?? String(error)); process.exit(1); });
"""


class OnnxRuntimeWeb(Runtime):
    """The package is looked for from the working directory upwards, as node does."""

    title = "ONNX Runtime Web"
    modules = ()
    install = f"npm install {_PACKAGE}"

    def missing(self) -> str | None:
        """Node, or its package."""
        if shutil.which("node") is None:
            return "the command 'node' is not installed"
        return None if _home() is not None else f"the node package {_PACKAGE!r} is not installed"

    def version(self) -> str:
        """Of the package."""
        home = _home()
        assert home is not None
        return str(json.loads((home / "package.json").read_text(encoding="utf-8"))["version"])

    def load(self, path: str, example: Feed, outputs: tuple[str, ...]) -> Run:
        """See `Runtime.load`: node loads the file with each run."""
        home = _home()

        def run(feed: Feed) -> list[NDArray[Any]]:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                request = {
                    "model": str(Path(path).resolve()),
                    "modules": str(home),
                    "inputs": [
                        {"name": key, "dtype": str(array.dtype), "shape": array.shape}
                        for key, array in feed.items()
                    ],
                    "outputs": outputs,
                }
                (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
                for index, array in enumerate(feed.values()):
                    (folder / f"in{index}").write_bytes(np.ascontiguousarray(array).tobytes())
                _node(folder)
                answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
                return [
                    np.frombuffer(
                        (folder / f"out{index}").read_bytes(), described["dtype"]
                    ).reshape(described["shape"])
                    for index, described in enumerate(answer)
                ]

        return run


def _home() -> Path | None:
    """The folder of the node package."""
    here = Path.cwd()
    folders = (folder / "node_modules" / _PACKAGE for folder in (here, *here.parents))
    return next((folder for folder in folders if (folder / "package.json").is_file()), None)


def _node(folder: Path) -> None:
    """Answers the request in a folder."""
    done = program(["node", "-e", _SCRIPT], folder)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"node ends with {done.returncode}")
