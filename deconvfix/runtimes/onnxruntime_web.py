"""onnxruntime-web: ONNX Runtime as WebAssembly, in node."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deconvfix.parity.worker import prepare
from deconvfix.runtimes.base import Clock, Feed, Run, Runtime, program

__all__ = ["OnnxRuntimeWeb"]

_PACKAGE = "onnxruntime-web"
# What node runs; its argument is a folder with the request, and it writes the answer there.
_SCRIPT = """
const { readFileSync, writeFileSync } = require("node:fs");
const { createRequire } = require("node:module");
const { createInterface } = require("node:readline");
const request = JSON.parse(readFileSync("request.json"));
const ort = createRequire(request.modules)("onnxruntime-web");
ort.env.wasm.numThreads = request.threads;
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
  if (request.timed) {
    // A line with a number of runs is answered by a line with the milliseconds that they took.
    const lines = createInterface({ input: process.stdin });
    await session.run(feed);
    console.log("0");
    for await (const line of lines) {
      const started = performance.now();
      for (let run = 0; run < Number(line); run++) await session.run(feed);
      console.log(String(performance.now() - started));
    }
    process.exit(0);
  }
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

    def load(
        self, path: str, example: Feed, outputs: tuple[str, ...], threads: int | None = None
    ) -> Run:
        """See `Runtime.load`: node loads the file with each run."""

        def run(feed: Feed) -> list[NDArray[Any]]:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                _ask(folder, path, feed, outputs, threads=threads or 1, timed=False)
                _node(folder)
                answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
                return [
                    np.frombuffer(
                        (folder / f"out{index}").read_bytes(), described["dtype"]
                    ).reshape(described["shape"])
                    for index, described in enumerate(answer)
                ]

        return run

    def clock(self, path: str, feed: Feed, outputs: tuple[str, ...], threads: int) -> Clock:
        """See `Runtime.clock`: node keeps the file loaded, and reads its own clock, not that of the CPU."""
        folder = Path(tempfile.mkdtemp())  # it goes with the folder of the process
        _ask(folder, path, feed, outputs, threads=threads, timed=True)
        return _Node(folder)


class _Node:
    """A clock in node, which ends with this object: the end of its input ends it."""

    def __init__(self, folder: Path) -> None:
        self.errors = folder / "errors"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                ["node", "-e", _SCRIPT],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                preexec_fn=prepare,
            )
        self._answer()

    def __call__(self, runs: int) -> float:
        assert self.process.stdin is not None
        print(runs, file=self.process.stdin, flush=True)
        return self._answer()

    def __del__(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answer(self) -> float:
        """Seconds."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise RuntimeError(self.errors.read_text().strip() or f"node ends with {code}")
        return float(line) / 1e3


def _ask(
    folder: Path, path: str, feed: Feed, outputs: tuple[str, ...], *, threads: int, timed: bool
) -> None:
    """Writes a request for node into a folder."""
    request = {
        "model": str(Path(path).resolve()),
        "modules": str(_home()),
        "inputs": [
            {"name": key, "dtype": str(array.dtype), "shape": array.shape}
            for key, array in feed.items()
        ],
        "outputs": outputs,
        "threads": threads,
        "timed": timed,
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    for index, array in enumerate(feed.values()):
        (folder / f"in{index}").write_bytes(np.ascontiguousarray(array).tobytes())


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
