"""Peak memory of converting a large ONNX file, over the size of its weights.

    python benchmarks/memory.py [GIGABYTES]

The model is made in a temporary folder: matrix products of 64 MB each, and one transposed convolution.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 4096


def make(path: Path, gigabytes: float) -> int:
    """Writes the model with external data; returns the bytes of its weights."""
    count = max(1, round(gigabytes * 2**30 / (4 * WIDTH * WIDTH)))
    rng = np.random.default_rng(0)
    nodes, initializers, offset = [], [], 0
    with open(path.with_suffix(".data"), "wb") as data:

        def store(name: str, array: np.ndarray) -> None:
            nonlocal offset
            data.write(array.tobytes())
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": f"{path.stem}.data", "offset": offset, "length": array.nbytes}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            initializers.append(tensor)
            offset += array.nbytes

        matrix = rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / 64
        for number in range(count):
            store(f"w{number}", np.roll(matrix, number, 0))
            source = f"h{number - 1}" if number else "x"
            nodes.append(helper.make_node("MatMul", [source, f"w{number}"], [f"h{number}"]))
        store("up.weight", rng.standard_normal((256, 128, 4, 4), dtype=np.float32))
    initializers.append(numpy_helper.from_array(np.array([0, 256, 4, 4]), "shape"))
    nodes.append(helper.make_node("Reshape", [f"h{count - 1}", "shape"], ["image"]))
    nodes.append(
        helper.make_node(
            "ConvTranspose",
            ["image", "up.weight"],
            ["y"],
            name="up",
            strides=[2, 2],
            pads=[1, 1, 1, 1],
        )
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 128, 8, 8])
    graph = helper.make_graph(nodes, "large", [x], [y], initializers)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return offset


def main() -> None:
    """Prints size, peak memory and time."""
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.onnx"
        size = make(path, gigabytes)
        output = Path(folder) / "fixed.onnx"
        started = time.monotonic()
        command = [sys.executable, "-m", "deconvfix", "convert", str(path), "-o", str(output)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
        seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"weights {size / 2**30:.2f} GiB, peak {peak / 2**30:.2f} GiB, {seconds:.0f} s")


if __name__ == "__main__":
    main()
