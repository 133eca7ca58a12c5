"""Adapter inputs: a decoder's graph that holds the base and takes an adapter as inputs, and the adapter's own file.

Each product x W^T that an adapter changes becomes x W^T + (x A) B, where A and B are inputs of the graph whose defaults
have rank 0: without an adapter the base runs. onnxruntime feeds them from an .onnx_adapter file. Where the graph makes
one product of several projections (query, key and value; gate and up projection) each keeps a branch of its own, and
what they give is concatenated. One branch for all, their B along a diagonal, is fewer nodes, but its zeros made the
file 1.6 times as large and decoding a sixth slower (edgetune:nano, rank 32, median of 5 rounds on a busy machine).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgetune.errors import BundleError, ModelError
from edgetune.export.architecture import Part, parts
from edgetune.export.read_graph import GraphFile
from edgetune.lora.read import Adapter
from edgetune.model.weights import EMBEDDING_TENSOR, Place

FORMAT = 1
"""The adapter version and model version in our adapter files: of the names and shapes of the inputs."""
MERGE_INSTEAD = "merge it instead: `edgetune merge`, then `edgetune export`"


@dataclass(frozen=True)
class Branch:
    """The branch beside a projection: A is (columns, rank), B is (rank, rows), float32."""

    name: str
    """In the words of the graph, e.g. model.layers.0.attn.q_proj."""
    part: Part
    """The projection's weight in the checkpoint, (rows, columns)."""
    columns: int
    rows: int

    @property
    def a(self) -> str:
        """The input of A, e.g. model.layers.0.attn.q_proj.lora_A.MatMul.weight."""
        return f"{self.name}.lora_A.MatMul.weight"

    @property
    def b(self) -> str:
        """The input of B."""
        return f"{self.name}.lora_B.MatMul.weight"


def check_adapter(adapter: Adapter) -> None:
    """Raises ModelError for an adapter that is more than scaling * B @ A beside the base's products."""
    if adapter.replaced:
        raise ModelError(
            f"{adapter.folder}: it holds {next(iter(adapter.replaced))} trained whole, which is no low-rank branch",
            cure=f"{MERGE_INSTEAD}; or train without lora.train_embeddings and modules_to_save",
        )
    if EMBEDDING_TENSOR in adapter.pairs:
        raise ModelError(
            f"{adapter.folder}: it changes the embedding, which is no product that a branch could stand beside",
            cure=f"{MERGE_INSTEAD}; or train without embed_tokens in lora.target_modules",
        )
    if any(pair.magnitude is not None for pair in adapter.pairs.values()):
        raise ModelError(
            f"{adapter.folder}: DoRA rescales the base's own weights, which no branch beside them can",
            cure=f"{MERGE_INSTEAD}; or train with lora.use_dora = false",
        )


def add_branches(path: Path, places: Mapping[str, Place], changed: Container[str]) -> list[Branch]:
    """Give the graph `path` branches beside each product that holds one of the `changed` tensors of the checkpoint.

    All projections of such a product get theirs. The data file stays as it is.
    """
    model, found = ir.load(path), []
    for node in list(model.graph):
        branches = _branches_of(node, places)
        if any(branch.part.tensor in changed for branch in branches):
            _add_beside(model.graph, node, branches)
            found += branches
    ir.save(model, path)
    return found


def find_branches(path: Path, places: Mapping[str, Place]) -> list[Branch]:
    """The branches that a graph has. Raises BundleError if it cannot be read."""
    graph = GraphFile(path).graph
    inputs = {value.name for value in graph.inputs}
    return [branch for node in graph for branch in _branches_of(node, places) if branch.a in inputs]


def branch_arrays(branches: Sequence[Branch], adapter: Adapter) -> dict[str, np.ndarray]:
    """The adapter's numbers by the names of the graph's inputs, scaling folded into B; untouched branches left out.

    Raises ModelError for an adapter that changes a tensor which no branch stands beside.
    """
    covered = {branch.part.tensor for branch in branches}
    if missing := [name for name in adapter.pairs if name not in covered]:
        raise ModelError(
            f"{adapter.folder}: it changes {missing[0]}, for which the graph has no inputs",
            cure="export it into a bundle of its own, or train the projections that the bundle's first adapter has",
        )
    found = {}
    for branch in branches:
        if (pair := adapter.pairs.get(branch.part.tensor)) is not None:
            first = branch.part.index * branch.rows
            b = (pair.scaling * pair.b.float())[first : first + branch.rows]
            found[branch.a] = np.ascontiguousarray(pair.a.float().T.numpy())
            found[branch.b] = np.ascontiguousarray(b.T.numpy())
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


def _branches_of(node: ir.Node, places: Mapping[str, Place]) -> list[Branch]:
    """The branches that can stand beside a product on the grid, in the order of its rows; none beside other nodes."""
    sources = parts(str(node.name), places) if node.op_type == "MatMulNBits" else None
    name = str(node.name).removeprefix("/").removesuffix("/MatMul").replace("/", ".")
    found = []
    for part in sources or ():
        rows, columns = places[part.tensor].shape
        own = part.tensor.removesuffix(".weight").rpartition(".")[2]
        one = name if len(sources or ()) == 1 else f"{name.rpartition('.')[0]}.{own}"
        found.append(Branch(one, part, columns, rows // part.count))
    return found


def _add_beside(graph: ir.Graph, node: ir.Node, branches: Sequence[Branch]) -> None:
    """Put branches beside a product; the sum takes over the name of the product's output."""
    base, product = str(node.name).removesuffix("/MatMul"), node.outputs[0]
    total = ir.val(product.name, product.dtype, product.shape)
    product.replace_all_uses_with(total, replace_graph_outputs=True)
    product.name = f"{base}/base"
    nodes, given = [], []
    for branch in branches:
        a, b = _add_inputs(graph, branch)
        name = f"/{branch.name.replace('.', '/')}"
        narrow = _node("MatMul", [node.inputs[0], a], f"{name}/lora_A")
        wide = _node("MatMul", [narrow.outputs[0], b], f"{name}/lora_B")
        nodes += [narrow, wide]
        given.append(wide.outputs[0])
    if len(given) > 1:
        nodes.append(_node("Concat", given, f"{base}/lora", axis=-1))
        given = [nodes[-1].outputs[0]]
    nodes.append(ir.node("Add", [product, *given], outputs=[total], name=f"{base}/lora/Add"))
    graph.insert_after(node, nodes)


def _node(op_type: str, inputs: Sequence[ir.Value | None], name: str, **attributes: int) -> ir.Node:
    """A node with one output, which has the node's name without its operator."""
    return ir.node(op_type, inputs, attributes, outputs=[ir.val(name)], name=f"{name}/{op_type}")


def _add_inputs(graph: ir.Graph, branch: Branch) -> tuple[ir.Value, ir.Value]:
    """A and B as inputs, with defaults of rank 0."""
    rank, found = f"{branch.name}.rank", []
    for name, shape, empty in (
        (branch.a, (branch.columns, rank), (branch.columns, 0)),
        (branch.b, (rank, branch.rows), (0, branch.rows)),
    ):
        value = ir.val(name, ir.DataType.FLOAT, shape)
        value.const_value = ir.tensor(np.zeros(empty, np.float32), name=name)
        graph.inputs.append(value)
        graph.register_initializer(value)
        found.append(value)
    return found[0], found[1]
