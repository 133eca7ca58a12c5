"""What rounding made of the change to each matrix: base, merged model and bundle -> one record a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from edgetune.export.graph import Weights, join
from edgetune.export.read_graph import GraphFile, GraphWeights
from edgetune.model.base import model_tensors
from edgetune.model.weights import find_tensors, read_tensor
from edgetune.quantize.layer_change import LayerChange, layer_change
from edgetune.runtime.bundle import GRAPH, Bundle


def layers_changed(bundle: Bundle, merged: Path, base: Mapping[str, Tensor]) -> Iterator[LayerChange]:
    """Each matrix of a decoder's bundle that fine-tuning changed, one after the other.

    Nothing for a float bundle, nor for one by "awq", whose matrices have other channels than the base's.

    `base`: the base's tensors as they were merged on. Raises BundleError for a damaged graph.
    """
    if bundle.grid is None or bundle.provenance.get("method") == "awq":
        return
    source = Weights(find_tensors(merged))
    graph = GraphWeights(bundle.path / GRAPH, source.places)
    for node in graph.nodes:
        if node.op_type != "MatMulNBits":
            continue  # the embedding: what an adapter changes of it is not low-rank, and rare
        before, after = join(base, node.sources), source.read(node.sources)
        if not before.float().equal(after.float()):
            yield layer_change(node.name, before, after, graph.matrix(node))


def encoder_layers_changed(bundle: Bundle, merged: Path, base: Mapping[str, Tensor]) -> Iterator[LayerChange]:
    """Each matrix of a classifier's bundle that fine-tuning changed; nothing for a float bundle.

    `base`: the base's tensors as they were merged on. Raises BundleError for a damaged graph.
    """
    if bundle.grid is None:
        return
    graph, places, seen = GraphFile(bundle.path / GRAPH), model_tensors(merged), set[str]()
    for node, inputs, attributes in graph.grid_nodes():
        name = inputs[0].removeprefix("classifier.encoder.").removesuffix(".packed")
        if node.op_type != "MatMulNBits" or name in seen:  # DeBERTa multiplies by some matrices twice
            continue
        seen.add(name)
        before, after = base[f"{name}.weight"], read_tensor(places[f"{name}.weight"])
        if not before.float().equal(after.float()):
            yield layer_change(name, before, after, graph.read_matrix(inputs, attributes, columns=after.shape[1]))
