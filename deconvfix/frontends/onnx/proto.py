"""Front end for onnx.ModelProto: that of `frontend`, with what onnx_ir does not carry put back."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir

from deconvfix.errors import ModelError
from deconvfix.frontends.onnx.check import check_model, sort_nodes
from deconvfix.frontends.onnx.frontend import OnnxFrontend
from deconvfix.frontends.onnx.values import quiet

__all__ = ["FRONTEND", "OnnxProtoFrontend", "carry_over", "from_proto"]


# Sparse initializers become dense for onnx_ir, up to 1 GiB in float32.
_LARGEST_DENSE = 2**28


class OnnxProtoFrontend(OnnxFrontend):
    """The front end for onnx_ir.Model; an onnx.ModelProto becomes one once, and a proto again once."""

    def enter(self, model: onnx.ModelProto) -> ir.Model:
        """See `from_proto`."""
        return from_proto(model)

    def leave(
        self, converted: ir.Model, model: onnx.ModelProto, *, changed: bool, inplace: bool
    ) -> onnx.ModelProto:
        """The converted model as a proto, with what onnx_ir does not carry."""
        # Nothing was replaced: the original itself goes back, to the byte.
        if not changed and inplace:
            return model
        result = onnx.ModelProto()
        if changed:
            result = ir.to_proto(converted)
            carry_over(model, result)
        else:
            result.CopyFrom(model)
        if inplace:
            model.CopyFrom(result)
            return model
        return result


FRONTEND = OnnxProtoFrontend()


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """The model for onnx_ir. Sparse initializers become dense there: `carry_over` puts them back.

    Raises:
        ModelError: If it cannot be a model that runs, or onnx_ir cannot read it.
    """
    check_model(proto)
    if any(graph.sparse_initializer for graph in _graphs(proto.graph)):
        # On a copy, as the caller's proto must not change.
        dense = onnx.ModelProto()
        dense.CopyFrom(proto)
        for graph in _graphs(dense.graph):
            graph.initializer.extend(map(_dense, graph.sparse_initializer))
            graph.ClearField("sparse_initializer")
        proto = dense
    try:
        with quiet():
            model = ir.from_proto(proto)
        sort_nodes(model)
        return model
    except ModelError:
        raise
    except Exception as error:
        cause: BaseException = error
        # onnx_ir wraps an error in one for each level of the graph.
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ModelError(
            "model",
            f"it cannot be read ({cause})",
            "an ONNX model that onnx_ir reads is needed",
            "Check it with onnx.checker; sparse Constant nodes must become initializers",
        ) from error


def carry_over(old: onnx.ModelProto, new: onnx.ModelProto) -> None:
    """Copies what onnx_ir leaves out: sparse initializers, quantisation annotations, training.

    Args:
        old: The original, or an empty model that this function has filled from it.
        new: An empty model, which gets everything; or the converted one, which gets what still has
            a meaning. Sparse initializers of subgraphs stay dense.
    """
    new.training_info.extend(old.training_info)
    sparse, annotations = old.graph.sparse_initializer, old.graph.quantization_annotation
    if not new.HasField("graph"):
        new.graph.sparse_initializer.extend(sparse)
        new.graph.quantization_annotation.extend(annotations)
        return
    stored = {tensor.name: index for index, tensor in enumerate(new.graph.initializer)}
    # What the surgery changed stays dense, as its values are others now.
    kept = [
        tensor
        for tensor in sparse
        if tensor.values.name in stored
        and _same(new.graph.initializer[stored[tensor.values.name]], _dense(tensor))
    ]
    # From the end, so that the other positions stay valid.
    for index in sorted((stored[tensor.values.name] for tensor in kept), reverse=True):
        del new.graph.initializer[index]
    new.graph.sparse_initializer.extend(kept)
    if annotations:
        names = {tensor.name for tensor in (*new.graph.input, *new.graph.initializer)}
        names |= {name for node in new.graph.node for name in node.output}
        new.graph.ClearField("quantization_annotation")  # onnx_ir keeps some of them
        new.graph.quantization_annotation.extend(
            annotation for annotation in annotations if annotation.tensor_name in names
        )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    outside = onnx.TensorProto.EXTERNAL in (
        sparse.values.data_location,
        sparse.indices.data_location,
    )
    if outside or math.prod(sparse.dims) > _LARGEST_DENSE:
        found = "outside the file" if outside else f"{math.prod(sparse.dims):,} elements"
        raise ModelError(
            sparse.values.name,
            f"it is a sparse initializer ({found})",
            f"at most {_LARGEST_DENSE:,} elements, in the file itself, are made dense",
            "Store it as an ordinary initializer",
        )
    values = onnx.numpy_helper.to_array(sparse.values)
    indices = onnx.numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        array.reshape(-1)[indices] = values
    else:  # coordinates, (number of values, rank)
        array[tuple(indices.T)] = values
    return onnx.numpy_helper.from_array(array, sparse.values.name)


def _same(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    return one.data_type == other.data_type and np.array_equal(
        onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other)
    )
