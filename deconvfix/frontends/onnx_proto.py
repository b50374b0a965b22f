"""Front end for onnx.ModelProto: that of `onnx_model`, with what onnx_ir does not carry put back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir

from deconvfix.frontends import onnx_model
from deconvfix.frontends.base import Findings
from deconvfix.parity import ParityReport
from deconvfix.plan import Plan

__all__ = ["FRONTEND", "OnnxProtoFrontend", "carry_over"]


class OnnxProtoFrontend:
    """See the module's text."""

    def prepare(
        self, model: onnx.ModelProto, example_inputs: Any | None, *, inplace: bool
    ) -> onnx.ModelProto:
        """A copy, unless `inplace`."""
        if inplace:
            return model
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        return copied

    def find(self, model: onnx.ModelProto, example_inputs: Any | None) -> Findings:
        """See `onnx_model.OnnxFrontend.find`."""
        return onnx_model.FRONTEND.find(ir.from_proto(model), example_inputs)

    def apply(self, model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
        """Rewrites the model in place."""
        if not plan.replaced:
            return model
        new = ir.to_proto(onnx_model.FRONTEND.apply(ir.from_proto(model), plan))
        carry_over(model, new)
        model.CopyFrom(new)
        return model

    def left(self, model: onnx.ModelProto, plan: Plan, example_inputs: Any) -> Sequence[str]:
        """See `onnx_model.OnnxFrontend.left`."""
        return onnx_model.FRONTEND.left(ir.from_proto(model), plan, example_inputs)

    def verify(
        self,
        before: onnx.ModelProto,
        after: onnx.ModelProto,
        inputs: Sequence[Any],
        plan: Plan | None,
    ) -> ParityReport:
        """See `onnx_model.OnnxFrontend.verify`."""
        return onnx_model.FRONTEND.verify(ir.from_proto(before), ir.from_proto(after), inputs, plan)

    def psnr_db(
        self, before: onnx.ModelProto, after: onnx.ModelProto, example_inputs: Any
    ) -> float | None:
        """See `onnx_model.OnnxFrontend.psnr_db`."""
        return onnx_model.FRONTEND.psnr_db(
            ir.from_proto(before), ir.from_proto(after), example_inputs
        )


FRONTEND = OnnxProtoFrontend()


def carry_over(old: onnx.ModelProto, new: onnx.ModelProto) -> None:
    """Copies what onnx_ir leaves out: sparse initializers, quantisation annotations, training."""
    new.training_info.extend(old.training_info)
    new.graph.sparse_initializer.extend(old.graph.sparse_initializer)
    new.graph.quantization_annotation.extend(old.graph.quantization_annotation)
