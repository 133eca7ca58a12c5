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
        """Counted in the graph, which onnx_ir reads."""
        try:
            import onnx_ir
        except ModuleNotFoundError:
            return absent("onnx_ir, which reads the graph, is not installed")
        return count_weights(onnx_ir.load(self._graph).graph, self.vocabulary)


def load(request: Mapping[str, Any]) -> BundleEngine:
    """The bundle of a request (see child.py)."""
    return BundleEngine(Path(request["path"]), threads=request["threads"])


def count_weights(graph: Any, vocabulary: int) -> Weights:
    """The weights in a decoder's graph: those that MatMul, Gemm and MatMulNBits multiply with, and the bytes of all
    initializers that are not merely looked up. The head is the product as wide as the vocabulary.
    """
    read: dict[str, int] = {}
    body = head = 0
    for node in graph:
        if node.op_type not in LOOKUPS:
            constants = [value for value in node.inputs if value is not None and value.const_value is not None]
            read.update((value.name, value.const_value.nbytes) for value in constants)
        shape = _product(node)
        if shape:
            rows, columns = shape
            if columns == vocabulary:
                head += rows * columns
            else:
                body += rows * columns
    return Weights(body, head, sum(read.values()), has_head_for_each=True)


def _product(node: Any) -> tuple[int, int] | None:
    """(inputs, outputs) of a product with a constant matrix; None of any other node."""
    if node.op_type == "MatMulNBits":
        return node.attributes["K"].as_int(), node.attributes["N"].as_int()
    matrix = node.inputs[1].const_value if node.op_type in ("MatMul", "Gemm") else None
    if matrix is None or len(matrix.shape) != 2:
        return None
    rows, columns = matrix.shape.numpy()
    return (columns, rows) if node.attributes.get_int("transB", 0) else (rows, columns)
