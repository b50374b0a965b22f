"""The onnx_ir pass, for use in an onnx_ir.passes.PassManager."""

from deconvfix.frontends.onnx.frontend import ReplaceTransposedConvs

__all__ = ["ReplaceTransposedConvs"]
