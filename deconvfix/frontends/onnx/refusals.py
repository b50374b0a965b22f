"""Why a ConvTranspose node is not converted, in words; and the limits that they name."""

from __future__ import annotations

from collections.abc import Sequence

from deconvfix.errors import Refusal

__all__ = [
    "DYNAMIC_SLICE",
    "FUNCTION_CONSTANTS",
    "MOST_PIXELS",
    "MOST_TAPS",
    "NEEDS_PAD",
    "NO_MAP",
    "NO_OPERANDS",
    "UNKNOWN_CHANNELS",
    "UNKNOWN_KERNEL",
    "contradiction",
    "depends_on_the_call",
    "needs_newer_slice",
    "not_floating",
    "old_function",
    "too_many_taps",
]

# Dynamic crops need Slice with computed starts.
DYNAMIC_SLICE = 10
# Functions hold no initializers, and before this opset Constant nodes hold no integers.
FUNCTION_CONSTANTS = 9
# Longer kernels are longer than any map; what a file claims may be anything.
MOST_TAPS, MOST_PIXELS = 2**20, 2**31

NO_OPERANDS = Refusal(
    "it has no input, no weight or no output",
    "all are needed",
    "Correct the file; ONNX Runtime does not run this node",
)
NO_MAP = Refusal(
    "a map is empty, or larger than 2^31 pixels, along an axis",
    "pixels are needed",
    "Check the file",
)
UNKNOWN_KERNEL = Refusal(
    "neither the shape of its weight nor the attribute kernel_shape is known",
    "the kernel size is needed",
    "Declare the weight's shape in the file (onnx.shape_inference, value_info)",
)
UNKNOWN_CHANNELS = Refusal(
    "its numbers of channels are not known before it runs",
    "the shape of the weight is needed",
    "Declare the weight's shape in the file (onnx.shape_inference, value_info)",
)
NEEDS_PAD = Refusal(
    "its weight is not stored, and the file has opset 1",
    "ONNX Runtime runs the operators that rearrange it from opset 2 on",
    "Convert the file first (onnx.version_converter)",
)


def too_many_taps(kernel: Sequence[int]) -> Refusal:
    """For a kernel that no map is as large as."""
    return Refusal(
        f"its kernel has {' x '.join(map(str, kernel))} taps",
        f"at most {MOST_TAPS:,} along an axis are supported",
        "Check the file",
    )


def not_floating(dtype: str) -> Refusal:
    """For weights of integers, which ONNX's operator does not have."""
    return Refusal(
        f"its weight is {dtype}",
        "float32, float64, float16 or bfloat16 is needed",
        "Keep this layer (exclude it)",
    )


def depends_on_the_call(what: str) -> Refusal:
    """For functions that are called in more than one way."""
    return Refusal(
        f"its {what} is not the same, or missing, at the calls of the function that it is in",
        "one geometry is needed",
        "Inline the model's functions first (onnx_ir.passes.common.InlinePass)",
    )


def old_function(opset: int, main: int) -> Refusal:
    """ONNX Runtime reads the nodes of a function by the model's operator set, not by the function's.

    onnx.checker rejects those nodes that differ between the two.
    """
    return Refusal(
        f"it is in a function of opset {opset}, in a model of opset {main}",
        f"both must be the same, {FUNCTION_CONSTANTS} or newer",
        "Inline the model's functions first (onnx_ir.passes.common.InlinePass)",
    )


def contradiction(attribute: str, value: object, other: object) -> Refusal:
    """For attributes that do not belong to the weight."""
    return Refusal(
        f"{attribute} is {value} and the kernel's axes are {other}",
        "the two must agree",
        "Correct the file; ONNX Runtime does not run this node",
    )


def needs_newer_slice(opset: int) -> Refusal:
    """For a fixed output size of an open input."""
    return Refusal(
        f"it has an output_shape and a dynamic input, and the file has opset {opset}",
        f"a crop that depends on the input needs opset {DYNAMIC_SLICE} or newer",
        "Fix the input's size, or convert the file first (onnx.version_converter)",
    )
