"""A small network, and ONNX Runtime's static quantisation of it."""

import warnings

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from tests.support.onnx_models import model, node, value

__all__ = ["statically_quantised", "trained_like"]


class _Pictures(CalibrationDataReader):
    def __init__(self):
        rng = np.random.default_rng(1)
        self.rest = iter(rng.standard_normal((4, 1, 3, 8, 6)).astype(np.float32))

    def get_next(self):
        x = next(self.rest, None)
        return None if x is None else {"x": x}


def trained_like():
    """A convolution, a transposed one with a stride, and a convolution, with open sizes."""
    rng = np.random.default_rng(3)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 6, 4, 4), "b2": (6,), "w3": (2, 6, 3, 3)}
    stored = {k: 0.3 * rng.standard_normal(v).astype(np.float32) for k, v in shapes.items()}
    nodes = [
        node("Conv", "x w1 b1", "h1", pads=[1, 1, 1, 1]),
        node("Relu", "h1", "h2"),
        node("ConvTranspose", "h2 w2 b2", "h3", name="up", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "h3", "h4"),
        node("Conv", "h4 w3", "y", pads=[1, 1, 1, 1]),
    ]
    return model(nodes, [value("x", ["N", 3, "H", "W"])], [value("y", 4)], stored)


def statically_quantised(proto, path, *, per_channel=True, activation=QuantType.QUInt8):
    """As ONNX Runtime quantises a model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the quantiser
        quantize_static(
            onnx.ModelProto.FromString(proto.SerializeToString()),  # it is changed
            path,
            _Pictures(),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=activation,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "ConvTranspose"],
        )
    return onnx.load(path)
