"""Side branches: a decoder's graph that holds the base and takes the adapter as inputs, and the adapter's own file.

Each product x W^T that an adapter changes becomes x W^T + (x A) B, where A and B are inputs of the graph whose defaults
have rank 0: without an adapter the base runs. onnxruntime feeds them from an .onnx_adapter file. Where the graph makes
one product of several projections (query, key and value; gate and up projection) it gets one branch for all: their A
side by side, their B along a diagonal. That is two small products instead of up to six, for zeros in B.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from edgetune.errors import BundleError, ModelError
from edgetune.export.architecture import Part, parts
from edgetune.lora.read import Adapter
from edgetune.model.weights import Place

FORMAT = 1
"""The adapter version and model version in our adapter files: of the names and shapes of the inputs."""
MERGE_INSTEAD = "merge it instead: `edgetune merge`, then `edgetune export` without --keep-adapter"
FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class Branch:
    """The branch beside one product: A is (columns, rank), B is (rank, rows), float32."""

    node: str
    """The product's node, e.g. /model/layers.0/attn/qkv_proj/MatMul."""
    sources: tuple[Part, ...]
    columns: int
    rows: int

    @property
    def a(self) -> str:
        """The input of A, e.g. model.layers.0.attn.qkv_proj.lora_A.MatMul.weight."""
        return self._input("lora_A")

    @property
    def b(self) -> str:
        """The input of B."""
        return self._input("lora_B")

    def _input(self, part: str) -> str:
        return f"{self.node.removeprefix('/').removesuffix('/MatMul').replace('/', '.')}.{part}.MatMul.weight"


def check_adapter(adapter: Adapter) -> None:
    """Raises ModelError for an adapter that is more than scaling * B @ A beside the base's products."""
    if adapter.replaced:
        raise ModelError(
            f"{adapter.folder}: it holds {next(iter(adapter.replaced))} trained whole, which is no low-rank branch",
            cure=f"{MERGE_INSTEAD}; or train without lora.train_embeddings and modules_to_save",
        )
    if any(pair.magnitude is not None for pair in adapter.pairs.values()):
        raise ModelError(
            f"{adapter.folder}: DoRA rescales the base's own weights, which no branch beside them can",
            cure=f"{MERGE_INSTEAD}; or train with lora.use_dora = false",
        )


def add_branches(path: Path, places: Mapping[str, Place], changed: Container[str]) -> list[Branch]:
    """Give the graph `path` a branch beside each product that holds one of the `changed` tensors of the checkpoint.

    The data file stays as it is. Raises ModelError where the graph has a float product in place of one on the grid.
    """
    model = onnx.load(str(path), load_external_data=False)
    graph, nodes, found = model.graph, [], []
    for node in graph.node:
        nodes.append(node)
        branch = _branch_of(node, places)
        if branch is None or not any(part.tensor in changed for part in branch.sources):
            continue
        found.append(branch)
        nodes += _side(node, branch)
        rank = f"{branch.node}.rank"
        graph.input.append(helper.make_tensor_value_info(branch.a, FLOAT, [branch.columns, rank]))
        graph.input.append(helper.make_tensor_value_info(branch.b, FLOAT, [rank, branch.rows]))
        graph.initializer.append(numpy_helper.from_array(np.zeros((branch.columns, 0), np.float32), branch.a))
        graph.initializer.append(numpy_helper.from_array(np.zeros((0, branch.rows), np.float32), branch.b))
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, str(path))
    return found


def find_branches(path: Path, places: Mapping[str, Place]) -> list[Branch]:
    """The branches that a graph has. Raises BundleError if it cannot be read."""
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf raises its own types
        raise BundleError(f"{path}: cannot be read: {error}", cure="export it again") from None
    inputs = {item.name for item in graph.input}
    candidates = (_branch_of(node, places) for node in graph.node)
    return [branch for branch in candidates if branch is not None and branch.a in inputs]


def branch_arrays(branches: list[Branch], adapter: Adapter, places: Mapping[str, Place]) -> dict[str, np.ndarray]:
    """The adapter's numbers by the names of the graph's inputs, scaling folded into B; untouched branches left out.

    Raises ModelError for an adapter that changes a tensor which no branch stands beside.
    """
    covered = {part.tensor for branch in branches for part in branch.sources}
    if missing := [name for name in adapter.pairs if name not in covered]:
        raise ModelError(
            f"{adapter.folder}: it changes {missing[0]}, for which the graph has no inputs",
            cure="export it into a bundle of its own, or train the projections that the bundle's first adapter has",
        )
    found = {}
    for branch in branches:
        blocks = list(_blocks(branch, adapter, places))
        if not blocks:
            continue
        rank = sum(len(a) for _, a, _ in blocks)
        joined, column = np.zeros((rank, branch.rows), np.float32), 0
        for row, a, b in blocks:
            joined[column : column + len(a), row : row + len(b)] = b.T.numpy()
            column += len(a)
        found[branch.a] = np.ascontiguousarray(torch.cat([a for _, a, _ in blocks]).T.numpy())
        found[branch.b] = joined
    return found


def write_adapter(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .onnx_adapter file."""
    import onnxruntime

    file = onnxruntime.AdapterFormat()
    file.set_adapter_version(FORMAT)
    file.set_model_version(FORMAT)
    file.set_parameters({name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()})
    file.export_adapter(str(path))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What an .onnx_adapter file holds. Raises BundleError if it is damaged."""
    import onnxruntime

    try:
        file = onnxruntime.AdapterFormat.read_adapter(str(path))
        return {name: np.array(value.numpy()) for name, value in file.get_parameters().items()}
    except Exception as error:  # onnxruntime raises bare RuntimeError
        raise BundleError(f"{path}: cannot be read: {error}", cure="export the adapter again") from None


def _branch_of(node: onnx.NodeProto, places: Mapping[str, Place]) -> Branch | None:
    """What the branch beside a product on the grid is, or None for other nodes."""
    sources = parts(node.name, places) if node.op_type == "MatMulNBits" else None
    if not sources:
        return None
    sizes = {item.name: int(item.i) for item in node.attribute}
    return Branch(node.name, tuple(sources), sizes["K"], sizes["N"])


def _side(node: onnx.NodeProto, branch: Branch) -> list[onnx.NodeProto]:
    """The nodes of a branch. The sum takes over the name of the product's output, so what reads it needs no change."""
    base = branch.node.removesuffix("/MatMul")
    output, product, narrow, wide = node.output[0], f"{base}/base", f"{base}/lora_A", f"{base}/lora_B"
    node.output[0] = product
    return [
        helper.make_node("MatMul", [node.input[0], branch.a], [narrow], f"{narrow}/MatMul"),
        helper.make_node("MatMul", [narrow, branch.b], [wide], f"{wide}/MatMul"),
        helper.make_node("Add", [product, wide], [output], f"{base}/lora/Add"),
    ]


def _blocks(
    branch: Branch, adapter: Adapter, places: Mapping[str, Place]
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """For each part of a product that the adapter changes: its first row, A (r, columns), scaling * B (rows, r)."""
    row = 0
    for part in branch.sources:
        count = places[part.tensor].shape[0] // part.count
        if (pair := adapter.pairs.get(part.tensor)) is not None:
            b = pair.scaling * pair.b.float()
            yield row, pair.a.float(), b[part.index * count : (part.index + 1) * count]
        row += count
