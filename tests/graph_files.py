"""What a graph's file holds, and what it held at first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx.external_data_helper import ExternalDataInfo

from edgetune.export.read_graph import GraphFile
from edgetune.export.stored_scales import SCALES

COUNTS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)


def added_up(path: Path) -> int:
    """Bytes of a graph's initializers, shapes and indices left out; those over the same bytes of a file once."""
    found: dict[object, int] = {}
    for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            info = ExternalDataInfo(tensor)
            found[info.offset] = info.length
        elif tensor.data_type not in COUNTS:
            found[tensor.name] = onnx.numpy_helper.to_array(tensor).nbytes
    return sum(found.values())


def write_float32_scales(path: Path) -> None:
    """Turn a graph into what EdgeTune wrote at first: scales as float32 initializers, no Cast before them."""
    graph = GraphFile(path)
    nodes = graph.graph
    for node, (_, name, *_), _ in list(graph.grid_nodes()):
        held = f"{name}.held"
        if held not in nodes.initializers:
            array = graph.array(name).astype(np.float32)
            nodes.register_initializer(ir.val(held, const_value=ir.tensor(array, name=held)))
        node.replace_input_with(SCALES, nodes.initializers[held])
    for node in [node for node in nodes if node.op_type == "Cast" and not node.outputs[0].uses()]:
        source = str(node.inputs[0].name)
        nodes.remove(node, safe=True)
        del nodes.initializers[source]
    ir.save(graph.model, path)
