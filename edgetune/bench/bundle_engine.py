"""A decoder bundle, timed through the runtime that goes to the device. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.bench.engine import Weights
from edgetune.bench.noise import Value, absent
from edgetune.errors import BundleError
from edgetune.files import read_json
from edgetune.runtime.bundle import AGAIN, GENAI_CONFIG
from edgetune.runtime.decoder import Decoder

LOOKUPS = ("Gather", "GatherBlockQuantized")
"""Operators that read a row of a table: an embedding, if nothing else reads it, costs a token next to nothing."""


class BundleEngine:
    """A bundle with its active adapter."""

    device = "cpu"

    def __init__(self, path: Path, *, threads: int) -> None:
        """Raises BundleError."""
        self._decoder = Decoder(path, threads=threads)
        self.context_length = self._decoder.bundle.context_length
        where = path / GENAI_CONFIG
        try:
            model = read_json(where, BundleError, cure=AGAIN)["model"]
            self.vocabulary, self._graph = int(model["vocab_size"]), path / str(model["decoder"]["filename"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(f"{where}: damaged: {error!r}", cure=AGAIN) from None

    def token_seconds(self, ids: Sequence[int], *, new_tokens: int) -> list[float]:
        """Seconds of each new token."""
        return self._decoder.token_seconds(ids, new_tokens=new_tokens)

    def weights(self) -> Weights | Value:
        """Counted in the graph, which onnx reads."""
        try:
            import onnx
        except ModuleNotFoundError:
            return absent("onnx, which reads the graph, is not installed")
        return count_weights(onnx.load(str(self._graph), load_external_data=False).graph, self.vocabulary)


def load(request: Mapping[str, Any]) -> BundleEngine:
    """The bundle of a request (see child.py)."""
    return BundleEngine(Path(request["path"]), threads=request["threads"])


def count_weights(graph: Any, vocabulary: int) -> Weights:
    """The weights in a decoder's graph: those that MatMul, Gemm and MatMulNBits multiply with, and the bytes of all
    initializers that are not merely looked up. The head is the product as wide as the vocabulary.
    """
    sizes = {item.name: item for item in graph.initializer}
    read: set[str] = set()
    body = head = 0
    for node in graph.node:
        if node.op_type not in LOOKUPS:
            read.update(name for name in node.input if name in sizes)
        shape = _product(node, sizes)
        if shape:
            rows, columns = shape
            if columns == vocabulary:
                head += rows * columns
            else:
                body += rows * columns
    return Weights(body, head, sum(_bytes(sizes[name]) for name in read), has_head_for_each=True)


def _product(node: Any, initializers: Mapping[str, Any]) -> tuple[int, int] | None:
    """(inputs, outputs) of a product with a constant matrix; None of any other node."""
    if node.op_type == "MatMulNBits":
        values = {item.name: item.i for item in node.attribute}
        return int(values["K"]), int(values["N"])
    matrix = initializers.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
    if matrix is None or len(matrix.dims) != 2:
        return None
    rows, columns = (int(size) for size in matrix.dims)
    is_transposed = any(item.name == "transB" and item.i for item in node.attribute)
    return (columns, rows) if is_transposed else (rows, columns)


def _bytes(initializer: Any) -> int:
    """Bytes of an initializer, also of one whose data lie in another file."""
    from onnx import helper

    count = 1
    for size in initializer.dims:
        count *= int(size)
    bits = {"INT4": 4, "UINT4": 4, "INT2": 2, "UINT2": 2}.get(_type_name(initializer))
    if bits:
        return (count * bits + 7) // 8
    return count * int(helper.tensor_dtype_to_np_dtype(initializer.data_type).itemsize)


def _type_name(initializer: Any) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(initializer.data_type))
