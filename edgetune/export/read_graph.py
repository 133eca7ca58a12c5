"""A bundle's weights read back from its graph: for comparing bytes, and as a torch model with the same numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgetune.errors import BundleError, first_line
from edgetune.export.architecture import EMBEDDING, Part, parts
from edgetune.export.stored_scales import GRID_OPERATORS, behind_cast
from edgetune.model.weights import HEAD_TENSOR, Place, read_tensor
from edgetune.quantize.grid import QuantizedMatrix, dequantize


@dataclass(frozen=True)
class WeightNode:
    """A node that reads quantised weights."""

    name: str
    op_type: str
    sources: tuple[Part, ...]
    inputs: tuple[str, ...]
    """B or data, scales, and zero points where there are any."""
    attributes: Mapping[str, int]


class GraphFile:
    """A graph on disk; its tensors are read when asked for."""

    def __init__(self, path: Path) -> None:
        """Raises BundleError if there is no graph."""
        self._path = path
        try:
            self.model = ir.load(path)
        except Exception as error:  # protobuf and onnx_ir raise their own types
            raise BundleError(f"{path}: cannot be read: {first_line(error)}", cure="export it again") from None
        self.graph = self.model.graph

    @property
    def names(self) -> tuple[str, ...]:
        """Of all initializers."""
        return tuple(self.graph.initializers)

    def float_matmuls(self) -> list[str]:
        """Names of matrix products whose weight is in the graph and not on the grid."""
        return [
            str(node.name)
            for node in self.graph
            if node.op_type in ("MatMul", "Gemm") and any(_is_fixed(value) for value in node.inputs)
        ]

    def array(self, name: str) -> np.ndarray:
        """An initializer, its bytes as they are in the file. Raises BundleError if they are not there."""
        tensor = self.graph.initializers[name].const_value
        if not isinstance(tensor, ir.ExternalTensor):
            return np.array(tensor.numpy())  # a copy: torch wants to be able to write
        # Not tensor.numpy(): it maps the file, which counts as memory, and refuses one with several hard links.
        with open(tensor.path, "rb") as file:
            file.seek(tensor.offset or 0)
            data = file.read(tensor.length)
        try:
            return np.frombuffer(bytearray(data), tensor.dtype.numpy()).reshape(tensor.shape.numpy())
        except ValueError:
            raise BundleError(f"{tensor.path}: too short", cure="export it again") from None

    def grid_nodes(self) -> Iterator[tuple[ir.Node, tuple[str, ...], dict[str, int]]]:
        """Each node that reads weights on the grid: it, the names of B, scales and zero points, its attributes."""
        for node in self.graph:
            if node.op_type in GRID_OPERATORS:
                states = 0 if node.op_type == "MatMulNBits" else 1
                values = [value for index, value in enumerate(node.inputs) if value is not None and index != states]
                attributes = {name: attribute.as_int() for name, attribute in node.attributes.items()}
                yield node, tuple(str(behind_cast(value).name) for value in values), attributes

    def read_matrix(self, inputs: Sequence[str], attributes: Mapping[str, int], *, columns: int) -> QuantizedMatrix:
        """What such a node holds, in the form that quantize.grid made."""
        packed, scales, *zeros = (self.array(name) for name in inputs)
        bits, block_size = attributes["bits"], attributes["block_size"]
        return QuantizedMatrix(
            packed=torch.from_numpy(packed).view(packed.shape[0], -1, block_size * bits // 8),
            scales=torch.from_numpy(scales.astype(np.float32)),
            zero_points=torch.from_numpy(zeros[0]) if zeros else None,
            bits=bits,
            block_size=block_size,
            in_features=columns,
        )


class GraphWeights(GraphFile):
    """A decoder's graph, whose nodes know the tensors of the checkpoint."""

    def __init__(self, path: Path, places: Mapping[str, Place]) -> None:
        """`places`: the checkpoint's tensors, by whose names weights are asked for. Raises BundleError."""
        super().__init__(path)
        self._places = places
        self.nodes = tuple(self._weight_nodes())

    def matrix(self, node: WeightNode) -> QuantizedMatrix:
        """What a node holds, in the form that quantize.grid made."""
        columns = node.attributes.get("K") or self._places[node.sources[0].tensor].shape[1]
        return self.read_matrix(node.inputs, node.attributes, columns=columns)

    def _weight_nodes(self) -> Iterator[WeightNode]:
        for node, inputs, attributes in self.grid_nodes():
            sources = parts(str(node.name), self._places)
            if sources:
                yield WeightNode(str(node.name), node.op_type, tuple(sources), inputs, attributes)


def _is_fixed(value: ir.Value | None) -> bool:
    """Whether a value is in the graph and nobody can give another."""
    return value is not None and value.is_initializer() and not value.is_graph_input()


def same_bytes(ours: QuantizedMatrix, theirs: QuantizedMatrix) -> bool:
    """Whether two matrices are the same on the grid, byte for byte."""
    if (ours.zero_points is None) != (theirs.zero_points is None):
        return False
    pairs = [(ours.packed, theirs.packed), (ours.scales, theirs.scales)]
    if ours.zero_points is not None and theirs.zero_points is not None:
        pairs.append((ours.zero_points, theirs.zero_points))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


class DeviceTensors(Mapping[str, Tensor]):
    """Parameter name of the torch model -> float32 tensor with the numbers that the bundle computes with.

    Matrices that the graph holds on the grid come from its bytes, dequantised; all else from the checkpoint.
    """

    def __init__(self, weights: GraphWeights, places: Mapping[str, Place]) -> None:
        self._weights, self._places = weights, places
        self._pieces: dict[str, list[tuple[int, WeightNode, int]]] = {}
        for node in weights.nodes:
            row = 0
            for part in node.sources:
                name = "model.embed_tokens.weight" if node.name == EMBEDDING else part.tensor
                self._pieces.setdefault(name, []).append((part.index, node, row))
                row += places[part.tensor].shape[0] // part.count

    def __getitem__(self, name: str) -> Tensor:
        source = name
        if name == HEAD_TENSOR and name not in self._places:
            source = "model.embed_tokens.weight"
        pieces = self._pieces.get(source)
        if pieces is None:
            return read_tensor(self._places[source]).float()
        if len(pieces) > 1 and pieces[0][0] == pieces[1][0]:  # tied: head and embedding read the same bytes
            pieces = pieces[:1]
        found = []
        for _, node, row in sorted(pieces, key=lambda piece: piece[0]):
            count = next(part.count for part in node.sources if part.tensor == source)
            rows = self._places[source].shape[0] // count
            found.append(dequantize(self._weights.matrix(node))[row : row + rows])
        return torch.cat(found) if len(found) > 1 else found[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
