"""The weights that a decoder's graph multiplies each token with. Imports no torch."""

from __future__ import annotations

import math

import onnx_ir as ir

from edgetune.bench.engine import Weights
from edgetune.export.stored_scales import behind_cast

NO_PRODUCTS = ("Cast", "Gather", "GatherBlockQuantized")
"""Operators that read a row of a table, or are folded when the graph is opened: what only they read costs a token next
to nothing."""


def count_weights(graph: ir.Graph, vocabulary: int) -> Weights:
    """The weights in a decoder's graph: those that MatMul, Gemm and MatMulNBits multiply with, and the bytes in memory
    of all initializers that are not merely looked up. The head is the product as wide as the vocabulary.
    """
    read: dict[str, int] = {}
    body = head = 0
    for node in graph:
        if node.op_type not in NO_PRODUCTS:
            read |= {str(value.name): _held_bytes(value) for value in node.inputs if value is not None}
        shape = _product(node)
        if shape:
            rows, columns = shape
            if columns == vocabulary:
                head += rows * columns
            else:
                body += rows * columns
    return Weights(body, head, sum(read.values()), has_head_for_each=True)


def _product(node: ir.Node) -> tuple[int, int] | None:
    """(inputs, outputs) of a product with a constant matrix; None of any other node."""
    if node.op_type == "MatMulNBits":
        return node.attributes["K"].as_int(), node.attributes["N"].as_int()
    factor = node.inputs[1] if node.op_type in ("MatMul", "Gemm") else None
    matrix = None if factor is None else factor.const_value
    if matrix is None or len(matrix.shape) != 2:
        return None
    rows, columns = matrix.shape.numpy()
    return (columns, rows) if node.attributes.get_int("transB", 0) else (rows, columns)


def _held_bytes(value: ir.Value) -> int:
    """Bytes of a constant in the type that a node reads it in; 0 of what is computed."""
    constant = behind_cast(value).const_value
    return 0 if constant is None or value.dtype is None else math.ceil(constant.size * value.dtype.itemsize)
