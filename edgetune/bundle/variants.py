"""Variants of a run's bundle that are measured and thrown away: what the ledger compares the shipped one with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from edgetune.bundle.task import TASKS
from edgetune.export.read_graph import GraphFile
from edgetune.model.weights import find_tensors
from edgetune.quantize.grid import dequantize
from edgetune.recipe import Recipe
from edgetune.runtime.bundle import GRAPH, Bundle, write_manifest
from edgetune.verify.deviation import at_level_0

MOST_FLOAT_BYTES = 4 * 1024**3
"""A float32 graph larger than that is not built for the ledger."""
MOST_UNPACKED_BYTES = 256 * 1024**2
"""More float32 weights than that stay packed: a graph may hold 2 GiB."""


def float_bytes(merged: Path) -> int:
    """Bytes of a merged folder's weights in float32."""
    sizes = (place.size_bytes // place.dtype.itemsize for place in find_tensors(merged).values())
    return 4 * sum(sizes)


def build_float(bundle: Bundle, merged: Path, folder: Path, recipe: Recipe) -> Bundle:
    """The merged model of a bundle as a float32 graph, not verified, in an empty folder."""
    table = dataclasses.replace(recipe.export, precision="fp32")
    return TASKS[recipe.model.task].build_again(bundle, merged, folder, dataclasses.replace(recipe, export=table))


@contextmanager
def exact(bundle: Bundle) -> Iterator[Bundle]:
    """The bundle with activations that are not rounded to int8, in a folder that vanishes."""
    with at_level_0(bundle) as copied:
        _unpack_8_bits(copied.path / GRAPH)
        yield write_manifest(dataclasses.replace(copied, files={}))


def _unpack_8_bits(path: Path) -> None:
    """Let a graph hold its 8-bit products' weights, a head's for one, as the floats that they stand for.

    At level 0 the runtime unpacks all of such a weight for each token: of a small model's answers, 0.7 of the time.
    """
    graph, room = GraphFile(path), MOST_UNPACKED_BYTES
    for node, inputs, attributes in list(graph.grid_nodes()):
        shape = attributes.get("N", 0), attributes.get("K", 0)
        is_simple = node.op_type == "MatMulNBits" and not any(node.inputs[4:])
        size = 4 * shape[0] * shape[1]
        if not is_simple or attributes["bits"] != 8 or size > room:
            continue
        room -= size
        weight = dequantize(graph.read_matrix(inputs, attributes, columns=shape[1])).T.contiguous()
        name = f"{node.name}.unpacked"
        unpacked = ir.val(name, const_value=ir.tensor(weight.numpy(), name=name))
        graph.graph.register_initializer(unpacked)
        node.op_type, node.domain = "MatMul", ""
        node.attributes.clear()
        node.resize_inputs(2)
        node.replace_input_with(1, unpacked)
    ir.save(graph.model, path)
