"""Scales as a graph stores them: in bfloat16, which they are by value, with a Cast to the float32 that kernels read.

onnxruntime folds the Cast when it opens the graph, so the file is smaller and nothing else differs.
"""

from __future__ import annotations

import onnx_ir as ir

GRID_OPERATORS = ("GatherBlockQuantized", "MatMulNBits")
"""onnxruntime's operators that read weights on the grid."""
SCALES = 2
"""The input of their scales."""


def cast_to_float(stored: ir.Value) -> ir.Node:
    """A Cast, in no graph yet, from an initializer to float32."""
    node = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}, name=f"{stored.name}/Cast")
    output = node.outputs[0]
    output.name, output.type, output.shape = f"{stored.name}.float", ir.TensorType(ir.DataType.FLOAT), stored.shape
    return node


def behind_cast(value: ir.Value) -> ir.Value:
    """What a value is cast from; the value itself where it comes from no Cast."""
    node = value.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Cast" else None
    return value if source is None else source


def store_in_bfloat16(graph: ir.Graph) -> None:
    """Let a graph whose scales are float32 initializers store them in bfloat16."""
    cast: dict[str, ir.Value] = {}
    for node in list(graph):
        if node.op_type not in GRID_OPERATORS:
            continue
        scales = node.inputs[SCALES]
        assert scales is not None
        assert scales.const_value is not None
        name = str(scales.name)
        if name not in cast:
            array = scales.const_value.numpy().astype(ir.DataType.BFLOAT16.numpy())
            scales.const_value = ir.tensor(array, name=name)
            scales.type = ir.TensorType(ir.DataType.BFLOAT16)
            before = cast_to_float(scales)
            graph.insert_before(node, before)
            cast[name] = before.outputs[0]
        node.replace_input_with(SCALES, cast[name])
