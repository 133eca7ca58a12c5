"""What rounding made of the change to each matrix of a decoder: base, merged model and bundle -> one record a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from edgetune.export.graph import Weights, join
from edgetune.export.read_graph import GraphWeights
from edgetune.model.weights import find_tensors
from edgetune.quantize.layer_change import LayerChange, layer_change
from edgetune.runtime.bundle import GRAPH, Bundle


def layers_changed(bundle: Bundle, merged: Path, base: Mapping[str, Tensor]) -> Iterator[LayerChange]:
    """Each matrix of the bundle that fine-tuning changed, one after the other.

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
